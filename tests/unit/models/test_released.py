"""Checkpoints synthesised as each publisher lays them out: the mapped trunk gives the unmapped one's features."""

import argparse
import os
import struct
import zipfile
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from models.networks.resnet import BLOCKS, ResNet
from models.zoo import entries
from models.zoo.layouts import SamePool, simclr_tensorflow
from models.zoo.load import load_projection_head, load_trunk
from models.zoo.tensor_bundle import MAGIC, is_archive, read_archive
from reproduce.checkpoint_source import load_checkpoint_trunk, parent_run_ids
from reproduce.engine import checkpoint
from reproduce.errors import UserError

WIDTH = 0.0625


@pytest.fixture(scope="module")
def trunk() -> ResNet:
    torch.manual_seed(0)
    net = ResNet(WIDTH)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            for value in (module.weight.data, module.bias.data, module.running_mean):
                value.uniform_(-0.5, 1)
            module.running_var.uniform_(0.5, 2)
    return net.eval()


def below(prefix: str, net: ResNet) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in net.state_dict().items()}


def with_head(net: ResNet) -> dict[str, Tensor]:
    return below("", net) | {"fc.weight": torch.randn(1000, net.num_features), "fc.bias": torch.randn(1000)}


def test_a_deeper_network_raises(trunk: ResNet, tmp_path: Path) -> None:
    """ResNet-101 has 23 blocks in its third stage, of which the first six are named as a ResNet-50's."""
    sixth = {name: value for name, value in trunk.state_dict().items() if name.startswith("layer3.5.")}
    deeper = {name.replace("layer3.5.", "layer3.6."): value for name, value in sixth.items()}
    torch.save(trunk.state_dict() | deeper, tmp_path / "deep.pt")
    with pytest.raises(
        UserError, match=rf"deep.pt is not a ResNet-50; it has {len(sixth)} unexpected tensors: layer3\.6\.conv1"
    ):
        load_trunk(tmp_path / "deep.pt")
    with pytest.raises(UserError, match="is a folder; give a file"):
        load_trunk(tmp_path)


def test_pipes_and_devices_are_refused_before_they_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        cfg = OmegaConf.create({"checkpoint": str(path), "depth": 50, "stem": None})
        assert parent_run_ids(cfg) == []
        for read in (lambda: load_checkpoint_trunk(cfg), lambda: checkpoint.load(path)):  # noqa: B023
            with pytest.raises(UserError, match=rf"checkpoint {path} is a pipe or device; give a file, or the run_id"):
                read()


def test_a_run_may_have_dots_in_its_name() -> None:
    for name, parents in (("lr0.3-s0-0123456789", ["lr0.3-s0-0123456789"]), ("elsewhere/trunk.pth", [])):
        assert parent_run_ids(OmegaConf.create({"checkpoint": name})) == parents


def test_a_trunk_of_fewer_layers_loads_where_its_depth_is_expected(trunk: ResNet, tmp_path: Path) -> None:
    own = ResNet(WIDTH, BLOCKS[14]).eval()
    torch.save(own.state_dict(), tmp_path / "own.pt")
    torch.save(trunk.state_dict(), tmp_path / "r50.pt")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(load_trunk(tmp_path / "own.pt", depth=14)(images), own(images))
    assert torch.equal(load_trunk(tmp_path / "r50.pt", depth=14)(images), trunk(images))
    for depth in (None, 26):
        with pytest.raises(UserError, match=r"own\.pt matches 102 of the trunk's 318 tensors"):
            load_trunk(tmp_path / "own.pt", depth=depth)


def test_a_trunk_of_another_stem_loads_where_it_is_expected(trunk: ResNet, tmp_path: Path) -> None:
    """A 3x3 convolution does not say its stride, so nothing is guessed from it."""
    own = ResNet(WIDTH, BLOCKS[14], stem="3x3").eval()
    torch.save({"state_dict": own.state_dict()}, tmp_path / "own.pt")
    torch.save({"state_dict": trunk.state_dict()}, tmp_path / "r50.pt")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(load_trunk(tmp_path / "own.pt", depth=14, stem="3x3")(images), own(images))
    assert torch.equal(load_trunk(tmp_path / "r50.pt", depth=14, stem="3x3")(images), trunk(images))
    with pytest.raises(UserError, match=r"of another shape: conv1\.weight"):
        load_trunk(tmp_path / "own.pt", depth=14)
    evaluation = OmegaConf.create(
        {
            "checkpoint": str(tmp_path / "own.pt"),
            "depth": 14,
            "stem": "3x3",
            "normalize": {"mean": [0.5] * 3, "std": [0.2] * 3},
        }
    )
    _, evaluated = load_checkpoint_trunk(evaluation)
    assert torch.equal(evaluated(images), own(images))


def as_moco(net: ResNet) -> dict[str, Any]:
    other = {f"module.encoder_k.{name}": torch.randn_like(value.float()) for name, value in net.state_dict().items()}
    head = {"module.encoder_q.fc.0.weight": torch.randn(8, 8), "module.queue": torch.randn(128, 16)}
    return {"epoch": 200, "arch": "resnet50", "state_dict": other | below("module.encoder_q.", net) | head}


def as_vissl(net: ResNet) -> dict[str, Any]:
    model = {"trunk": below("_feature_blocks.", net), "heads": {"0.clf.0.weight": torch.randn(4, 8)}}
    return {
        "phase_idx": 125,
        "loss": np.float64(0.5),
        "options": argparse.Namespace(lr=0.3),
        "classy_state_dict": {"train": True, "base_model": {"model": model, "meters": []}},
    }


def as_converted_by_vissl(net: ResNet) -> dict[str, Any]:
    """NPID's weights: the trunk alone."""
    return {"model_state_dict": below("_feature_blocks.", net)}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["layer3.0.conv2.weight", "bn1.running_var", "layer1.0.bn1.bias"])
def test_a_checkpoint_that_is_not_finite_raises(trunk: ResNet, tmp_path: Path, name: str, value: float) -> None:
    """Its features would be NaN, and all images of one class."""
    weights = {key: tensor.clone() for key, tensor in trunk.state_dict().items()}
    weights[name].view(-1)[0] = value
    torch.save({"state_dict": {f"module.{key}": tensor for key, tensor in weights.items()}}, tmp_path / "nan.pt")
    with pytest.raises(UserError, match=rf"nan.pt has NaN or infinite numbers in 1 of its \d+ tensors \({name}\)"):
        load_trunk(tmp_path / "nan.pt")


def test_a_head_that_is_not_finite_raises(trunk: ResNet, tmp_path: Path) -> None:
    head = {"projection_head.0.weight": torch.full((8, trunk.num_features), torch.nan)}
    torch.save(trunk.state_dict() | head | {"projection_head.0.bias": torch.zeros(8)}, tmp_path / "nan.pt")
    assert load_trunk(tmp_path / "nan.pt").num_features == trunk.num_features
    with pytest.raises(UserError, match=r"in 1 of its 2 tensors \(0\.weight\)"):
        load_projection_head(tmp_path / "nan.pt")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "torch 1.4"])
@pytest.mark.parametrize("named", [True, False], ids=["entry", "file"])
@pytest.mark.parametrize(
    ("layout", "laid_out"),
    [
        ("torchvision", with_head),
        ("torchvision", lambda net: {"state_dict": below("module.", net), "epoch": 800}),
        ("moco", as_moco),
        ("vissl", as_vissl),
        ("vissl", as_converted_by_vissl),
    ],
    ids=["torchvision", "swav", "moco and pcl", "vissl", "npid"],
)
def test_features_equal_the_publishers_network(
    trunk: ResNet, tmp_path: Path, layout: str, laid_out: Any, named: bool, legacy: bool
) -> None:
    path = tmp_path / "weights.pth.tar"
    torch.save(laid_out(trunk), path, _use_new_zipfile_serialization=not legacy)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(load_trunk(path, layout if named else None)(images), trunk(images))


def test_moco_key_encoder_alone_is_not_loaded(trunk: ResNet, tmp_path: Path) -> None:
    content = as_moco(trunk)
    torch.save({"state_dict": {k: v for k, v in content["state_dict"].items() if "encoder_q" not in k}}, tmp_path / "w")
    with pytest.raises(UserError, match=r"has no trunk: in the layout of moco there is no 'conv1.weight'"):
        load_trunk(tmp_path / "w", "moco")


def test_an_unmatched_tensor_raises_with_its_name(trunk: ResNet, tmp_path: Path) -> None:
    content = as_vissl(trunk)
    del content["classy_state_dict"]["base_model"]["model"]["trunk"]["_feature_blocks.layer2.0.bn2.running_var"]
    torch.save(content, tmp_path / "w")
    with pytest.raises(UserError, match=r"matches 317 of the trunk's 318 tensors; .*: layer2\.0\.bn2\.running_var$"):
        load_trunk(tmp_path / "w", "vissl")


@pytest.mark.parametrize(
    "content", [b"", b"hello world", b"(a list", b"<html>", b"X\x01\x00\x00\x00\xff", b"PK\x03\x04cut"]
)
def test_a_file_not_written_by_torch_raises_user_error(tmp_path: Path, content: bytes) -> None:
    """Each ends in another error of torch's; none of its advice to read the file all the same is passed on."""
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(UserError, match=r"checkpoint \S+/w (is damaged|can't be read).*\(.+\)") as told:
        load_trunk(tmp_path / "w")
    assert "weights_only" not in str(told.value)


class Runs:
    """What a pickle could hold: reading it would call a function."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("written",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_could_run_code_is_refused(trunk: ResNet, tmp_path: Path, legacy: bool) -> None:
    torch.save(
        {"state_dict": below("", trunk), "bank": Runs()}, tmp_path / "w", _use_new_zipfile_serialization=not legacy
    )
    with pytest.raises(UserError, match=r"w is damaged, or holds more than .* is refused \(posix\.mkdir\)$"):
        load_trunk(tmp_path / "w")


class TestSimclr:
    def variables(self, net: ResNet) -> dict[str, np.ndarray]:
        """The trunk's tensors as SimCLR's TensorFlow code names and lays them out."""
        order = ["conv1"]
        for stage, blocks in ((1, 3), (2, 4), (3, 6), (4, 3)):
            order.append(f"layer{stage}.0.downsample.0")
            order += [f"layer{stage}.{block}.conv{number}" for block in range(blocks) for number in (1, 2, 3)]
        weights = {name: value.numpy() for name, value in net.state_dict().items()}
        variables: dict[str, np.ndarray] = {"global_step": np.array(225206), "head/dense/kernel": np.ones((4, 2), "f4")}
        for number, conv in enumerate(order):
            suffix = f"_{number}" if number else ""
            norm = conv.replace("downsample.0", "downsample.1").replace("conv", "bn")
            variables[f"base_model/conv2d{suffix}/kernel"] = weights[f"{conv}.weight"].transpose(2, 3, 1, 0)
            variables[f"base_model/conv2d{suffix}/kernel/Momentum"] = np.ones((1,), "f4")
            for theirs, ours in (
                ("gamma", "weight"),
                ("beta", "bias"),
                ("moving_mean", "running_mean"),
                ("moving_variance", "running_var"),
            ):
                variables[f"base_model/batch_normalization{suffix}/{theirs}"] = weights[f"{norm}.{ours}"]
        return variables

    def test_features_equal_the_publishers_network(self, trunk: ResNet, tmp_path: Path) -> None:
        write_bundle(tmp_path / "ResNet50_1x.zip", self.variables(trunk))
        mapped = load_trunk(tmp_path / "ResNet50_1x.zip", "simclr_tensorflow")
        images = torch.randn(2, 3, 64, 64)
        for name, value in trunk.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                assert torch.equal(mapped.state_dict()[name], value), name
        assert not torch.allclose(mapped(images), trunk(images))  # the pooling is TensorFlow's
        mapped.maxpool = trunk.maxpool
        torch.testing.assert_close(mapped(images), trunk(images))

    def test_build_order_matches_the_shapes_of_the_public_files(self) -> None:
        """Shapes that the published ResNet50_4x has (kernels HWIO)."""
        public = {49: (1, 1, 2048, 8192), 50: (1, 1, 8192, 2048), 51: (3, 3, 2048, 2048), 52: (1, 1, 2048, 8192)}
        meta = {f"base_model/conv2d_{n}/kernel": torch.empty(shape, device="meta") for n, shape in public.items()}
        shapes = {name: tuple(value.shape) for name, value in simclr_tensorflow(meta).items()}
        with torch.device("meta"):
            own = {name: tuple(value.shape) for name, value in ResNet(4).state_dict().items()}
        numbered = ("layer4.1.conv3", "layer4.2.conv1", "layer4.2.conv2", "layer4.2.conv3")
        assert shapes == {f"{name}.weight": own[f"{name}.weight"] for name in numbered}

    @pytest.mark.parametrize("sizes", [(6, 6), (7, 7), (6, 7), (7, 6)])
    def test_pooling_equals_tensorflow_same_padding(self, sizes: tuple[int, int]) -> None:
        x = torch.randn(1, 1, *sizes)
        rows, columns = (-(-size // 2) for size in sizes)
        # SAME puts the odd pixel of padding at the end.
        above, before = (((-(-size // 2) - 1) * 2 + 3 - size) // 2 for size in sizes)
        for row in range(rows):
            for column in range(columns):
                top, left = 2 * row - above, 2 * column - before
                window = x[0, 0, max(top, 0) : top + 3, max(left, 0) : left + 3]
                assert SamePool(3, stride=2)(x)[0, 0, row, column] == window.max()

    @pytest.mark.parametrize("damage", ["magic", "shard"])
    def test_a_damaged_archive_raises_user_error(self, trunk: ResNet, tmp_path: Path, damage: str) -> None:
        write_bundle(tmp_path / "w.zip", self.variables(trunk), damage)
        with pytest.raises(UserError, match=r"w\.zip is not an intact archive of a TensorFlow checkpoint"):
            load_trunk(tmp_path / "w.zip")


def test_reads_a_file_written_by_tensorflow() -> None:
    """Written by TensorFlow 2.21's `tf.compat.v1.train.Saver`: two kernels, a scalar, and a step counter (int64)."""
    variables = read_archive(Path(__file__).parents[2] / "golden" / "tensorflow.zip")
    assert set(variables) == {"base_model/conv2d/kernel", "base_model/conv2d_1/kernel", "scale"}
    assert torch.equal(variables["base_model/conv2d/kernel"], torch.arange(6).reshape(1, 1, 2, 3) / 2)
    assert torch.equal(variables["base_model/conv2d_1/kernel"], torch.tensor([1.5, -2]))
    assert torch.equal(variables["scale"], torch.tensor(0.25))


def stored_bytes(file: Path) -> dict[str, range]:
    """Where the content of each file in a zip archive stands, by its name."""
    content, found = file.read_bytes(), {}
    with zipfile.ZipFile(file) as archive:
        for each in archive.infolist():
            name, extra = struct.unpack("<HH", content[each.header_offset + 26 : each.header_offset + 30])
            start = each.header_offset + 30 + name + extra
            found[each.filename] = range(start, start + each.compress_size)
    return found


def end_of_archive(file: Path) -> range:
    """Where the four bytes stand by which the end of a zip archive is found."""
    size = file.stat().st_size
    return range(size - 22, size - 18)


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :]


def test_any_flipped_archive_byte_raises_user_error_or_changes_nothing(tmp_path: Path) -> None:
    """What changes nothing is among names, times and sizes that are there twice."""
    file, damaged = Path(__file__).parents[2] / "golden" / "tensorflow.zip", tmp_path / "w.zip"
    content, whole, refused = file.read_bytes(), read_archive(file), set()
    for at in range(len(content)):
        damaged.write_bytes(flipped(content, at))
        try:
            found = read_archive(damaged)
        except UserError:
            refused.add(at)
        else:
            assert is_archive(damaged) and found.keys() == whole.keys(), at
            assert all(torch.equal(found[name], value) for name, value in whole.items()), at
    of_files = [places[:-1] for places in stored_bytes(file).values()]  # the last byte may have bits that say nothing
    assert refused >= {*chain(*of_files), *end_of_archive(file)}


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own, of what it then refuses
def test_any_flipped_checkpoint_byte_raises_user_error_or_loads_two_entries(tmp_path: Path) -> None:
    """Torch compares no checksum: a flipped byte may change a name or a number, and never what kind of thing it is."""
    file, damaged = tmp_path / "whole.pt", tmp_path / "w.pt"
    torch.save({"weight": torch.ones(3), "step": 7}, file)
    content, pickled = file.read_bytes(), stored_bytes(file)["whole/data.pkl"]
    must_raise = {pickled[0], pickled[-1], *end_of_archive(file)}
    for at in sorted({*range(0, len(content), 3), *must_raise}):
        damaged.write_bytes(flipped(content, at))
        try:
            found = checkpoint.load(damaged)
        except UserError:
            continue
        assert at not in must_raise
        (weight, step) = found.values()
        assert weight.shape == (3,) and isinstance(step, int), at


def test_a_checkpoint_that_was_cut_anywhere_raises_user_error(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(3), "step": 7}, tmp_path / "whole.pt")
    content = (tmp_path / "whole.pt").read_bytes()
    for length in range(0, len(content), 7):
        (tmp_path / "w.pt").write_bytes(content[:length])
        with pytest.raises(UserError):
            checkpoint.load(tmp_path / "w.pt")


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def block(entries: list[tuple[bytes, bytes]]) -> bytes:
    """A block of a sorted table, keys written as what differs from the one before, uncompressed."""
    out, last = b"", b""
    for key, value in entries:
        shared = next((i for i, (a, b) in enumerate(zip(key, last, strict=False)) if a != b), min(len(key), len(last)))
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    return out + struct.pack("<II", 0, 1) + b"\0" + b"crc?"


def write_bundle(path: Path, variables: dict[str, np.ndarray], damage: str = "") -> None:
    """A TensorFlow checkpoint in a zip archive, as TensorFlow's own documentation of its format has it."""
    data = b""
    entries = [(b"", field(1, 1) + field(3, field(1, 1)))]
    for name in sorted(variables):
        value = variables[name]
        shape = b"".join(field(2, field(1, size)) for size in value.shape)
        where = (field(4, len(data)) if data else b"") + field(5, value.nbytes)
        dtype = 1 if value.dtype == np.float32 else 9
        entries.append((name.encode(), field(1, dtype) + field(2, shape) + where + varint(6 << 3 | 5) + b"crc?"))
        data += value.tobytes()
    index, handles = b"", []
    for start in range(0, len(entries), 16):
        some = entries[start : start + 16]
        content = block(some)
        handles.append((some[-1][0], varint(len(index)) + varint(len(content) - 5)))
        index += content
    meta, top = block([]), block(handles)
    footer = varint(len(index)) + varint(len(meta) - 5) + varint(len(index + meta)) + varint(len(top) - 5)
    magic = MAGIC + (damage == "magic")
    index += meta + top + footer.ljust(40, b"\0") + struct.pack("<Q", magic)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ResNet50_1x/hub/variables/variables.index", b"the same again, exported")
        archive.writestr("ResNet50_1x/model.ckpt-225206.index", index)
        archive.writestr(
            "ResNet50_1x/model.ckpt-225206.data-00000-of-00001", data[: 100 if damage == "shard" else None]
        )


def test_an_unknown_entry_raises_with_the_closest_name() -> None:
    with pytest.raises(UserError, match=r"unknown released checkpoint 'swav_801ep': did you mean 'swav_800ep'"):
        entries.get_entry("swav_801ep")
