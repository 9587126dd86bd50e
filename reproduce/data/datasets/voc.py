"""Pascal VOC: the objects in each image of a split, as labels for classification or as boxes for detection."""

import codecs
import contextlib
import errno
import json
import math
import os
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from reproduce.config.schema import Dataset
from reproduce.data.datasets.image_file import UnreadableImage, decoding
from reproduce.data.datasets.image_folder import SHARDS, ImageList
from reproduce.data.datasets.shards import read_packed_split
from reproduce.errors import UserError, few

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
CORNER_TAGS = ("xmin", "ymin", "xmax", "ymax")
"""XML tags of a box, in the order left, top, right, bottom."""
LIST_FLAGS = ("-1", "0", "1")
"""Second column of VOC's lists of a class: whether the image has the class."""
XML_ENCODING = re.compile(rb"\s*<\?xml\s[^>]*?encoding\s*=\s*[\"']([\w.:-]+)[\"'][^>]*\?>")
"""An XML declaration that names its encoding."""
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
CORNER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
"""A number of an annotation; Python's float takes underscores, digits of other scripts and nan as well."""
UNUSABLE_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR)
"""Errors of a path that no second attempt can read."""
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

    @property
    def key(self) -> str:
        """The name without blanks, slashes and bytes that are no ASCII: equal to the name in VOC's own lists."""
        return quote(self.name, safe="", errors="surrogateescape")


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
    for name in read_voc_list(root, split):
        annotation, path = annotation_of(root, name), image_of(root, name)
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
    names = read_voc_list(root, split)
    labels = []
    for name in names:
        objects = read_voc_objects(annotation_of(root, name))
        present = {item.name for item in objects if not item.difficult}
        difficult = {item.name for item in objects if item.difficult}
        labels.append([1 if cls in present else 0 if cls in difficult else -1 for cls in VOC_CLASSES])
    paths = [str(image_of(root, name)) for name in names]
    return ImageList(paths, [0] * len(paths), list(VOC_CLASSES)), labels


def _image_size(path: Path, content: ElementTree.Element) -> tuple[int, int]:
    """Return width and height in pixels, on which the image's header and its annotation must agree."""
    try:
        with decoding(str(path)), Image.open(path) as image:
            size = image.size
    except UnreadableImage as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise _InvalidAnnotation(f"image {path} is missing") from error
        raise _InvalidAnnotation(f"image {path} can't be decoded ({error.reason})") from error
    annotated = (content.findtext("size/width", "").strip(), content.findtext("size/height", "").strip())
    if annotated != tuple(map(str, size)):
        raise _InvalidAnnotation(f"image {path} is {size[0]} x {size[1]}, but annotated as {' x '.join(annotated)}")
    return size


def _voc_box(node: ElementTree.Element, width: int, height: int) -> VocBox:
    name = node.findtext("name", "").strip()
    if name not in VOC_CLASSES:
        raise _InvalidAnnotation(f"is {name!r}, which is not one of VOC's 20 classes")
    try:
        left, top, right, bottom = (_corner(node.findtext(f"bndbox/{tag}", "").strip()) for tag in CORNER_TAGS)
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


def _corner(text: str) -> float:
    """Return a finite number. Raises `ValueError` for anything else."""
    if not CORNER.fullmatch(text) or not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


def _parse(annotation: Path) -> ElementTree.Element:
    try:
        raw = annotation.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"annotation {annotation} is missing") from error
    except OSError as error:
        if error.errno not in UNUSABLE_PATH:
            raise
        raise UserError(
            f"annotation {annotation} can't be read ({error.strerror}): correct its name in the list, or restore "
            "it from the archive"
        ) from error
    try:
        return _parse_xml(raw)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise UserError(f"annotation {annotation} is not valid XML ({error}): restore it from the archive") from error


def _parse_xml(raw: bytes) -> ElementTree.Element:
    """Parse XML in the encoding that it declares; expat itself knows none with several bytes a character but Unicode's.

    Raises `ElementTree.ParseError`, `UnicodeError` or `LookupError` if it is not XML or its encoding is unknown.
    """
    try:
        return ElementTree.fromstring(raw)  # noqa: S314 - the user chose the data; expat expands no files
    except (ElementTree.ParseError, ValueError, LookupError):
        declaration = XML_ENCODING.match(raw)
        if declaration is None:
            raise
        encoding = declaration[1].decode()
        if codecs.lookup(encoding).name in ("utf-8", "ascii"):
            raise
        return ElementTree.fromstring(raw[declaration.end() :].decode(encoding))  # noqa: S314


def _is_difficult(node: ElementTree.Element) -> bool:
    return node.findtext("difficult", "0").strip() == "1"


def voc_list_path(root: Path, split: str) -> Path:
    """Return the path of the list of a split's images."""
    return root / "ImageSets" / "Main" / f"{split}.txt"


def image_of(root: Path, name: str) -> Path:
    """Return the path of the image that a list names."""
    return root / "JPEGImages" / f"{name}.jpg"


def annotation_of(root: Path, name: str) -> Path:
    """Return the path of the annotation of the image that a list names."""
    return root / "Annotations" / f"{name}.xml"


def read_voc_list(root: Path, split: str) -> list[str]:
    """Return the image names in a split's list, one a line.

    A line may have a second column as VOC's lists of a class do (-1, 0 or 1), which is ignored, or name several images.
    A name may have blanks if there is such an image. The list may be in UTF-8 or UTF-16 with or without a byte order
    mark, or in the encoding of the files' names. Raises `UserError` if it is missing or empty, or names an image twice.
    """
    path = voc_list_path(root, split)
    if not path.is_file():
        raise UserError(f"image list {path} is missing: DATA must contain VOC's images, annotations and lists")
    folder = root / "JPEGImages"
    existing = {entry.name.removesuffix(".jpg") for entry in os.scandir(folder)} if folder.is_dir() else set()
    names = [name for line in _decode_list(path, existing).split("\n") for name in _names_in_line(line, existing)]
    if not names:
        raise UserError(f"image list {path} is empty")
    if len(set(names)) < len(names):
        seen: set[str] = set()
        twice = {name for name in names if name in seen or seen.add(name)}  # type: ignore[func-returns-value]
        raise UserError(
            f"image list {path} names {len(twice):,} images more than once ({few(sorted(twice))}): name each once"
        )
    return names


def _decode_list(path: Path, existing: set[str]) -> str:
    """Return the text of a list. Without Unicode's marks and rules, it is in the encoding that gives existing names."""
    text = _decode(path, path.read_bytes(), existing)
    if "\0" in text:
        raise UserError(f"image list {path} has NUL bytes, which no name has: restore it from the archive")
    return text


def _decode(path: Path, raw: bytes, existing: set[str]) -> str:
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if raw.startswith(mark):
            try:
                return raw.decode(encoding)
            except UnicodeDecodeError as error:
                raise UserError(f"image list {path} is damaged ({error}): restore it from the archive") from error
    if b"\0" in raw:
        return _decode_utf16(raw, existing)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        as_stored, as_latin = raw.decode(errors="surrogateescape"), raw.decode("latin-1")
    return max((as_stored, as_latin), key=lambda text: _num_known(text, existing))


def _decode_utf16(raw: bytes, existing: set[str]) -> str:
    """Return UTF-16 without a mark in the byte order that gives more existing names, or else more of ASCII.

    The result has NUL characters if it is not UTF-16.
    """
    texts = []
    for encoding in ("utf-16-le", "utf-16-be"):
        with contextlib.suppress(UnicodeDecodeError):
            texts.append(raw.decode(encoding))
    return max(texts, key=lambda text: (_num_known(text, existing), sum(map(str.isascii, text))), default="\0")


def _num_known(text: str, existing: set[str]) -> int:
    return sum(line.strip() in existing for line in text.split("\n"))


def _names_in_line(line: str, existing: set[str]) -> list[str]:
    line = line.strip(" \t\r\f\v")
    words = line.split()
    if line in existing or len(words) < 2:
        return [line] if line else []
    if all(word in existing for word in words):
        return words
    first = line.rsplit(maxsplit=1)[0]
    return [first] if words[-1] in LIST_FLAGS else [line]
