"""Files as the publishers of Table 2's other networks write them, with the official names: the same features."""

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.networks.amdim import AmdimEncoder
from models.networks.cmc import CmcPair
from models.networks.efficientnet import EfficientNetB7
from models.networks.revnet import RevNet
from models.networks.trunk import Trunk
from models.zoo import entries
from models.zoo.layouts import LAYOUTS
from models.zoo.load import load_projection_head, load_trunk
from models.zoo.other_networks import OTHER_NETWORKS, revnet_tensorflow
from reproduce.errors import UserError
from tests.unit.models.test_released import write_bundle

BLOCKS = (1, 2, 1, 1)


def with_statistics(net: Trunk) -> Trunk:
    """The network in evaluation mode, its norms with other numbers than those they start with."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            for value in (module.weight.data, module.bias.data, module.running_mean):
                value.uniform_(-0.5, 1)
            module.running_var.uniform_(0.5, 2)
    return net.eval()


def as_amdim(net: Trunk) -> dict[str, Any]:
    """With the norms that its code builds and never uses, the heads of training and its own classifiers."""
    number = {"stem.0": "0.conv", "stem.2": "1.conv", "norm": "9.bn"}
    tensors: dict[str, Tensor] = {}
    for name, value in net.state_dict().items():
        parts = name.split(".")
        if parts[0] == "stages":
            layer = (2, 3, 4, 6, 7, 8)[int(parts[1])]
            block = [] if layer == 8 else ["layer_list", parts[2]]
            theirs = ".".join(["layer_list", str(layer), *block, *parts[3:]])
            tensors[theirs.replace("conv1.weight", "bn1.bn.weight")] = torch.ones(len(value))
        else:
            prefix, rest = name.rsplit(".", 1)
            theirs = f"layer_list.{number[prefix]}.{rest}"
        tensors[theirs] = value
    tensors["layer_list.5.bn.weight"] = tensors["rkhs_block_5.conv1.weight"] = torch.ones(4)
    model = {f"encoder.module.{name}": value for name, value in tensors.items()}
    classifier = {"evaluator.block_glb_lin.block_forward.2.weight": torch.ones(10, net.num_features)}
    hyperparams = {"ndf": 4, "n_rkhs": 32, "tclip": 20.0, "encoder_size": 128, "use_bn": False}
    return {"model": model | classifier, "hyperparams": hyperparams, "cursor": {"info_epoch": 150, "info_step": 1}}


def as_cmc(net: Trunk) -> dict[str, Any]:
    tensors = {f"encoder.module.{name}": value for name, value in net.state_dict().items()}
    heads = {
        f"encoder.module.{each}.fc.weight": torch.ones(128, net.num_features // 2) for each in ("l_to_ab", "ab_to_l")
    }
    return {"model": tensors | heads, "contrast": {"memory_l": torch.ones(5, 128)}, "epoch": 240}


def as_torchvision(net: Trunk) -> dict[str, Any]:
    return net.state_dict()


PUBLISHED: dict[str, tuple[Callable[[], Trunk], Callable[[Trunk], dict[str, Any]], int]] = {
    "amdim": (lambda: AmdimEncoder(4, 32, 2), as_amdim, 128),
    "cmc": (lambda: CmcPair(0.125, BLOCKS), as_cmc, 64),
    "efficientnet_b7": (EfficientNetB7, as_torchvision, 64),
}


@pytest.mark.parametrize(
    ("layout", "named"),
    [("amdim", True), ("amdim", False), ("cmc", True), ("cmc", False), ("efficientnet_b7", False)],  # the last is large
)
def test_features_equal_the_publishers_network(layout: str, named: bool, tmp_path: Path) -> None:
    build, laid_out, size_px = PUBLISHED[layout]
    net = with_statistics(build())
    path = tmp_path / "weights.pth"
    torch.save(laid_out(net), path)
    loaded = load_trunk(path, layout if named else None)
    images = torch.rand(2, 3, size_px, size_px)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), net(images))
    assert (type(loaded), loaded.num_features, loaded.training) == (type(net), net.num_features, False)
    assert load_projection_head(path, layout if named else None) is None


def test_a_pair_with_the_stem_of_small_images_loads(tmp_path: Path) -> None:
    pair = with_statistics(CmcPair(0.125, BLOCKS, "3x3"))
    torch.save(as_cmc(pair), tmp_path / "weights.pth")
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(load_trunk(tmp_path / "weights.pth")(images), pair(images))


def test_a_missing_a_further_and_a_broken_tensor_raise(tmp_path: Path) -> None:
    content = as_amdim(with_statistics(AmdimEncoder(4, 32, 2)))
    path, name = tmp_path / "w.pth", "encoder.module.layer_list.6.layer_list.1.conv2.weight"

    def saved(change: Callable[[dict[str, Tensor]], Any]) -> Path:
        model = dict(content["model"])
        change(model)
        torch.save(content | {"model": model}, path)
        return path

    with pytest.raises(UserError, match=r"matches \d+ of the trunk's \d+ tensors; .*: stages\.3\.1\.conv2\.weight$"):
        load_trunk(saved(lambda model: model.pop(name)), "amdim")
    deeper = name.replace("6.layer_list.1", "6.layer_list.2")
    with pytest.raises(UserError, match=r"is not a network of layout amdim; it has 1 unexpected tensors: stages\.3\.2"):
        load_trunk(saved(lambda model: model.update({deeper: model[name]})), "amdim")
    with pytest.raises(UserError, match=r"NaN or infinite numbers in 1 of"):
        load_trunk(saved(lambda model: model.update({name: model[name] * torch.inf})), "amdim")


class TestRevnet:
    def variables(self, net: Trunk) -> dict[str, np.ndarray]:
        """The tensors as TensorFlow's `tf.layers` numbers them, in the order in which its authors' code builds them."""
        tensors = {name: value.numpy() for name, value in net.state_dict().items()}
        branches = [f"stages.{stage}.{block}.branch" for stage, n in enumerate((3, 4, 6, 3)) for block in range(n)]
        convolutions = ["stem", *(f"{branch}.{layer}" for branch in branches for layer in (2, 5, 8))]
        norms = [*(f"{branch}.{layer}" for branch in branches for layer in (0, 3, 6)), "norm"]
        # The layer of the pretext task: four rotations.
        found = {"conv2d_49/kernel": np.ones((1, 1, net.num_features, 4), "f4"), "conv2d_49/bias": np.ones(4, "f4")}
        for number, name in enumerate(convolutions):
            found[f"conv2d_{number}/kernel".replace("_0/", "/")] = tensors[f"{name}.weight"].transpose(2, 3, 1, 0)
        for number, name in enumerate(norms):
            for theirs, ours in (
                *(("gamma", "weight"), ("beta", "bias")),
                *(("moving_mean", "running_mean"), ("moving_variance", "running_var")),
            ):
                found[f"batch_normalization_{number}/{theirs}".replace("_0/", "/")] = tensors[f"{name}.{ours}"]
        return found

    def module(self, path: Path, variables: dict[str, np.ndarray]) -> Path:
        """A module as TensorFlow Hub packs it: a `.tar.gz` whose variables are a tensor bundle."""
        write_bundle(path.with_suffix(".zip"), variables)
        with zipfile.ZipFile(path.with_suffix(".zip")) as archive, tarfile.open(path, "w:gz") as module:
            for name in archive.namelist():
                if "model.ckpt" in name:
                    info = tarfile.TarInfo(name.replace("ResNet50_1x/model.ckpt-225206", "./variables/variables"))
                    info.size = archive.getinfo(name).file_size
                    module.addfile(info, io.BytesIO(archive.read(name)))
            module.addfile(tarfile.TarInfo("./saved_model.pb"), io.BytesIO())
        return path

    @pytest.mark.parametrize("prefix", ["", "module/"], ids=["module", "training"])
    @pytest.mark.parametrize("layout", [None, "revnet_tensorflow"])
    def test_features_equal_the_publishers_network(self, layout: str | None, prefix: str, tmp_path: Path) -> None:
        net = with_statistics(RevNet(0.0625))
        variables = {prefix + name: value for name, value in self.variables(net).items()}
        path = self.module(tmp_path / "module.tar.gz", variables)
        loaded = load_trunk(path, layout)
        images = torch.rand(2, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(loaded(images), net(images))

    def test_a_damaged_module_raises_user_error(self, tmp_path: Path) -> None:
        path = self.module(tmp_path / "module.tar.gz", self.variables(RevNet(0.0625)))
        path.write_bytes(path.read_bytes()[:-2000])
        with pytest.raises(UserError, match=r"module\.tar\.gz (is not an intact archive|is damaged)"):
            load_trunk(path)

    def test_numbers_are_those_of_the_official_code_at_full_size(self) -> None:
        """Shapes of the first and last kernels that `tf.layers` makes there: 1024 channels come from the stem."""
        public = {"conv2d": (7, 7, 3, 1024), "conv2d_1": (1, 1, 512, 128), "conv2d_48": (1, 1, 1024, 4096)}
        meta = {f"{name}/kernel": torch.empty(shape, device="meta") for name, shape in public.items()}
        shapes = {name: tuple(value.shape) for name, value in revnet_tensorflow(meta).items()}
        with torch.device("meta"):
            own = {name: tuple(value.shape) for name, value in RevNet(4).state_dict().items()}
        names = ("stem.weight", "stages.0.0.branch.2.weight", "stages.3.2.branch.8.weight")
        assert shapes == {name: own[name] for name in names}


def test_every_entry_has_a_layout_and_those_of_other_networks_have_one_of_theirs() -> None:
    layouts = {entry.layout for entry in entries.load_entries().values()}
    assert layouts <= LAYOUTS.keys() | OTHER_NETWORKS.keys()
    assert layouts >= OTHER_NETWORKS.keys()
