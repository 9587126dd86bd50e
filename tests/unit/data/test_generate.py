"""The generated sets: complete, the same from the same seed, in the layouts of the real ones."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from reproduce.config import Dataset
from reproduce.data import generate
from reproduce.data.pictures import read_folders, read_image
from reproduce.data.voc import CLASSES, VocObject, read_objects, read_split
from reproduce.errors import UserError

VOC = Dataset("voc07", "generated", "voc", "VOCdevkit/VOC2007", "trainval", "test")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few pictures of each class instead of hundreds."""
    sets = tuple(replace(item, num_train=2, num_val=1) for item in generate.CLASS_SETS)
    monkeypatch.setattr(generate, "CLASS_SETS", sets)
    monkeypatch.setattr(generate, "VOC_SPLITS", {"trainval": 12, "test": 6})


@pytest.fixture
def root(small: None, tmp_path: Path) -> Path:
    generate.generate(tmp_path / "a")
    return tmp_path / "a"


def test_the_same_seed_makes_the_same_files_and_another_seed_others(root: Path, tmp_path: Path) -> None:
    hashes = json.loads((root / "manifest.json").read_text())["sha256"]
    generate.generate(tmp_path / "b")
    generate.generate(tmp_path / "c", seed=1)
    assert json.loads((tmp_path / "b" / "manifest.json").read_text())["sha256"] == hashes
    assert not set(hashes.values()) & set(json.loads((tmp_path / "c" / "manifest.json").read_text())["sha256"].values())


def test_a_finished_set_is_left_alone(root: Path) -> None:
    made = (root / "manifest.json").stat().st_mtime_ns
    generate.generate(root)
    assert (root / "manifest.json").stat().st_mtime_ns == made


def test_class_folders(root: Path) -> None:
    for item in generate.CLASS_SETS:
        train, val = (read_folders(root / item.name / split) for split in ("train", "val"))
        assert train.classes == val.classes == sorted(item.textures)
        assert (len(train), len(val)) == (2 * len(item.textures), len(item.textures))
        assert read_image(train.paths[0]).size == (item.size_px, item.size_px)


def test_voc_and_coco_say_the_same(root: Path) -> None:
    voc = root / "VOCdevkit" / "VOC2007"
    pictures, labels = read_split(voc, VOC, "trainval")
    assert len(pictures) == 12
    assert {len(row) for row in labels} == {20}
    coco = json.loads((root / "coco" / "annotations" / "instances_train2017.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == [Path(path).name for path in pictures.paths]
    for image in coco["images"]:
        boxes = [box for box in coco["annotations"] if box["image_id"] == image["id"]]
        objects = read_objects(voc / "Annotations" / image["file_name"].replace("jpg", "xml"))
        assert objects == [VocObject(CLASSES[box["category_id"] - 1], bool(box["iscrowd"])) for box in boxes]
        picture = read_image(str(root / "coco" / "train2017" / image["file_name"]))
        assert picture.size == (image["width"], image["height"])
        for left, top, width, height in (box["bbox"] for box in boxes):
            assert left >= 0
            assert top >= 0
            assert left + width <= image["width"]
            assert top + height <= image["height"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("<annotation><object>", "not valid XML"), ("<a><object><name>dragon</name></object></a>", "'dragon'")],
)
def test_a_broken_annotation_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "000001.xml").write_text(text)
    with pytest.raises(UserError, match=f"000001.xml .*{message}"):
        read_objects(tmp_path / "000001.xml")


def test_a_class_that_is_only_difficult_is_neither_present_nor_absent(tmp_path: Path) -> None:
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "ImageSets" / "Main" / "test.txt").write_text("1\n")
    objects = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult></object>"
        for name, difficult in (("cat", 1), ("dog", 1), ("dog", 0))
    )
    (tmp_path / "Annotations" / "1.xml").write_text(f"<annotation>{objects}</annotation>")
    _, (row,) = read_split(tmp_path, VOC, "test")
    assert (row[CLASSES.index("cat")], row[CLASSES.index("dog")], row[CLASSES.index("cow")]) == (0, 1, -1)
