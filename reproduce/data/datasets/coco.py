"""COCO detection data: `<split>/<image>` files, and boxes in `annotations/instances_<split>.json`."""

import hashlib
import json
import math
import posixpath
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from reproduce.data.datasets.class_folders import list_images
from reproduce.data.datasets.image_file import UnreadableImage, read_image
from reproduce.errors import UserError, few
from reproduce.parsing import is_finite_number, parse_json

BOX_TOLERANCE_PX = 1.0
"""How far a box may extend beyond its image: COCO's corners are rounded."""
MAX_CATEGORY_ID = 99_999
"""The highest category id that is taken: a detector has an output for each number up to it."""
EXACT_INTEGERS = 2**53
"""Detections hold image ids as float64, which is exact below this."""
MAX_JSON_BYTES = 5_000_000_000
"""The largest annotation file that is read: COCO's has 450 MB, LVIS's 1.1 GB."""
KNOWN_BROKEN_ANNOTATIONS = {"COCO2017": (918, 2206849)}
"""By source: ids of annotations that are broken (height 0) in the official release. All detectors skip them."""


@dataclass(frozen=True)
class CocoImage:
    """An image and its objects: boxes `(n, 4)` float32 and category ids `(n,)` int64, without crowds.

    A box is left, top, right, bottom in pixels. Crowds are used for scoring only.
    """

    id: int
    path: str
    width: int
    height: int
    boxes: np.ndarray
    labels: np.ndarray

    def read(self) -> Image.Image:
        """Decode the image to RGB. Raises `UnreadableImage` if it can't be decoded or its size is not as annotated."""
        image = read_image(self.path)
        if image.size != (self.width, self.height):
            found = f"{image.width} x {image.height}"
            raise UnreadableImage(f"{self.path} (it is {found}, but annotated as {self.width} x {self.height})")
        return image


@dataclass(frozen=True)
class CocoSplit:
    """The images of a split, and the annotations that COCO's scoring needs."""

    images: list[CocoImage]
    category_names: dict[int, str]
    """By category id; ids may have gaps."""
    ground_truth: dict[str, Any]
    """The content of the JSON file for pycocotools, without broken annotations and missing images.

    Annotations are numbered from 1: pycocotools takes the id 0 for "no match", and one of two equal ids for the other.
    """
    sha256: str
    """Hash of the JSON file."""

    @property
    def num_classes(self) -> int:
        """One more than the highest category id: 91 for COCO's 80 categories, as in DETR."""
        return max(self.category_names) + 1


def annotation_path(root: Path, split: str) -> Path:
    """Return the path of a split's JSON file."""
    return root / "annotations" / f"instances_{split}.json"


def read_coco_split(root: Path, split: str, source: str, on_bad_annotations: Callable[[list[str]], None]) -> CocoSplit:
    """Read a split's annotations.

    Boxes outside their image or without area, unknown categories, and missing images are described to
    `on_bad_annotations`, one sentence each. If it returns, they are left out. Ids may be integers, or texts of digits;
    images may have any text. Raises `UserError` if the file is not COCO's JSON, if ids are repeated, or if nothing is
    left.
    """
    path = annotation_path(root, split)
    try:
        raw = path.read_bytes()
        content = parse_json(raw.decode(json.detect_encoding(raw), "surrogatepass"), MAX_JSON_BYTES, finite=False)
        images = _by_id(content["images"], path, "image")
        for image_id, image in images.items():
            _check_size(image, image_id, path)
        category_names = _category_names(content["categories"], path)
        files = image_files(root, split, (str(image["file_name"]) for image in images.values()))
        errors = [
            f"image {root / split / str(image['file_name'])} of {path.name} is missing"
            for image in images.values()
            if str(image["file_name"]) not in files
        ]
        skipped = KNOWN_BROKEN_ANNOTATIONS.get(source, ())
        kept: dict[int | str, list[dict[str, Any]]] = {
            image_id: [] for image_id, image in images.items() if str(image["file_name"]) in files
        }
        for number, annotation in enumerate(content["annotations"]):
            if annotation.get("id") in skipped:
                continue
            parsed, problem = _parse_annotation(annotation, images, category_names)
            if problem:
                errors.append(f"annotation {annotation.get('id', f'number {number}')} of {path} {problem}")
            elif parsed["image_id"] in kept:
                kept[parsed["image_id"]].append(parsed)
        own_ids = _numbers_of(kept)
        coco_images = [
            _coco_image(own_ids[image_id], files[str(images[image_id]["file_name"])], images[image_id], objects)
            for image_id, objects in kept.items()
        ]
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: DATA must contain COCO's images and annotations") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{path} is not COCO's JSON ({error!r}): restore it from the archive") from error
    on_bad_annotations(errors)
    if not coco_images or not category_names:
        raise UserError(f"{path} lists no {'image that exists' if category_names else 'category'}")
    ground_truth = {
        "images": [{"id": each.id, "width": each.width, "height": each.height} for each in coco_images],
        "annotations": [
            {**item, "id": number, "image_id": own_ids[item["image_id"]]}
            for number, item in enumerate((item for objects in kept.values() for item in objects), start=1)
        ],
        "categories": [{"id": number, "name": name} for number, name in category_names.items()],
    }
    return CocoSplit(coco_images, category_names, ground_truth, hashlib.sha256(raw).hexdigest())


def image_files(root: Path, split: str, names: Iterable[str]) -> dict[str, str]:
    """Return the path of each image of a JSON file that exists, by its `file_name`.

    Names are below the split's folder, or below `root` if they begin with the split's name; they may have subfolders.
    """
    existing = list_images(root / split).images
    found = {}
    for name in names:
        plain = posixpath.normpath(name.replace("\\", "/"))
        for candidate in (plain, plain.removeprefix(f"{split}/")):
            if candidate in existing:
                found[name] = str(root / split / candidate)
                break
    return found


def _by_id(items: Iterable[Mapping[str, Any]], path: Path, what: str) -> dict[int | str, Mapping[str, Any]]:
    """Return the images or categories of a JSON file by id. Raises `UserError` if two have the same."""
    found: dict[int | str, Mapping[str, Any]] = {}
    repeated = []
    for item in items:
        number = _parse_id(item["id"])
        if number in found:
            repeated.append(str(number))
        found[number] = item
    if repeated:
        raise UserError(
            f"{path} lists {what} ids more than once ({len(repeated):,}): {few(sorted(repeated))}; give each {what} "
            "its own id"
        )
    return found


def _parse_id(value: Any) -> int | str:
    """Return an id as an integer if it is one, in digits or as a float, or else as text.

    Raises `TypeError` for anything else.
    """
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdigit() else value
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise TypeError(f"{value!r} is no id")
    return int(value)


def _check_size(image: Mapping[str, Any], image_id: int | str, path: Path) -> None:
    """Raise `UserError` unless an image's width and height count pixels."""
    for side in ("width", "height"):
        value = image[side]
        if not is_finite_number(value) or value != int(value) or value <= 0:
            raise UserError(
                f"{path} gives image {image_id} the {side} {value!r}, which is no number of pixels: correct it, or "
                "restore the file from the archive"
            )


def _category_names(categories: Iterable[Mapping[str, Any]], path: Path) -> dict[int, str]:
    """Return the name of each category by id. Raises `UserError` if an id is no number that a detector can count to."""
    names = {}
    for number, category in _by_id(categories, path, "category").items():
        if not isinstance(number, int) or not 0 <= number <= MAX_CATEGORY_ID:
            raise UserError(f"{path} has the category id {number!r}: number categories from 0 to {MAX_CATEGORY_ID:,}")
        names[number] = str(category["name"])
    return names


def _numbers_of(image_ids: Iterable[int | str]) -> dict[int | str, int]:
    """Return the number of each image in detections and ground truth: its id, or its place if an id is unfit."""
    ids = list(image_ids)
    if all(isinstance(each, int) and abs(each) < EXACT_INTEGERS for each in ids):
        return {each: int(each) for each in ids}
    return {each: place for place, each in enumerate(ids, start=1)}


def _parse_annotation(
    annotation: Mapping[str, Any], images: Mapping[int | str, Mapping[str, Any]], names: Mapping[int, str]
) -> tuple[dict[str, Any], str]:
    """Return what COCO's box scoring reads of an annotation, and what is wrong with it, "" if nothing is.

    Outlines, which fill gigabytes, are dropped.
    """
    image_id, category_id = _parse_id(annotation["image_id"]), _parse_id(annotation["category_id"])
    if image_id not in images:
        return {}, f"belongs to image {image_id}, which the file does not list"
    if category_id not in names:
        return {}, f"has category {category_id}, which the file does not list"
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_finite_number, box)):
        return {}, f"has no box of four finite numbers: {box!r}"
    left, top, width, height = map(float, box)
    if width <= 0 or height <= 0:
        return {}, f"has a box without area: {box}"
    image = images[image_id]
    image_width, image_height = int(image["width"]), int(image["height"])
    right, bottom = left + width - image_width, top + height - image_height
    if min(left, top) < -BOX_TOLERANCE_PX or max(right, bottom) > BOX_TOLERANCE_PX:
        return {}, f"has a box outside its image of {image_width} x {image_height}: {box}"
    area = annotation.get("area")
    area = width * height if area is None else float(area)
    if not math.isfinite(area) or area < 0:
        return {}, f"has the area {area}"
    # Hand-made annotations may lack `iscrowd` and `area`, or have `iscrowd` as text.
    crowd = annotation.get("iscrowd")
    if crowd not in (None, 0, 1, "0", "1"):
        return {}, f"has iscrowd {crowd!r}, which is neither 0 nor 1"
    parsed = {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [left, top, width, height],
        "iscrowd": int(crowd or 0),
        "area": area,
    }
    return parsed, ""


def _coco_image(number: int, path: str, image: Mapping[str, Any], objects: list[dict[str, Any]]) -> CocoImage:
    single = [item for item in objects if not item["iscrowd"]]
    width, height = int(image["width"]), int(image["height"])
    boxes = np.array([item["bbox"] for item in single], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes = boxes.clip(0, np.array([width, height, width, height], dtype=np.float32))
    labels = np.array([item["category_id"] for item in single], dtype=np.int64)
    return CocoImage(number, path, width, height, boxes, labels)
