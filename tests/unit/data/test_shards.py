"""WebDataset shards: the same content as the folders, read sequentially."""

import gzip
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from webdataset.tariterators import group_by_keys, tar_file_expander

from reproduce.__main__ import main
from reproduce.config.schema import Dataset
from reproduce.data.datasets import manifest, shards
from reproduce.data.datasets.image_file import UnreadableImage
from reproduce.data.datasets.image_folder import ImageList, read_image_folder, read_train_and_val
from reproduce.data.datasets.shards import ShardOrder
from reproduce.data.datasets.voc import VOC_CLASSES, read_voc_labels
from reproduce.data.pipeline.sampler import StepSampler, epoch_order_for
from reproduce.data.prepare import verify, write_shards
from reproduce.errors import UserError
from reproduce.files import read_json, write_json
from tests.runs import REPO_ROOT, tiny_pictures

FOLDERS = Dataset("imagenet", "tiny", "folders", "imagenet", "train", "val")
SHARDED = replace(FOLDERS, layout="shards")
VOC = Dataset("voc07", "tiny", "voc", "VOCdevkit/VOC2007", "trainval", "test")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    tiny_pictures(root, num_train=4)
    return root


@pytest.fixture(scope="module")
def packed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of about three images each."""
    root = tmp_path_factory.mktemp("packed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write_shards, "SHARD_BYTES", 5_000)
        for dataset in (FOLDERS, VOC):
            write_shards.write_shards(data, root, dataset, lambda _: None)
    return root


@pytest.fixture
def copied(packed: Path, tmp_path: Path) -> Path:
    """Copy the shards, so that a test may damage them."""
    shutil.copytree(packed, tmp_path / "copy")
    return tmp_path / "copy"


def samples(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Read them with the webdataset library."""
    for path in files:
        with open(path, "rb") as stream:
            yield from group_by_keys(tar_file_expander([{"url": str(path), "stream": stream}]))


def content(images: ImageList) -> list[tuple[int, bytes]]:
    return [(label, images.read_bytes(index)) for index, label in enumerate(images.labels)]


def test_shards_contain_the_same_images_labels_and_indices(data: Path, packed: Path) -> None:
    folders = read_train_and_val(data / "imagenet", FOLDERS)
    sharded = read_train_and_val(packed / "imagenet", SHARDED)
    for before, after in zip(folders, sharded, strict=True):
        assert content(after) == content(before)
        assert after.classes == before.classes
        assert after.sha256() == before.sha256()
    assert len(list((packed / "imagenet" / "train").glob("*.tar"))) > 5


def test_corrected_annotations_are_packed_again(data: Path, copied: Path, tmp_path: Path) -> None:
    corrected = Path(shutil.copytree(data / "VOCdevkit", tmp_path / "corrected/VOCdevkit")).parent
    said: list[str] = []
    write_shards.write_shards(corrected, copied, VOC, said.append)
    assert all("already" in each for each in said)
    images, labels = read_voc_labels(corrected / VOC.root, VOC, "test")
    absent = next(name for name, label in zip(VOC_CLASSES, labels[0], strict=True) if label < 0)
    path = corrected / VOC.root / "Annotations" / f"{Path(images.paths[0]).stem}.xml"
    path.write_text(re.sub(r"<name>\w+</name>", f"<name>{absent}</name>", path.read_text()))
    write_shards.write_shards(corrected, copied, VOC, said.append)
    _, packed_labels = read_voc_labels(copied / VOC.root, replace(VOC, layout="shards"), "test")
    _, expected = read_voc_labels(corrected / VOC.root, VOC, "test")
    assert np.array_equal(packed_labels, expected) and not np.array_equal(expected, labels)


def test_a_shard_that_an_interrupted_command_left_is_kept_only_with_its_annotations(data: Path, tmp_path: Path) -> None:
    images = read_image_folder(data / "imagenet" / "val")
    states = manifest.file_states(images.paths)

    def fingerprint(annotation: bytes, states: list[manifest.FileState] = states) -> str:
        split = write_shards.SplitToPack(images, images.paths, images.labels, lambda _: {"xml": annotation})
        return str(write_shards._write_shard(tmp_path, 0, [0, 1], split, states)["fingerprint"])

    assert fingerprint(b"cat") == fingerprint(b"cat") != fingerprint(b"dog")
    assert fingerprint(b"cat") != fingerprint(b"cat", [state._replace(modified_ns=7) for state in states])


@pytest.mark.parametrize("dataset", [FOLDERS, VOC])
def test_an_image_replaced_by_one_of_the_same_size_is_packed_again(
    data: Path, copied: Path, tmp_path: Path, dataset: Dataset
) -> None:
    changed = Path(shutil.copytree(data, tmp_path / "changed"))
    root = changed / dataset.root
    path = min(root.glob("val/*/*.jpg" if dataset is FOLDERS else "JPEGImages/*.jpg"))
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    said: list[str] = []
    write_shards.write_shards(changed, copied, dataset, said.append)
    assert all("already" in each for each in said)
    path.write_bytes(raw)
    write_shards.write_shards(changed, copied, dataset, said.append)
    assert bytes(raw) in [each["jpg"] for each in samples((copied / dataset.root).glob("*/*.tar"))]


def test_shards_of_earlier_versions_are_kept(data: Path, copied: Path) -> None:
    """They do not say which content they have."""
    for path in (copied / "imagenet").glob(f"*/{shards.CONTENTS_FILE}"):
        contents = read_json(path)
        del contents["content_sha256"]
        write_json(path, contents)
    said: list[str] = []
    write_shards.write_shards(data, copied, FOLDERS, said.append)
    assert len(said) == 2 and all("already" in each for each in said)


def test_voc_shards_keep_labels_and_annotations(data: Path, packed: Path) -> None:
    for split in (VOC.train, VOC.val):
        before, labels = read_voc_labels(data / VOC.root, VOC, split)
        after, kept = read_voc_labels(packed / VOC.root, replace(VOC, layout="shards"), split)
        assert kept == labels
        assert content(after) == content(before)
    for sample in samples((packed / VOC.root / "test").glob("*.tar")):
        name = Path(read_voc_labels(data / VOC.root, VOC, "test")[0].paths[int(sample["__key__"])]).stem
        assert sample["xml"] == (data / VOC.root / "Annotations" / f"{name}.xml").read_bytes()


def test_webdataset_reads_the_shards(data: Path, packed: Path) -> None:
    listed = list(samples((packed / "imagenet" / "train").glob("*.tar")))
    found = {int(sample["__key__"]): (int(sample["cls"]), sample["jpg"]) for sample in listed}
    assert len(listed) == len(found)
    assert [found[index] for index in range(len(found))] == content(read_image_folder(data / "imagenet" / "train"))


def test_packing_is_deterministic_and_a_second_run_writes_nothing(
    data: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_shards, "SHARD_BYTES", 5_000)
    write_shards.write_shards(data, tmp_path, FOLDERS, lambda _: None)
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.suffix != ".lock"
            and path.is_file() and not path.name.startswith(".")}  # fmt: skip
    assert made == {name: (packed / name).read_bytes() for name in made}
    monkeypatch.setattr(write_shards, "_write_shard", None)
    said: list[str] = []
    write_shards.write_shards(data, tmp_path, FOLDERS, said.append)
    assert said == [f"imagenet/{split}: {n} images are in {tmp_path}/imagenet/{split} already"
                    for split, n in (("train", 40), ("val", 20))]  # fmt: skip


def test_killed_writer_resumes(data: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed with SIGKILL in the middle of the seventh shard; the shards before it are not written again."""
    script = """if True:
        import os, signal, sys
        from pathlib import Path
        from reproduce.config.schema import Dataset
        from reproduce.data.prepare import write_shards
        write_shards.SHARD_BYTES, write_shards.THREADS, write = 5_000, 1, write_shards.write_atomic
        def dies(path, data):
            if path.name == "00006.tar":
                (path.parent / ".00006.tar.half").write_bytes(data[:100])
                os.kill(os.getpid(), signal.SIGKILL)
            write(path, data)
        write_shards.write_atomic = dies
        write_shards.write_shards(Path(sys.argv[1]), Path(sys.argv[2]), Dataset(*sys.argv[3:]))
    """
    arguments = [str(data), str(tmp_path), *filter(None, vars(FOLDERS).values())]
    done = subprocess.run([sys.executable, "-c", script, *arguments], cwd=REPO_ROOT, check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    folder = tmp_path / "imagenet" / "train"
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
    assert sorted(before) == [f"{number:05d}.tar" for number in range(6)]
    with pytest.raises(UserError, match=r"contains no complete shards \(shards\.json is missing\)"):
        read_train_and_val(tmp_path / "imagenet", SHARDED)
    monkeypatch.setattr(write_shards, "SHARD_BYTES", 5_000)
    write_shards.write_shards(data, tmp_path, FOLDERS, lambda _: None)
    assert {name: (folder / name).stat().st_mtime_ns for name in before} == before
    names = sorted(path.name for path in (packed / "imagenet" / "train").iterdir())
    assert sorted(path.name for path in folder.iterdir()) == names
    assert all((folder / name).read_bytes() == (packed / "imagenet" / "train" / name).read_bytes() for name in names)


def test_a_shard_stays_open_while_it_is_read(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads may open one at once; the cache of open files then keeps only one of both."""
    images = read_train_and_val(packed / "imagenet", SHARDED)[0]
    expected = content(images)
    monkeypatch.setattr(shards, "_open_file", shards._File)
    assert content(images) == expected


def test_truncated_shard_is_a_user_error(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tar = min((copied / "imagenet" / "train").glob("*.tar"))
    size = tar.stat().st_size
    read_train_and_val(copied / "imagenet", SHARDED)[0].read_bytes(0)
    os.truncate(tar, size // 2)
    sentence = f"shard {tar} has {size // 2:,} bytes instead of {size:,}: copy it again, or recreate it with data-shard"
    with pytest.raises(UserError) as error:
        read_train_and_val(copied / "imagenet", SHARDED)
    assert str(error.value) == sentence
    lines: list[str] = []
    assert not verify.verify_dataset(copied, SHARDED, None, "sample", lines.append)
    assert f"  missing: {sentence}" in lines
    tar.unlink()
    with pytest.raises(UserError, match=f"shard {tar} is missing: copy it again"):
        read_train_and_val(copied / "imagenet", SHARDED)


def test_shard_truncated_after_opening_names_the_image(copied: Path) -> None:
    images = read_train_and_val(copied / "imagenet", SHARDED)[0]
    assert images.shard_index
    last = int(np.flatnonzero(images.shard_index.shard == 0)[-1])
    os.truncate(images.shard_index.paths[0], 600)
    with pytest.raises(UnreadableImage, match=r"train/.*\.jpg \(shard .*/00000\.tar is truncated\)"):
        images.read_bytes(last)


def test_verification_detects_changed_bytes(copied: Path) -> None:
    assert verify.verify_dataset(copied, SHARDED, None, "all", lambda _: None)
    tar = copied / "imagenet" / "val" / "00001.tar"
    changed = bytearray(tar.read_bytes())
    changed[700] ^= 1
    tar.write_bytes(changed)
    lines: list[str] = []
    assert not verify.verify_dataset(copied, SHARDED, None, "all", lines.append)
    assert next(line for line in lines if "broken" in line).endswith("(1): 00001.tar")


def test_damaged_index_is_a_user_error(copied: Path) -> None:
    index = copied / "imagenet" / "train" / shards.INDEX_FILE
    whole = index.read_bytes()
    index.write_bytes(whole[:50])
    with pytest.raises(UserError, match=r"index\.tsv\.gz is damaged \(.*\): copy it again"):
        read_train_and_val(copied / "imagenet", SHARDED)
    index.write_bytes(gzip.compress(b"\n".join(gzip.decompress(whole).splitlines()[1:])))
    with pytest.raises(UserError, match="do not match: copy both again"):
        read_train_and_val(copied / "imagenet", SHARDED)


def test_changing_or_unreadable_image_stops_packing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "_file_state", lambda _: manifest.FileState(7, 0, 0))
    with pytest.raises(UserError, match="changed while it was packed: run data-shard again"):
        write_shards.write_shards(data, tmp_path, FOLDERS, lambda _: None)
    monkeypatch.undo()
    mine = tmp_path / "mine"
    shutil.copytree(data / "imagenet", mine / "imagenet")
    victim = min((mine / "imagenet" / "train").rglob("*.jpg"))
    victim.unlink()
    victim.symlink_to(tmp_path / "nowhere.jpg")
    with pytest.raises(UserError, match=f"can't read image {victim} .*: data-verify lists all unreadable images"):
        write_shards.write_shards(mine, tmp_path / "out", FOLDERS, lambda _: None)


@pytest.mark.parametrize(("batch_size", "num_ranks"), [(64, 2), (96, 3), (10, 2), (7, 7)])
def test_ranks_split_the_epoch_of_one_process(batch_size: int, num_ranks: int) -> None:
    of = places(1000, 30)
    order = ShardOrder(of, batch_size)
    alone = list(StepSampler(1000, batch_size, 3, seed=5, order=order))
    ranks = [
        list(StepSampler(1000, batch_size, 3, seed=5, rank=rank, world_size=num_ranks, order=order))
        for rank in range(num_ranks)
    ]
    assert [[at for share in shares for at in share] for shares in zip(*ranks, strict=True)] == alone
    per_epoch = 1000 // batch_size
    epochs = [[at for step in alone[e * per_epoch : (e + 1) * per_epoch] for _, at in step] for e in range(3)]
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch) == per_epoch * batch_size
    assert epochs[0] != epochs[1]
    if batch_size == 64:
        read = [list(dict.fromkeys(of.shard[epoch].tolist())) for epoch in epochs]
        assert read[0] != read[1] != read[2]  # the shards themselves, not only the images in them
    assert (
        list(StepSampler(1000, batch_size, 3, seed=5, first_step=per_epoch + 3, order=order)) == alone[per_epoch + 3 :]
    )
    assert next(iter(StepSampler(1000, batch_size, 3, seed=6, order=order))) != alone[0]
    assert sorted(order(1000, 5, 0).tolist()) == list(range(1000))


def places(num_images: int, num_shards: int) -> shards.ShardIndex:
    shard = np.random.default_rng(0).permutation(np.arange(num_images) % num_shards)
    offset = np.arange(num_images) * 1024
    return shards.ShardIndex([str(n) for n in range(num_shards)], shard, offset, np.ones_like(shard))


def test_rank_reads_few_shards_sequentially() -> None:
    """51,200 images in 512 shards, 4 ranks of 64 a step: two streams each, so a few shards in any window."""
    of = places(51_200, 512)
    order = ShardOrder(of, 256)(51_200, 0, 0)
    mine = order.reshape(-1, 4, 64)[:, 1]
    opened: set[int] = set()
    for start in range(0, len(mine) - 4, 5):
        here = set(of.shard[mine[start : start + 5].reshape(-1)].tolist())
        opened |= here
        assert len(here) <= 2 * (12 + 12)  # a window of 1,024 is some eleven shards of 100; one may end here
    assert len(opened) <= 2 * 66  # a quarter of all, and the ends of streams
    batch = of.shard[order[:256]]
    assert len(set(batch.tolist())) > 40  # yet a whole step's images come from all over the set


def test_reading_order_is_sequential(packed: Path) -> None:
    images = read_train_and_val(packed / "imagenet", SHARDED)[0]
    assert images.shard_index
    order = images.reading_order()
    assert sorted(order.tolist()) == list(range(40))
    met = [(images.shard_index.shard[index], images.shard_index.offset[index]) for index in order]
    assert met == sorted(met)
    few = images.subset([7, 3])
    assert content(few) == [content(images)[7], content(images)[3]]
    assert epoch_order_for(few, 1)(2, 0, 0).tolist() in ([0, 1], [1, 0])


def test_data_shard_command(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["data-shard", "--data", str(data), "--data-config", "generated", "--shards", str(tmp_path)]
    assert main([*asked, "imagenet", "voc07"]) == 0
    assert f"imagenet/train: 40 images, 0 MB, into 1 shards in {tmp_path}/imagenet/train" in capsys.readouterr().out
    for wrong, said in (
        (["--data-config", "standard", "coco17"], "coco17 can't be packed: detectors read its folders"),
        (["--data-config", "shards", "imagenet"], "imagenet can't be packed: it is packed already"),
        (["--data", "/nowhere", "imagenet"], "DATA folder /nowhere does not exist"),
    ):
        with pytest.raises(UserError, match=said):
            main([*asked, *wrong])
