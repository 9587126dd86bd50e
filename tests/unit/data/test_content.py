"""The hash of a split's content: equal for copies, another for any other picture, cheap as long as no file changes."""

import errno
import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from reproduce.config.schema import Dataset
from reproduce.data.datasets import content
from reproduce.data.datasets.content import split_content_sha256, split_hashes, split_states_sha256
from reproduce.data.datasets.shards import INDEX_FILE
from reproduce.data.prepare import verify, write_shards
from reproduce.errors import RetryableError

IMAGENET = Dataset("imagenet", "tiny", "folders", "imagenet", "train", "val")
SHARDS = Dataset("imagenet", "tiny", "shards", "imagenet", "train", "val")
VOC = Dataset("voc07", "tiny", "voc", "VOCdevkit/VOC2007", "trainval", "test")
COCO = Dataset("coco17", "tiny", "coco", "coco", "train2017", "val2017")
FIRST = {
    "folders": "imagenet/val/*/*.jpg",
    "voc": "VOCdevkit/VOC2007/JPEGImages/*.jpg",
    "coco": "coco/val2017/*.jpg",
}


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of this moment are cached, too."""
    monkeypatch.setattr(content, "SETTLED_SECONDS", -3600)


def hashes(data: Path, dataset: Dataset) -> set[str]:
    return {split_content_sha256(data, dataset, split, data.parent / "cache") for split in (dataset.train, dataset.val)}


def flip(path: Path) -> None:
    """Change a byte, and nothing that a listing of the folder shows."""
    before = path.stat()
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("dataset", [IMAGENET, VOC, COCO])
def test_copies_are_equal_whatever_their_dates(own_data: Path, tmp_path: Path, dataset: Dataset) -> None:
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(own_data, copy, copy_function=shutil.copyfile)
    found = hashes(own_data, dataset)
    assert hashes(copy, dataset) == found and len(found) == 2


@pytest.mark.parametrize("dataset", [IMAGENET, VOC, COCO])
@pytest.mark.parametrize(
    "change",
    [
        flip,
        lambda path: path.unlink(),
        lambda path: path.rename(path.with_name("other.jpg")),
        lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    ],
    ids=["a byte", "removed", "renamed", "longer"],
)
def test_any_other_picture_gives_another_hash(
    own_data: Path, dataset: Dataset, change: Callable[[Path], object]
) -> None:
    before = hashes(own_data, dataset)
    listed = sorted(own_data.glob(FIRST[dataset.layout]))
    change(listed[0])
    assert len(hashes(own_data, dataset) - before) == 1


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        (VOC, "VOCdevkit/VOC2007/Annotations/*.xml"),
        (COCO, "coco/annotations/instances_val2017.json"),
        (VOC, "VOCdevkit/VOC2007/ImageSets/Main/test.txt"),
    ],
)
def test_annotations_count(own_data: Path, dataset: Dataset, name: str) -> None:
    before = hashes(own_data, dataset)
    flip(min(own_data.glob(name)))
    assert len(hashes(own_data, dataset) - before) == 1


def test_pictures_of_a_second_year_count(own_data: Path) -> None:
    both = Dataset("voc0712", "tiny", "voc", VOC.root, "trainval", "test", "VOCdevkit/VOC2012")
    shutil.copytree(own_data / VOC.root, own_data / "VOCdevkit" / "VOC2012")
    before = hashes(own_data, both)
    assert not before & {split_content_sha256(own_data, VOC, "trainval")}
    flip(min((own_data / "VOCdevkit/VOC2012/Annotations").iterdir()))
    assert len(hashes(own_data, both) - before) == 1


def test_labels_of_shards_count(own_data: Path, tmp_path: Path) -> None:
    write_shards.write_shards(own_data, tmp_path / "shards", IMAGENET, lambda _: None)
    before = hashes(tmp_path / "shards", SHARDS)
    index = tmp_path / "shards" / "imagenet" / "val" / INDEX_FILE
    text = gzip.decompress(index.read_bytes()).decode()
    number, offset, size, label, name = text.split("\n", 1)[0].split("\t")
    changed = text.replace("\t".join((number, offset, size, label, name)), "\t".join((number, offset, size, "7", name)))
    index.write_bytes(gzip.compress(changed.encode()))
    assert len(hashes(tmp_path / "shards", SHARDS) - before) == 1


def test_unchanged_files_are_read_once(own_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = hashes(own_data, IMAGENET)
    monkeypatch.setattr(content, "_content_sha256", lambda *_: pytest.fail("read again"))
    assert hashes(own_data, IMAGENET) == before


def test_computed_and_cached_hashes_are_of_the_same_look_at_the_files(own_data: Path, tmp_path: Path) -> None:
    computed, cached = (split_hashes(own_data, IMAGENET, "val", tmp_path / "cache") for _ in range(2))
    assert list((tmp_path / "cache").glob("*.json"))
    assert computed == cached
    assert computed.states == split_states_sha256(own_data, IMAGENET, "val")


def test_files_that_change_right_now_are_not_cached(own_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system's clock may be too coarse to tell the next change from this one."""
    monkeypatch.setattr(content, "SETTLED_SECONDS", 3600)
    hashes(own_data, IMAGENET)
    assert not list((own_data.parent / "cache").glob("*.json"))


@pytest.mark.parametrize("damage", ["", "[]", "{}", "null", '{"state_sha256": 1}'])
def test_a_damaged_cache_is_ignored(own_data: Path, damage: str) -> None:
    before = hashes(own_data, IMAGENET)
    cached = list((own_data.parent / "cache").glob("*.json"))
    assert len(cached) == 2
    for path in cached:
        path.write_text(damage)
    assert hashes(own_data, IMAGENET) == before


def test_a_large_split_is_sampled_and_every_size_counts(own_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "WHOLE_IMAGES", 0)
    monkeypatch.setattr(content, "SAMPLE_IMAGES", 3)
    read: list[str] = []
    digest = content._digest

    def count(reader: Callable[[str], bytes], name: str) -> str:
        read.append(name)
        return digest(reader, name)

    monkeypatch.setattr(content, "_digest", count)
    before = split_content_sha256(own_data, IMAGENET, "val")
    sampled = set(read)
    assert len(sampled) == len(read) == 3
    root = own_data / "imagenet"
    names = [path.relative_to(root).as_posix() for path in sorted((root / "val").rglob("*.jpg"))]
    unsampled, known = (root / next(n for n in names if (n in sampled) is wanted) for wanted in (False, True))
    flip(unsampled)
    assert split_content_sha256(own_data, IMAGENET, "val") == before  # the limit, as documented
    flip(known)
    assert split_content_sha256(own_data, IMAGENET, "val") != before
    flip(known)
    assert split_content_sha256(own_data, IMAGENET, "val") == before
    unsampled.write_bytes(unsampled.read_bytes() + b"\0")
    assert split_content_sha256(own_data, IMAGENET, "val") != before


@pytest.mark.parametrize("packed", [False, True])
def test_a_failing_disk_gives_no_hash_and_caches_none(
    own_data: Path, tmp_path: Path, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hash without the picture would be that of other images, and would set checkpoints aside."""
    if packed:
        write_shards.write_shards(own_data, tmp_path / "shards", IMAGENET, lambda _: None)
    data, dataset = (tmp_path / "shards", SHARDS) if packed else (own_data, IMAGENET)

    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os if packed else Path, "pread" if packed else "read_bytes", fail)
        with pytest.raises(RetryableError, match=r"can't read (train|val)/.*\.jpg: Input/output error"):
            hashes(data, dataset)
    assert not list((data.parent / "cache").glob("*.json"))
    if packed:
        monkeypatch.setattr(os, "pread", lambda *_: b"short")
        with pytest.raises(RetryableError, match=r"shard .*\.tar is truncated"):
            hashes(data, dataset)


def test_sizes_that_cannot_be_looked_up_give_no_hash(own_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, look_up = str(min(own_data.glob(FIRST["folders"]))), os.stat

    def stat(path: str, **options: bool) -> os.stat_result:
        if path == first:
            raise OSError(errno.ESTALE, "Stale file handle", path)
        return look_up(path, **options)

    monkeypatch.setattr(os, "stat", stat)
    with pytest.raises(RetryableError, match=f"can't read {first}: Stale file handle"):
        hashes(own_data, IMAGENET)


def test_a_link_to_nowhere_counts_as_missing(own_data: Path) -> None:
    first = min(own_data.glob(FIRST["folders"]))
    before = hashes(own_data, IMAGENET)
    first.unlink()
    first.symlink_to(own_data / "nowhere.jpg")
    assert len(hashes(own_data, IMAGENET) - before) == 1


def test_verification_notices_a_replaced_picture_of_the_same_size(
    own_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify.verify_dataset(own_data, IMAGENET, None, "sample", print)
    written = json.loads((own_data / ".manifests" / "imagenet.json").read_text())
    assert written["splits"]["val"]["content_sha256"] == split_content_sha256(own_data, IMAGENET, "val")
    flip(min(own_data.glob(FIRST["folders"])))
    assert not verify.verify_dataset(own_data, IMAGENET, None, "sample", print)
    assert "broken: splits with other content, but files of the same sizes, since the manifest of" in (
        capsys.readouterr().out
    )
