"""The manifest of a split: independent of where files are stored, different if one is missing or changed."""

import hashlib
import shutil
from pathlib import Path

import pytest

from reproduce.config.schema import Dataset
from reproduce.data.datasets import manifest
from reproduce.data.datasets.image_folder import ImageList, read_image_list
from reproduce.data.prepare import verify, write_shards

IMAGENET = Dataset("imagenet", "tiny", "folders", "imagenet", "train", "val")


@pytest.fixture
def data(data: Path, tmp_path: Path) -> Path:
    """Copy the datasets, so that a test may damage them."""
    shutil.copytree(data, tmp_path / "data")
    return tmp_path / "data"


def quoted(data: Path, split: str = "val", dataset: Dataset = IMAGENET) -> dict[str, object]:
    images = read_image_list(data / "imagenet", dataset, split)
    return manifest.split_manifest(data, dataset, split, images)


def test_manifest_hashes_names_and_sizes(data: Path) -> None:
    files = sorted((data / "imagenet" / "val").rglob("*.jpg"))
    lines = [f"{path.stat().st_size} {path.relative_to(data / 'imagenet')}" for path in files]
    found = quoted(data)
    assert found["sha256"] == hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert (found["images"], found["bytes"]) == (20, sum(path.stat().st_size for path in files))
    assert quoted(data, "train")["sha256"] != found["sha256"]


def test_shards_copies_and_verified_folders_have_the_same_manifest(data: Path, tmp_path: Path) -> None:
    plain = quoted(data)
    write_shards.write_shards(data, tmp_path / "shards", IMAGENET, lambda _: None)
    sharded = Dataset("imagenet", "tiny", "shards", "imagenet", "train", "val")
    assert quoted(tmp_path / "shards", dataset=sharded) == plain
    assert quoted(Path(shutil.copytree(data, tmp_path / "copy"))) == plain
    assert verify.verify_dataset(data, IMAGENET, None, "sample", lambda _: None)
    verified = quoted(data)
    assert len(str(verified.pop("verified"))) == len("2026-11-23")
    assert verified == plain


def test_images_outside_the_root_are_named_relative_to_data(data: Path, tmp_path: Path) -> None:
    """VOC07+12 also trains on images of a second year, outside its root."""
    shutil.copytree(data, tmp_path / "elsewhere")
    beside = Dataset("imagenet", "tiny", "folders", "imagenet/train", "0", "0")
    hashes = set()
    for place in (data, tmp_path / "elsewhere"):
        images = read_image_list(place / "imagenet", IMAGENET, "val")
        hashes.add(manifest.split_manifest(place, beside, "0", images)["sha256"])
    assert len(hashes) == 1


def test_verified_manifest_of_other_images_is_not_used(data: Path) -> None:
    assert verify.verify_dataset(data, IMAGENET, None, "sample", lambda _: None)
    before = quoted(data)
    min((data / "imagenet" / "val").rglob("*.jpg")).unlink()
    after = quoted(data)
    assert after["images"] == 19
    assert "verified" not in after
    assert after["sha256"] != before["sha256"]


def test_a_file_that_changed_its_size_since_is_noticed(data: Path) -> None:
    assert verify.verify_dataset(data, IMAGENET, None, "sample", lambda _: None)
    before = quoted(data)
    assert "verified" in before
    first = min((data / "imagenet" / "val").rglob("*.jpg"))
    first.write_bytes(first.read_bytes() + b"\0")
    after = quoted(data)
    assert "verified" not in after
    assert after["sha256"] != before["sha256"] and after["names_sha256"] == before["names_sha256"]


def test_missing_files_have_no_size(tmp_path: Path) -> None:
    image = ImageList([str(tmp_path / "imagenet" / "val" / "x" / "1.jpg")], [0], ["x"])
    assert manifest.split_manifest(tmp_path, IMAGENET, "val", image)["bytes"] == 0
