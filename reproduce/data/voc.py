"""Pascal VOC: which objects each picture of a split holds."""

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from reproduce.config import Dataset
from reproduce.data.pictures import SHARDS, Pictures
from reproduce.data.shards import read_index
from reproduce.errors import UserError

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


@dataclass(frozen=True)
class VocObject:
    """One object of an annotation; `difficult` ones count neither for nor against a detector or classifier."""

    name: str
    difficult: bool


def read_objects(annotation: Path) -> list[VocObject]:
    """The objects of one annotation file; `UserError` naming it where it is missing, broken or of no known class."""
    try:
        root = ElementTree.parse(annotation).getroot()  # noqa: S314 - a data set that the user chose; expat expands no files
    except FileNotFoundError as error:
        raise UserError(f"annotation {annotation} is not there") from error
    except ElementTree.ParseError as error:
        raise UserError(f"annotation {annotation} is not valid XML ({error}); restore it from the archive") from error
    objects = []
    for node in root.iter("object"):
        name = node.findtext("name", "").strip()
        if name not in CLASSES:
            raise UserError(f"annotation {annotation} names an object {name!r}, which is none of VOC's 20 classes")
        objects.append(VocObject(name, node.findtext("difficult", "0").strip() == "1"))
    return objects


def read_split(root: Path, dataset: Dataset, split: str) -> tuple[Pictures, list[list[int]]]:
    """The pictures of a split, and per picture one number per class: 1 present, 0 only as difficult, -1 absent."""
    if dataset.layout == SHARDS:
        about, packed, names, places = read_index(root / split)
        paths = [f"{root}/{name}" for name in names]
        return Pictures(paths, [0] * len(paths), about["classes"], places), [json.loads(text) for text in packed]
    ids = (root / "ImageSets" / "Main" / f"{split}.txt").read_text().split()
    if not ids:
        raise UserError(f"list {root / 'ImageSets' / 'Main' / f'{split}.txt'} names no picture")
    labels = []
    for name in ids:
        objects = read_objects(root / "Annotations" / f"{name}.xml")
        sure = {item.name for item in objects if not item.difficult}
        difficult = {item.name for item in objects if item.difficult}
        labels.append([1 if cls in sure else 0 if cls in difficult else -1 for cls in CLASSES])
    paths = [str(root / "JPEGImages" / f"{name}.jpg") for name in ids]
    return Pictures(paths, [0] * len(ids), list(CLASSES)), labels
