"""The generated datasets: complete, deterministic, in the layouts of the real ones."""

import json
import shutil
from pathlib import Path

import pytest

from reproduce.config.schema import Dataset
from reproduce.data.datasets.coco import read_coco_split as read_coco
from reproduce.data.datasets.image_file import read_image
from reproduce.data.datasets.image_folder import read_image_folder
from reproduce.data.datasets.voc import VOC_CLASSES, read_voc_objects
from reproduce.data.datasets.voc import read_voc_labels as read_voc
from reproduce.data.prepare import synthetic
from reproduce.errors import UserError

VOC = Dataset("voc07", "generated", "voc", "VOCdevkit/VOC2007", "trainval", "test")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generate a few images per class instead of hundreds."""
    monkeypatch.setitem(
        synthetic.SIZES, "full", synthetic.Sizes((2, 1), 64, voc=(12, 6), voc0712=(12, 6), coco=(30, 10))
    )


@pytest.fixture
def root(small: None, tmp_path: Path) -> Path:
    synthetic.generate(tmp_path / "a")
    return tmp_path / "a"


def test_files_depend_on_the_seed_only(root: Path, tmp_path: Path) -> None:
    hashes = json.loads((root / "manifest.json").read_text())["sha256"]
    synthetic.generate(tmp_path / "b")
    synthetic.generate(tmp_path / "c", seed=1)
    assert json.loads((tmp_path / "b" / "manifest.json").read_text())["sha256"] == hashes
    assert not set(hashes.values()) & set(json.loads((tmp_path / "c" / "manifest.json").read_text())["sha256"].values())


def test_complete_datasets_are_not_generated_again(root: Path) -> None:
    made = (root / "manifest.json").stat().st_mtime_ns
    synthetic.generate(root)
    assert (root / "manifest.json").stat().st_mtime_ns == made


def test_class_folders(root: Path) -> None:
    for item in synthetic.CLASS_SETS:
        train, val = (read_image_folder(root / item.name / split) for split in ("train", "val"))
        assert train.classes == val.classes == sorted(item.textures)
        assert (len(train), len(val)) == (2 * len(item.textures), len(item.textures))
        assert read_image(train.paths[0]).size == (64, 64)


def test_voc_images_have_annotations(root: Path) -> None:
    voc = root / "VOCdevkit" / "VOC2007"
    images, labels = read_voc(voc, VOC, "trainval")
    assert len(images) == 12
    assert {len(row) for row in labels} == {20}
    for path in images.paths:
        assert read_voc_objects(voc / "Annotations" / f"{Path(path).stem}.xml")


def test_coco_is_valid_and_has_objects_of_every_size(root: Path) -> None:
    bad: list[str] = []
    train, val = (read_coco(root / "coco", split, "generated", bad.extend) for split in ("train2017", "val2017"))
    assert not bad
    assert (len(train.images), len(val.images)) == (30, 10)
    assert train.category_names == val.category_names == {1: "stripe", 3: "net"}
    areas = [annotation["area"] for annotation in train.ground_truth["annotations"]]
    assert {(area > 32**2) + (area > 96**2) for area in areas} == {0, 1, 2}
    for image in train.images:
        assert image.read().size == (image.width, image.height)


def test_no_manifest_vouches_for_images_that_are_being_replaced(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(root, tmp_path / "own")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "_write_datasets", killed)
    with pytest.raises(KeyboardInterrupt):
        synthetic.generate(tmp_path / "own", seed=1)
    assert not (tmp_path / "own/manifest.json").exists()


def test_datasets_of_an_older_version_are_generated_again(root: Path) -> None:
    manifest = root / "manifest.json"
    before = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({key: value for key, value in before.items() if key != "coco"}))
    (root / "coco" / "train2017" / "000005.jpg").write_bytes(b"of that time")
    synthetic.generate(root)
    assert json.loads(manifest.read_text()) == before
    assert not (root / "coco" / "train2017" / "000005.jpg").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [("<annotation><object>", "not valid XML"), ("<a><object><name>dragon</name></object></a>", "'dragon'")],
)
def test_invalid_voc_annotation_is_a_user_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "000001.xml").write_text(text)
    with pytest.raises(UserError, match=f"000001.xml .*{message}"):
        read_voc_objects(tmp_path / "000001.xml")


def test_only_difficult_objects_are_labeled_zero(tmp_path: Path) -> None:
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "ImageSets" / "Main" / "test.txt").write_text("1\n")
    objects = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult></object>"
        for name, difficult in (("cat", 1), ("dog", 1), ("dog", 0))
    )
    (tmp_path / "Annotations" / "1.xml").write_text(f"<annotation>{objects}</annotation>")
    _, (row,) = read_voc(tmp_path, VOC, "test")
    assert (row[VOC_CLASSES.index("cat")], row[VOC_CLASSES.index("dog")], row[VOC_CLASSES.index("cow")]) == (0, 1, -1)
