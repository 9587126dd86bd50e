"""COCO's layout: `split/picture`, and `annotations/instances_<split>.json` with the boxes of each split's pictures."""

import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from reproduce.data.datasets.image_file import UnreadableImage, read_image
from reproduce.errors import UserError

OUTSIDE_PX = 1.0
"""By how much a box may reach beyond its picture: COCO's corners are rounded."""
SCORED = ("id", "image_id", "category_id", "bbox")
"""What of an annotation boxes are scored by, beside its area and whether it is a crowd; outlines fill gigabytes."""
KNOWN_BROKEN = {"COCO2017": (918, 2206849)}
"""Annotations that are broken (height 0) in an official release, by source: passed over, as every detector does."""


@dataclass(frozen=True)
class Boxed:
    """A picture and its objects: boxes `(n, 4)` float32, corners in pixels, and category ids `(n,)` int64.

    Crowds are not among them: they are for the scoring only.
    """

    id: int
    path: str
    width: int
    height: int
    boxes: np.ndarray
    labels: np.ndarray

    def read(self) -> Image.Image:
        """Decode the image to RGB. Raises `UnreadableImage` if it can't be decoded or has another size."""
        image = read_image(self.path)
        if image.size != (self.width, self.height):
            found = f"{image.width} x {image.height}"
            raise UnreadableImage(f"{self.path} (its annotation says {self.width} x {self.height}, it is {found})")
        return image


@dataclass(frozen=True)
class Split:
    """The pictures of a split. `truth` is the JSON's content without what is broken, for COCO's own scoring."""

    pictures: list[Boxed]
    names: dict[int, str]
    """Of categories, by id; ids may have gaps."""
    truth: dict[str, Any]
    sha256: str
    """Of the JSON file."""

    @property
    def num_classes(self) -> int:
        """One more than the highest category id: 91 of COCO's 80 categories, as DETR counts."""
        return max(self.names) + 1


def annotations(root: Path, split: str) -> Path:
    """The JSON file of a split."""
    return root / "annotations" / f"instances_{split}.json"


def read_split(root: Path, split: str, source: str, on_unreadable: Callable[[list[str]], None]) -> Split:
    """Read a split. What is broken - a box outside its picture or without area, an unknown category, a picture that is
    not there - is named to `on_unreadable`, which stops, or else it is left out.

    Raises `UserError` where the file is no COCO JSON, or nothing is left.
    """
    path = annotations(root, split)
    try:
        raw = path.read_bytes()
        content = json.loads(raw)
        images = {image["id"]: image for image in content["images"]}
        names = {int(category["id"]): str(category["name"]) for category in content["categories"]}
        there = {entry.name for entry in os.scandir(root / split)}
        bad = [
            f"picture {root / split / image['file_name']} is not there, which {path.name} names"
            for image in images.values()
            if image["file_name"] not in there
        ]
        passed_over = KNOWN_BROKEN.get(source, ())
        good: dict[int, list[dict[str, Any]]] = {
            number: [] for number, image in images.items() if image["file_name"] in there
        }
        for annotation in content["annotations"]:
            if annotation["id"] in passed_over:
                continue
            if wrong := _wrong(annotation, images, names):
                bad.append(f"annotation {annotation['id']} of {path} {wrong}")
            elif annotation["image_id"] in good:
                good[annotation["image_id"]].append(annotation)
        pictures = [_boxed(root / split, images[number], objects) for number, objects in good.items()]
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is not there: DATA must hold COCO's pictures and annotations") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not COCO's JSON ({error!r}); restore it from the archive") from error
    on_unreadable(bad)
    if not pictures or not names:
        raise UserError(f"{path} names no {'picture that is there' if names else 'category'}")
    kept = [annotation for objects in good.values() for annotation in objects]
    truth = {
        "images": [images[number] for number in good],
        "annotations": [{key: item[key] for key in SCORED} | _defaults(item) for item in kept],
        "categories": content["categories"],
    }
    return Split(pictures, names, truth, hashlib.sha256(raw).hexdigest())


def _wrong(annotation: dict[str, Any], images: dict[int, dict[str, Any]], names: dict[int, str]) -> str:
    """What is wrong with an annotation; "" where it is fine."""
    if annotation["image_id"] not in images:
        return f"is of image {annotation['image_id']}, which the file does not list"
    if annotation["category_id"] not in names:
        return f"is of category {annotation['category_id']}, which the file does not list"
    left, top, width, height = annotation["bbox"]
    if not all(map(math.isfinite, (left, top, width, height))) or width <= 0 or height <= 0:
        return f"has a box without area: {annotation['bbox']}"
    image = images[annotation["image_id"]]
    right, bottom = left + width - image["width"], top + height - image["height"]
    if min(left, top) < -OUTSIDE_PX or max(right, bottom) > OUTSIDE_PX:
        return f"has a box outside its picture of {image['width']} x {image['height']}: {annotation['bbox']}"
    return ""


def _defaults(annotation: dict[str, Any]) -> dict[str, Any]:
    """What a hand-made annotation may leave out."""
    _, _, width, height = annotation["bbox"]
    return {"iscrowd": annotation.get("iscrowd", 0), "area": annotation.get("area", width * height)}


def _boxed(folder: Path, image: dict[str, Any], objects: list[dict[str, Any]]) -> Boxed:
    alone = [item for item in objects if not item.get("iscrowd")]
    width, height = int(image["width"]), int(image["height"])
    boxes = np.array([item["bbox"] for item in alone], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes = boxes.clip(0, np.array([width, height, width, height], dtype=np.float32))
    labels = np.array([item["category_id"] for item in alone], dtype=np.int64)
    return Boxed(int(image["id"]), str(folder / image["file_name"]), width, height, boxes, labels)
