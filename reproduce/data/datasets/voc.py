"""Pascal VOC: which objects each picture of a split holds, and where."""

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from reproduce.config.schema import Dataset
from reproduce.data.datasets.image_file import DECODE_ERRORS
from reproduce.data.datasets.image_folder import SHARDS, ImageList
from reproduce.data.datasets.shards import read_index
from reproduce.errors import UserError

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
CORNERS = ("xmin", "ymin", "xmax", "ymax")
BORDER_PX = 1
"""A box may reach so far beyond its picture, as where it was counted from zero; it is cut off there."""


@dataclass(frozen=True)
class VocObject:
    """One object of an annotation; `difficult` ones count neither for nor against a detector or classifier."""

    name: str
    difficult: bool


@dataclass(frozen=True)
class VocBox:
    """An object's class number and its corners in pixels from the top left: left, top, right, bottom.

    The last two are excluded: a box around all of a picture is 0, 0, width, height.
    """

    label: int
    corners: tuple[float, float, float, float]
    difficult: bool


@dataclass(frozen=True)
class Annotated:
    """A picture with its boxes; `name` is the one of the split's list."""

    name: str
    path: str
    width: int
    height: int
    boxes: list[VocBox]


class _Broken(Exception):
    """What is wrong with an object, or with a picture as its annotation describes it."""


def read_objects(annotation: Path) -> list[VocObject]:
    """The objects of one annotation file; `UserError` naming it where it is missing, broken or of no known class."""
    objects = []
    for node in _parse(annotation).iter("object"):
        name = node.findtext("name", "").strip()
        if name not in CLASSES:
            raise UserError(f"annotation {annotation} names an object {name!r}, which is none of VOC's 20 classes")
        objects.append(VocObject(name, _difficult(node)))
    return objects


def read_boxes(root: Path, split: str) -> tuple[list[Annotated], list[str]]:
    """The pictures of a split with their boxes, and what of the annotations is broken, a sentence each.

    Left out are pictures that are not there, are of another size than annotated or have no annotation, and objects of
    an unknown class, outside their picture or without area. Raises `UserError` where the list names no picture.
    """
    found, broken = [], []
    for name in _names(root, split):
        annotation, picture = root / "Annotations" / f"{name}.xml", root / "JPEGImages" / f"{name}.jpg"
        try:
            content = _parse(annotation)
            width, height = _size(picture, content)
        except (UserError, _Broken) as error:
            broken.append(str(error))
            continue
        boxes = []
        for number, node in enumerate(content.iter("object"), start=1):
            try:
                boxes.append(_box(node, width, height))
            except _Broken as error:
                broken.append(f"object {number} of annotation {annotation} {error}")
        found.append(Annotated(name, str(picture), width, height, boxes))
    return found, broken


def _size(picture: Path, content: ElementTree.Element) -> tuple[int, int]:
    """Width and height of a picture, as its header and its annotation say."""
    try:
        with Image.open(picture) as image:
            size = image.size
    except FileNotFoundError as error:
        raise _Broken(f"picture {picture} is not there") from error
    except DECODE_ERRORS as error:
        raise _Broken(f"picture {picture} can't be decoded ({error})") from error
    annotated = (content.findtext("size/width", "").strip(), content.findtext("size/height", "").strip())
    if annotated != tuple(map(str, size)):
        raise _Broken(f"picture {picture} is {size[0]} x {size[1]}, but annotated as {' x '.join(annotated)}")
    return size


def _box(node: ElementTree.Element, width: int, height: int) -> VocBox:
    name = node.findtext("name", "").strip()
    if name not in CLASSES:
        raise _Broken(f"is {name!r}, which is none of VOC's 20 classes")
    try:
        left, top, right, bottom = (float(node.findtext(f"bndbox/{key}", "")) for key in CORNERS)
    except ValueError as error:
        raise _Broken(f"({name}) has a corner that is no number") from error
    where = f"{left:g}, {top:g} to {right:g}, {bottom:g} in {width} x {height} pixels"
    left, top = left - 1, top - 1  # VOC counts from one, and both ends belong to the box
    if min(left, top, width - right, height - bottom) < -BORDER_PX:
        raise _Broken(f"({name}) lies outside its picture: {where}")
    corners = max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
    if corners[2] <= corners[0] or corners[3] <= corners[1]:
        raise _Broken(f"({name}) has no area: {where}")
    return VocBox(CLASSES.index(name), corners, _difficult(node))


def _parse(annotation: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(annotation).getroot()  # noqa: S314 - a data set that the user chose; expat expands no files
    except FileNotFoundError as error:
        raise UserError(f"annotation {annotation} is not there") from error
    except ElementTree.ParseError as error:
        raise UserError(f"annotation {annotation} is not valid XML ({error}); restore it from the archive") from error


def _difficult(node: ElementTree.Element) -> bool:
    return node.findtext("difficult", "0").strip() == "1"


def _names(root: Path, split: str) -> list[str]:
    names = (root / "ImageSets" / "Main" / f"{split}.txt").read_text().split()
    if not names:
        raise UserError(f"list {root / 'ImageSets' / 'Main' / f'{split}.txt'} names no picture")
    return names


def read_split(root: Path, dataset: Dataset, split: str) -> tuple[ImageList, list[list[int]]]:
    """The pictures of a split, and per picture one number per class: 1 present, 0 only as difficult, -1 absent."""
    if dataset.layout == SHARDS:
        about, packed, names, shard_index = read_index(root / split)
        paths = [f"{root}/{name}" for name in names]
        return ImageList(paths, [0] * len(paths), about["classes"], shard_index), [json.loads(text) for text in packed]
    ids = _names(root, split)
    labels = []
    for name in ids:
        objects = read_objects(root / "Annotations" / f"{name}.xml")
        sure = {item.name for item in objects if not item.difficult}
        difficult = {item.name for item in objects if item.difficult}
        labels.append([1 if cls in sure else 0 if cls in difficult else -1 for cls in CLASSES])
    paths = [str(root / "JPEGImages" / f"{name}.jpg") for name in ids]
    return ImageList(paths, [0] * len(ids), list(CLASSES)), labels
