"""COCO detection data: `<split>/<image>` files, and boxes in `annotations/instances_<split>.json`."""

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

BOX_TOLERANCE_PX = 1.0
"""How far a box may extend beyond its image: COCO's corners are rounded."""
SCORED_KEYS = ("id", "image_id", "category_id", "bbox")
"""Annotation keys that COCO's box scoring reads, besides `area` and `iscrowd`. Outlines, which fill gigabytes, are
dropped."""
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
    """The content of the JSON file for pycocotools, without broken annotations and missing images."""
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
    `on_bad_annotations`, one sentence each. If it returns, they are left out. Raises `UserError` if the file is not
    COCO's JSON, or if nothing is left.
    """
    path = annotation_path(root, split)
    try:
        raw = path.read_bytes()
        content = json.loads(raw)
        images = {image["id"]: image for image in content["images"]}
        category_names = {int(category["id"]): str(category["name"]) for category in content["categories"]}
        existing = {entry.name for entry in os.scandir(root / split)}
        errors = [
            f"image {root / split / image['file_name']} of {path.name} is missing"
            for image in images.values()
            if image["file_name"] not in existing
        ]
        skipped = KNOWN_BROKEN_ANNOTATIONS.get(source, ())
        kept: dict[int, list[dict[str, Any]]] = {
            image_id: [] for image_id, image in images.items() if image["file_name"] in existing
        }
        for annotation in content["annotations"]:
            if annotation["id"] in skipped:
                continue
            if problem := _annotation_error(annotation, images, category_names):
                errors.append(f"annotation {annotation['id']} of {path} {problem}")
            elif annotation["image_id"] in kept:
                kept[annotation["image_id"]].append(annotation)
        coco_images = [_coco_image(root / split, images[image_id], objects) for image_id, objects in kept.items()]
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: DATA must contain COCO's images and annotations") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not COCO's JSON ({error!r}): restore it from the archive") from error
    on_bad_annotations(errors)
    if not coco_images or not category_names:
        raise UserError(f"{path} lists no {'image that exists' if category_names else 'category'}")
    ground_truth = {
        "images": [images[image_id] for image_id in kept],
        "annotations": [
            {key: item[key] for key in SCORED_KEYS} | _optional_keys(item)
            for objects in kept.values()
            for item in objects
        ],
        "categories": content["categories"],
    }
    return CocoSplit(coco_images, category_names, ground_truth, hashlib.sha256(raw).hexdigest())


def _annotation_error(annotation: dict[str, Any], images: dict[int, dict[str, Any]], names: dict[int, str]) -> str:
    """Describe what is wrong with an annotation; "" if nothing is."""
    if annotation["image_id"] not in images:
        return f"belongs to image {annotation['image_id']}, which the file does not list"
    if annotation["category_id"] not in names:
        return f"has category {annotation['category_id']}, which the file does not list"
    left, top, width, height = annotation["bbox"]
    if not all(map(math.isfinite, (left, top, width, height))) or width <= 0 or height <= 0:
        return f"has a box without area: {annotation['bbox']}"
    image = images[annotation["image_id"]]
    right, bottom = left + width - image["width"], top + height - image["height"]
    if min(left, top) < -BOX_TOLERANCE_PX or max(right, bottom) > BOX_TOLERANCE_PX:
        return f"has a box outside its image of {image['width']} x {image['height']}: {annotation['bbox']}"
    return ""


def _optional_keys(annotation: dict[str, Any]) -> dict[str, Any]:
    """Return the keys that hand-made annotations may lack, with their values or defaults."""
    _, _, width, height = annotation["bbox"]
    return {"iscrowd": annotation.get("iscrowd", 0), "area": annotation.get("area", width * height)}


def _coco_image(folder: Path, image: dict[str, Any], objects: list[dict[str, Any]]) -> CocoImage:
    single = [item for item in objects if not item.get("iscrowd")]
    width, height = int(image["width"]), int(image["height"])
    boxes = np.array([item["bbox"] for item in single], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes = boxes.clip(0, np.array([width, height, width, height], dtype=np.float32))
    labels = np.array([item["category_id"] for item in single], dtype=np.int64)
    return CocoImage(int(image["id"]), str(folder / image["file_name"]), width, height, boxes, labels)
