"""Pascal VOC: the objects in each image of a split, as labels for classification or as boxes for detection."""

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from reproduce.config.schema import Dataset
from reproduce.data.datasets.image_file import DECODE_ERRORS
from reproduce.data.datasets.image_folder import SHARDS, ImageList
from reproduce.data.datasets.shards import read_packed_split
from reproduce.errors import UserError

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
CORNER_TAGS = ("xmin", "ymin", "xmax", "ymax")
"""XML tags of a box, in the order left, top, right, bottom."""
BOX_TOLERANCE_PX = 1
"""How far a box may extend beyond its image, as boxes counted from zero do; it is clipped there."""


@dataclass(frozen=True)
class VocObject:
    """One object of an annotation; `difficult` ones count neither for nor against a detector or classifier."""

    name: str
    difficult: bool


@dataclass(frozen=True)
class VocBox:
    """An object's class number and corners: left, top, right, bottom in pixels, counted from 0.

    Right and bottom are excluded: a box around the whole image is 0, 0, width, height.
    """

    label: int
    corners: tuple[float, float, float, float]
    difficult: bool


@dataclass(frozen=True)
class VocImage:
    """An image with its boxes; `name` is its entry in the split's list."""

    name: str
    path: str
    width: int
    height: int
    boxes: list[VocBox]


class _InvalidAnnotation(Exception):
    """An object or image contradicts its annotation; `str()` says how."""


def read_voc_objects(annotation: Path) -> list[VocObject]:
    """Read the objects of one annotation file.

    Raises `UserError` if the file is missing, is not valid XML, or names an unknown class.
    """
    objects = []
    for node in _parse(annotation).iter("object"):
        name = node.findtext("name", "").strip()
        if name not in VOC_CLASSES:
            raise UserError(f"annotation {annotation} has an object {name!r}, which is not one of VOC's 20 classes")
        objects.append(VocObject(name, _is_difficult(node)))
    return objects


def read_voc_boxes(root: Path, split: str) -> tuple[list[VocImage], list[str]]:
    """Read the images of a split with their boxes; also return what is wrong with annotations, one sentence each.

    Leaves out images that are missing, lack an annotation, or have another size than annotated, and objects of unknown
    class, outside their image, or without area. Raises `UserError` if the split's list is empty.
    """
    images, errors = [], []
    for name in _read_list(root, split):
        annotation, path = root / "Annotations" / f"{name}.xml", root / "JPEGImages" / f"{name}.jpg"
        try:
            content = _parse(annotation)
            width, height = _image_size(path, content)
        except (UserError, _InvalidAnnotation) as error:
            errors.append(str(error))
            continue
        boxes = []
        for number, node in enumerate(content.iter("object"), start=1):
            try:
                boxes.append(_voc_box(node, width, height))
            except _InvalidAnnotation as error:
                errors.append(f"object {number} of annotation {annotation} {error}")
        images.append(VocImage(name, str(path), width, height, boxes))
    return images, errors


def read_voc_labels(root: Path, dataset: Dataset, split: str) -> tuple[ImageList, list[list[int]]]:
    """List the images of a split, and 20 labels per image: 1 present, 0 only as a difficult object, -1 absent.

    Raises `UserError` if an annotation or shard is missing or invalid, or if the split's list is empty.
    """
    if dataset.layout == SHARDS:
        packed = read_packed_split(root / split)
        paths = [f"{root}/{name}" for name in packed.names]
        images = ImageList(paths, [0] * len(paths), packed.contents["classes"], packed.index)
        return images, [json.loads(text) for text in packed.labels]
    names = _read_list(root, split)
    labels = []
    for name in names:
        objects = read_voc_objects(root / "Annotations" / f"{name}.xml")
        present = {item.name for item in objects if not item.difficult}
        difficult = {item.name for item in objects if item.difficult}
        labels.append([1 if cls in present else 0 if cls in difficult else -1 for cls in VOC_CLASSES])
    paths = [str(root / "JPEGImages" / f"{name}.jpg") for name in names]
    return ImageList(paths, [0] * len(paths), list(VOC_CLASSES)), labels


def _image_size(path: Path, content: ElementTree.Element) -> tuple[int, int]:
    """Return width and height in pixels, on which the image's header and its annotation must agree."""
    try:
        with Image.open(path) as image:
            size = image.size
    except FileNotFoundError as error:
        raise _InvalidAnnotation(f"image {path} is missing") from error
    except DECODE_ERRORS as error:
        raise _InvalidAnnotation(f"image {path} can't be decoded ({error})") from error
    annotated = (content.findtext("size/width", "").strip(), content.findtext("size/height", "").strip())
    if annotated != tuple(map(str, size)):
        raise _InvalidAnnotation(f"image {path} is {size[0]} x {size[1]}, but annotated as {' x '.join(annotated)}")
    return size


def _voc_box(node: ElementTree.Element, width: int, height: int) -> VocBox:
    name = node.findtext("name", "").strip()
    if name not in VOC_CLASSES:
        raise _InvalidAnnotation(f"is {name!r}, which is not one of VOC's 20 classes")
    try:
        left, top, right, bottom = (float(node.findtext(f"bndbox/{tag}", "")) for tag in CORNER_TAGS)
    except ValueError as error:
        raise _InvalidAnnotation(f"({name}) has a corner that is not a number") from error
    box = f"{left:g}, {top:g} to {right:g}, {bottom:g} in {width} x {height} pixels"
    left, top = left - 1, top - 1  # VOC counts from one, and both ends belong to the box
    if min(left, top, width - right, height - bottom) < -BOX_TOLERANCE_PX:
        raise _InvalidAnnotation(f"({name}) lies outside its image: {box}")
    corners = max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
    if corners[2] <= corners[0] or corners[3] <= corners[1]:
        raise _InvalidAnnotation(f"({name}) has no area: {box}")
    return VocBox(VOC_CLASSES.index(name), corners, _is_difficult(node))


def _parse(annotation: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(annotation).getroot()  # noqa: S314 - the user chose the data; expat expands no files
    except FileNotFoundError as error:
        raise UserError(f"annotation {annotation} is missing") from error
    except ElementTree.ParseError as error:
        raise UserError(f"annotation {annotation} is not valid XML ({error}): restore it from the archive") from error


def _is_difficult(node: ElementTree.Element) -> bool:
    return node.findtext("difficult", "0").strip() == "1"


def _read_list(root: Path, split: str) -> list[str]:
    """Return the image names in a split's list. Raises `UserError` if it is missing or empty."""
    path = root / "ImageSets" / "Main" / f"{split}.txt"
    if not path.is_file():
        raise UserError(f"image list {path} is missing: DATA must contain VOC's images, annotations and lists")
    names = path.read_text().split()
    if not names:
        raise UserError(f"image list {path} is empty")
    return names
