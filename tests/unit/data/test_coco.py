"""Reading COCO's layout, and reporting annotations that are broken."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evals.coco_detr.metrics import average_precision
from reproduce.config.schema import Dataset
from reproduce.data.datasets import coco
from reproduce.data.datasets.coco import CocoSplit, read_coco_split
from reproduce.data.datasets.image_file import UnreadableImage
from reproduce.data.prepare import verify
from reproduce.errors import UserError

Content = dict[str, Any]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Two images of 40 x 30, three annotations, one of them a crowd; `write(change)` changes the JSON first."""

    def do(change: Callable[[Content], object] = lambda content: content) -> Path:
        boxes = [[1, 2, 10, 20], [5, 5, 35.4, 25], [0, 0, 40, 30]]
        content = {
            "images": [{"id": n, "file_name": f"{n}.jpg", "width": 40, "height": 30} for n in (3, 8)],
            "annotations": [
                {"id": n, "image_id": 8, "category_id": 1 + 89 * (n == 1), "bbox": box, "iscrowd": int(n == 2)}
                for n, box in enumerate(boxes)
            ],
            "categories": [{"id": 1, "name": "person"}, {"id": 90, "name": "brush"}],
        }
        change(content)
        (tmp_path / "annotations").mkdir(exist_ok=True)
        coco.annotation_path(tmp_path, "val").write_text(json.dumps(content))
        (tmp_path / "val").mkdir(exist_ok=True)
        for number in (3, 8):
            Image.new("RGB", (40, 30)).save(tmp_path / "val" / f"{number}.jpg")
        return tmp_path

    return do


def stop(bad: list[str]) -> None:
    assert not bad


def test_reads_boxes_labels_and_ground_truth(write: Callable[..., Path]) -> None:
    root = write()
    split = read_coco_split(root, "val", "mine", stop)
    empty, full = split.images
    assert (empty.id, full.id, full.width, full.height) == (3, 8, 40, 30)
    assert empty.boxes.shape == (0, 4) and empty.labels.shape == (0,)
    # Corners, cut to the image (0.4 pixels are rounding); the crowd is for the scoring only.
    np.testing.assert_array_equal(full.boxes, np.array([[1, 2, 11, 22], [5, 5, 40, 30]], dtype=np.float32))
    assert full.labels.tolist() == [1, 90]
    assert split.num_classes == 91
    assert split.category_names == {1: "person", 90: "brush"}
    assert [item["iscrowd"] for item in split.ground_truth["annotations"]] == [0, 0, 1]
    assert [item["area"] for item in split.ground_truth["annotations"]] == [200, 35.4 * 25, 1200]
    assert full.read().size == (40, 30)


def changed(number: int, **values: object) -> Callable[[Content], None]:
    return lambda content: content["annotations"][number].update(values)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (changed(0, bbox=[35, 2, 10, 20]), "has a box outside its image of 40 x 30: [35, 2, 10, 20]"),
        (changed(0, bbox=[-2, 2, 10, 20]), "has a box outside its image of 40 x 30: [-2, 2, 10, 20]"),
        (changed(0, bbox=[1, 2, 10, 0]), "has a box without area: [1, 2, 10, 0]"),
        (changed(0, bbox=[1, 2, -3, 5]), "has a box without area: [1, 2, -3, 5]"),
        (changed(0, bbox=[]), "has no box of four finite numbers: []"),
        (changed(0, bbox=[1, 2, 3]), "has no box of four finite numbers: [1, 2, 3]"),
        (changed(0, bbox="here"), "has no box of four finite numbers: 'here'"),
        (changed(0, bbox=None), "has no box of four finite numbers: None"),
        (changed(0, bbox="1234"), "has no box of four finite numbers: '1234'"),
        (changed(0, bbox=["1", "2", "3", "4"]), "has no box of four finite numbers: ['1', '2', '3', '4']"),
        (changed(0, bbox={"1": 0}), "has no box of four finite numbers: {'1': 0}"),
        (changed(0, bbox=[1, 2, float("nan"), 4]), "has no box of four finite numbers: [1, 2, nan, 4]"),
        (changed(0, bbox=[1, 2, True, 4]), "has no box of four finite numbers: [1, 2, True, 4]"),
        (changed(0, bbox=[1, 2, float("inf"), 4]), "has no box of four finite numbers: [1, 2, inf, 4]"),
        (changed(0, area="nan"), "has the area nan"),
        (changed(0, area=float("nan")), "has the area nan"),
        (changed(0, area=float("inf")), "has the area inf"),
        (changed(0, iscrowd=2), "has iscrowd 2, which is neither 0 nor 1"),
        (changed(0, iscrowd=-1), "has iscrowd -1, which is neither 0 nor 1"),
        (changed(0, iscrowd=0.5), "has iscrowd 0.5, which is neither 0 nor 1"),
        (changed(0, iscrowd="yes"), "has iscrowd 'yes', which is neither 0 nor 1"),
        (changed(0, category_id=2), "has category 2, which the file does not list"),
        (changed(0, image_id=5), "belongs to image 5, which the file does not list"),
    ],
)
def test_bad_annotation_is_reported_and_left_out(
    write: Callable[..., Path], change: Callable[[Content], None], said: str
) -> None:
    root = write(change)
    bad: list[str] = []
    split = read_coco_split(root, "val", "mine", bad.extend)
    assert bad == [f"annotation 0 of {coco.annotation_path(root, 'val')} {said}"]
    assert split.images[1].labels.tolist() == [90]
    assert [item["id"] for item in split.ground_truth["annotations"]] == [1, 2]


def test_missing_image_is_reported_and_left_out_with_its_boxes(write: Callable[..., Path]) -> None:
    root = write()
    (root / "val" / "8.jpg").unlink()
    bad: list[str] = []
    split = read_coco_split(root, "val", "mine", bad.extend)
    assert bad == [f"image {root / 'val' / '8.jpg'} of instances_val.json is missing"]
    assert [image.id for image in split.images] == [3]
    assert [image["id"] for image in split.ground_truth["images"]] == [3]
    assert not split.ground_truth["annotations"]


def test_known_broken_annotations_are_skipped_silently(write: Callable[..., Path]) -> None:
    root = write(changed(0, id=918, bbox=[296.65, 388.33, 1.03, 0.0]))
    assert read_coco_split(root, "val", "COCO2017", stop).images[1].labels.tolist() == [90]
    with pytest.raises(AssertionError):
        read_coco_split(root, "val", "mine", stop)


def test_image_of_another_size_than_annotated_is_unreadable(write: Callable[..., Path]) -> None:
    root = write(lambda content: content["images"][1].update(height=31))
    image = read_coco_split(root, "val", "mine", stop).images[1]
    with pytest.raises(UnreadableImage, match=r"8.jpg \(it is 40 x 30, but annotated as 40 x 31\)"):
        image.read()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda content: content.pop("images"), r"instances_val.json is not COCO's JSON \(KeyError\('images'\)\)"),
        (lambda content: content.update(annotations=[[]]), "is not COCO's JSON"),
        (changed(0, image_id=[8]), r"is not COCO's JSON \(TypeError\('\[8\] is no id'\)\)"),
        (changed(0, category_id=True), r"is not COCO's JSON \(TypeError\('True is no id'\)\)"),
        (lambda content: content["images"][0].update(id=8), r"lists image ids more than once \(1\): 8;"),
        (lambda content: content["images"][0].update(id="8"), r"lists image ids more than once \(1\): 8;"),
        (lambda content: content["categories"][0].update(id=90), r"lists category ids more than once \(1\): 90;"),
        (lambda content: content["categories"][0].update(id="person"), r"has the category id 'person': number"),
        (lambda content: content["categories"][0].update(id=-1), r"has the category id -1: number"),
        (lambda content: content["categories"][0].update(id=10**9), r"has the category id 1000000000: number"),
        (
            lambda content: content["images"][0].update(width=0),
            "gives image 3 the width 0, which is no number of pixels",
        ),
        (lambda content: content["images"][0].update(height=-1), "gives image 3 the height -1, which"),
        (lambda content: content["images"][0].update(height=29.5), r"gives image 3 the height 29\.5, which"),
        (lambda content: content["images"][0].update(height="30"), "gives image 3 the height '30', which"),
        (lambda content: content["images"][0].update(height=True), "gives image 3 the height True, which"),
        (lambda content: content.update(images=[], annotations=[]), "lists no image that exists"),
        (lambda content: content.update(categories=[], annotations=[]), "lists no category"),
    ],
)
def test_invalid_coco_json_is_a_user_error(
    write: Callable[..., Path], spoil: Callable[[Content], object], said: str
) -> None:
    root = write(spoil)
    with pytest.raises(UserError, match=said):
        read_coco_split(root, "val", "mine", stop)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"bbox": [1, 2, 10, 20]', '"bbox": [1, 2, 10, 20], "bbox": [1, 2, 3, 4]', "the key 'bbox' stands twice"),
        ('{"images"', '{"images": [], "images"', "the key 'images' stands twice"),
        ("[1, 2, 10, 20]", "[" * 100_000 + "]" * 100_000, "it is nested too deeply"),
    ],
)
def test_json_is_as_strict_as_our_own_files(write: Callable[..., Path], old: str, new: str, said: str) -> None:
    root = write()
    path = coco.annotation_path(root, "val")
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=said):
        read_coco_split(root, "val", "mine", stop)


def test_json_may_be_larger_than_our_own_files(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    root = write()
    monkeypatch.setattr(coco, "MAX_JSON_BYTES", 100)
    with pytest.raises(UserError, match="it has more than"):
        read_coco_split(root, "val", "mine", stop)
    monkeypatch.undo()
    path = coco.annotation_path(root, "val")
    path.write_text(path.read_text() + " " * 50_000_001)
    assert len(read_coco_split(root, "val", "mine", stop).images) == 2


def test_missing_json_is_a_user_error(write: Callable[..., Path]) -> None:
    root = write()
    with pytest.raises(UserError, match=r"instances_train\.json is missing"):
        read_coco_split(root, "train", "mine", stop)


def perfect(split: CocoSplit) -> float:
    """The average precision of a detector that finds every object, and nothing else."""
    rows = [
        [image.id, left, top, right - left, bottom - top, 1, label]
        for image in split.images
        for (left, top, right, bottom), label in zip(image.boxes.tolist(), image.labels.tolist(), strict=True)
    ]
    return average_precision(split.ground_truth, np.array(rows), [image.id for image in split.images])["ap"]


def same(content: Content) -> None:
    """No change."""


def as_text(content: Content) -> None:
    for item in [*content["images"], *content["annotations"], *content["categories"]]:
        item.update({key: str(item[key]) for key in ("id", "image_id", "category_id") if key in item})


def some_as_text(content: Content) -> None:
    for item in content["annotations"]:
        item.update(image_id=str(item["image_id"]))


def names_as_ids(content: Content) -> None:
    for item in content["images"]:
        item["id"] = f"picture {item['id']}"
    for item in content["annotations"]:
        item["image_id"] = f"picture {item['image_id']}"


def huge(content: Content) -> None:
    """Ids that float64 can't tell apart."""
    for item in content["images"]:
        item["id"] += 10**18
    for item in content["annotations"]:
        item["image_id"] += 10**18


def annotation_ids(ids: list[Any]) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        for item, number in zip(content["annotations"], ids, strict=True):
            item["id"] = number

    return change


def without_ids(content: Content) -> None:
    for item in content["annotations"]:
        del item["id"]


def crowd_as_text(content: Content) -> None:
    for item in content["annotations"]:
        item["iscrowd"] = str(item["iscrowd"])


def as_floats(content: Content) -> None:
    for item in content["annotations"]:
        item.update(id=float(item["id"]), image_id=8.0, category_id=float(item["category_id"]))


@pytest.mark.parametrize(
    "change",
    [
        same, as_text, some_as_text, names_as_ids, huge, without_ids, crowd_as_text, as_floats,
        annotation_ids([7, 7, 7]),
        annotation_ids([0, 0, 0]), annotation_ids(["a", "b", "c"]), annotation_ids([-1, 0, 1]),
    ],
)  # fmt: skip
def test_perfect_detections_score_100_whatever_the_ids(
    write: Callable[..., Path], change: Callable[[Content], None]
) -> None:
    def on_both(content: Content) -> None:  # objects in both images
        content["annotations"][0].update(image_id=3)
        change(content)
        if change is as_floats:
            content["annotations"][0].update(image_id=3.0)

    split = read_coco_split(write(on_both), "val", "mine", stop)
    assert [len(image.boxes) for image in split.images] == [1, 1]
    assert perfect(split) == pytest.approx(100)
    assert [item["id"] for item in split.ground_truth["annotations"]] == [1, 2, 3]


@pytest.mark.parametrize("name", ["a/b/8.jpg", "val/a/b/8.jpg", "./a/b/8.jpg", "a\\b\\8.jpg"])
def test_file_names_may_have_folders(write: Callable[..., Path], name: str) -> None:
    root = write(lambda content: content["images"][1].update(file_name=name))
    (root / "val" / "a" / "b").mkdir(parents=True)
    (root / "val" / "8.jpg").rename(root / "val" / "a" / "b" / "8.jpg")
    split = read_coco_split(root, "val", "mine", stop)
    assert split.images[1].path == str(root / "val" / "a" / "b" / "8.jpg")
    assert split.images[1].read().size == (40, 30)
    assert verify.verify_dataset(root, Dataset("own", "own", "coco", ".", "val", "val"), None, "all", print)


@pytest.mark.parametrize("name", ["../val/8.jpg", "/etc/8.jpg", "b/8.jpg"])
def test_file_names_elsewhere_are_missing(write: Callable[..., Path], name: str) -> None:
    bad: list[str] = []
    root = write(lambda content: content["images"][1].update(file_name=name))
    assert len(read_coco_split(root, "val", "mine", bad.extend).images) == 1
    assert len(bad) == 1 and bad[0].endswith("8.jpg of instances_val.json is missing")


def test_verification_names_what_runs_refuse(write: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    root = write(changed(0, bbox=[]))
    dataset = Dataset("own", "own", "coco", ".", "val", "val")
    assert not verify.verify_dataset(root, dataset, None, "all", print)
    assert "annotations of instances_val.json that can't be used (1): annotation 0 of" in capsys.readouterr().out
