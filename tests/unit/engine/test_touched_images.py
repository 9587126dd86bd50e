"""A result says if image files changed while its run read them: the number is then of neither the old nor the new."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from reproduce.data.datasets.image_folder import read_image_list
from reproduce.engine.runs.run import run_context
from reproduce.files import read_json
from tests.runs import evaluation_of_bytes


def first_image(split: Path) -> Path:
    return min(split.glob("*/*.jpg"))


def replaced(split: Path) -> None:
    first_image(split).write_bytes(max(split.glob("*/*.jpg")).read_bytes())


def replaced_and_put_back(split: Path) -> None:
    """As if nothing had been: the same bytes and date, but the file system knows better."""
    path = first_image(split)
    before, dates = path.read_bytes(), path.stat()
    path.write_bytes(max(split.glob("*/*.jpg")).read_bytes())
    path.write_bytes(before)
    os.utime(path, ns=(dates.st_atime_ns, dates.st_mtime_ns))


def deleted(split: Path) -> None:
    first_image(split).unlink()


def added(split: Path) -> None:
    first_image(split).with_name("another.jpg").write_bytes(first_image(split).read_bytes())


def folder_gone(split: Path) -> None:
    split.rename(split.with_name("elsewhere"))


def untouched(split: Path) -> None:
    assert first_image(split).read_bytes()


@pytest.mark.parametrize("change", [replaced, replaced_and_put_back, deleted, added, folder_gone, untouched])
def test_images_that_change_during_a_run_are_named(
    own_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Path], None]
) -> None:
    cfg = evaluation_of_bytes("knn", own_data, tmp_path)
    with run_context(cfg) as run:
        for split in ("train", "val"):
            run.record_split(split, read_image_list(run.dataset_root, run.dataset, split))
        change(run.dataset_root / "val")
        run.finish({"knn20": 50.0})
    expected = None if change is untouched else ["imagenet/val"]
    assert read_json(run.folder / "result.json")["provenance"].get("data_changed") == expected
    assert ("warning: files of imagenet/val changed while knn" in capsys.readouterr().err) == bool(expected)


def test_a_split_may_be_a_folder_in_a_folder(own_data: Path, tmp_path: Path) -> None:
    (own_data / "imagenet" / "images").mkdir()
    for split in ("train", "val"):
        (own_data / "imagenet" / split).rename(own_data / "imagenet" / "images" / split)
    splits = ("data.imagenet.train=images/train", "data.imagenet.val=images/val")
    cfg = evaluation_of_bytes("knn", own_data, tmp_path, *splits)
    with run_context(cfg) as run:
        run.record_split("images/val", read_image_list(run.dataset_root, run.dataset, "images/val"))
        run.finish({"knn20": 50.0})
    assert "data_changed" not in read_json(run.folder / "result.json")["provenance"]
