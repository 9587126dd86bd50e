"""Generated picture sets in the layouts of the real ones: `python -m reproduce.data.prepare.synthetic --root DIR`.

`imagenet/`, `places205/` and `inat18/` (class folders), `VOCdevkit/VOC2007` (XML boxes, several objects a picture,
`difficult` flags), `VOCdevkit/VOC0712` (two classes: a detector has only a minute) and `coco/` (JSON boxes of small,
medium and large objects). JPEG files, the same from the same seed.
`manifest.json` is written last: with it, the set is whole.
"""

import argparse
import hashlib
import json
import math
import os
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from reproduce.data.datasets.voc import VOC_CLASSES
from reproduce.data.prepare.textures import Texture, picture
from reproduce.errors import run_cli
from reproduce.files import file_lock, read_json, write_json

VERSION = "generated-1"
"""Changes whenever the pictures do; `source` in conf/data/generated.yaml names it."""
COCO_VERSION = "generated-coco-1"
VOC0712_VERSION = "generated-voc0712-1"
"""The same, of the COCO set, which came later."""
JPEG_QUALITY = 90

DIRECTIONS = {
    name: number * math.pi / 8 for number, name in enumerate(("upright", "steep", "slanted", "flat", "level"))
}
"""Five angles from 0 to 90 degrees: a flip makes the rest of the circle from them."""


def _textures(weave: str, wave: str, *directions: str) -> dict[str, Texture]:
    return {f"{direction}_{wave}_{weave}": Texture(weave, wave, DIRECTIONS[direction]) for direction in directions}


@dataclass(frozen=True)
class ClassSet:
    """A classification set: its classes, and how many square pictures of each."""

    name: str
    textures: dict[str, Texture]
    num_train: int
    num_val: int
    size_px: int = 64


CLASS_SETS = (
    ClassSet(
        "imagenet",
        _textures("stripes", "sine", "upright", "slanted", "level")
        | _textures("stripes", "thin", "upright", "slanted", "level")
        | _textures("grid", "thin", "upright", "slanted")
        | _textures("checker", "sine", "upright", "slanted"),
        num_train=200,
        num_val=100,
    ),
    ClassSet(
        "places205",
        _textures("stripes", "sine", "upright", "level")
        | _textures("zigzag", "sine", "upright", "level")
        | _textures("zigzag", "thin", "upright", "level")
        | _textures("grid", "sine", "upright", "slanted"),
        num_train=120,
        num_val=80,
    ),
    ClassSet(
        "inat18",
        _textures("stripes", "thin", *DIRECTIONS)
        | _textures("grid", "thin", "upright", "steep", "slanted")
        | _textures("checker", "thin", "upright", "slanted"),
        num_train=100,
        num_val=60,
    ),
)

VOC_TEXTURES = list(
    (
        _textures("stripes", "sine", *DIRECTIONS)
        | _textures("stripes", "thin", *DIRECTIONS)
        | _textures("grid", "thin", "upright", "steep", "slanted")
        | _textures("checker", "sine", "upright", "steep", "slanted")
        | _textures("zigzag", "thin", "upright", "slanted", "level")
        | _textures("grid", "sine", "upright")
    ).values()
)
"""One texture per VOC class, in the classes' order."""
VOC_SPLITS = {"trainval": 300, "test": 300}
OBJECT_SHARE = (0.35, 0.7)
"""Side of an object as a share of the picture's."""

COCO_CATEGORIES = {
    1: ("stripe", Texture("stripes", "sine", DIRECTIONS["upright"])),
    3: ("net", Texture("grid", "thin", DIRECTIONS["slanted"])),
}
"""By id; ids have gaps, as COCO's have. Two, since a detector has only a minute to learn them."""
COCO_SPLITS = {"train2017": 400, "val2017": 200}
OBJECT_PX = ((20, 30), (36, 80), (100, 125))
"""Sides of small, medium and large objects, in COCO's sense: divided at areas of 32 x 32 and 96 x 96."""
OBJECT_SIZES = (0.1, 0.2, 0.7)
"""How often each is tried; a large one often leaves no room for others."""


@dataclass(frozen=True)
class Box:
    """An object: class number, corners in pixels (right and bottom excluded), and whether it is too faint to count."""

    label: int
    left: int
    top: int
    right: int
    bottom: int
    difficult: bool


@dataclass(frozen=True)
class Scenes:
    """Pictures of a detection set: bounds of their sides in pixels, and one texture for each label."""

    size_px: tuple[int, int]
    textures: list[Texture]
    draw_sides: Callable[[np.random.Generator, int, int], tuple[int, int]]
    """Width and height of an object, in a picture of this width and height."""


def _shares(rng: np.random.Generator, width: int, height: int) -> tuple[int, int]:
    w, h = (int(side * rng.uniform(*OBJECT_SHARE)) for side in (width, height))
    return w, h


def _sizes(rng: np.random.Generator, width: int, height: int) -> tuple[int, int]:
    low, high = OBJECT_PX[rng.choice(len(OBJECT_PX), p=OBJECT_SIZES)]
    w, h = (min(int(rng.integers(low, high + 1)), side) for side in (width, height))
    return w, h


VOC_SCENES = Scenes((96, 128), VOC_TEXTURES, _shares)
VOC0712_SCENES = Scenes((96, 128), [VOC_TEXTURES[0], VOC_TEXTURES[13]], _shares)
VOC_SETS = {"VOC2007": (VOC_SCENES, "voc"), "VOC0712": (VOC0712_SCENES, "voc0712")}
"""By folder: what is in the pictures, and the name of their random numbers."""
COCO_SCENES = Scenes((128, 160), [texture for _, texture in COCO_CATEGORIES.values()], _sizes)


def generate(root: Path, seed: int = 0) -> None:
    """Write all sets below `root`, on all cores; nothing is done where the manifest of this version is there."""
    manifest = root / "manifest.json"
    wanted = {"version": VERSION, "coco": COCO_VERSION, "voc0712": VOC0712_VERSION, "seed": seed}
    with file_lock(root / ".lock", "the picture generator"):
        if manifest.exists() and read_json(manifest).items() >= wanted.items():
            return
        root.mkdir(parents=True, exist_ok=True)
        jobs = [(root, seed, item, split) for item in CLASS_SETS for split in ("train", "val")]
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            class_sets = pool.map(_write_class_split, jobs)
            voc = pool.map(_write_voc_split, [(root, seed, each, split) for each in VOC_SETS for split in VOC_SPLITS])
            coco = pool.map(_write_coco_split, [(root, seed, split) for split in COCO_SPLITS])
            hashes = dict([*class_sets, *voc, *coco])
        write_json(manifest, {**wanted, "sha256": hashes})
        print(f"generated pictures in {root}")


def _rng(*key: object) -> np.random.Generator:
    """Random numbers keyed by names and numbers."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))


def _save(path: Path, grey: np.ndarray) -> bytes:
    """Write a picture as colour JPEG, as photographs are, and return the file's content."""
    Image.fromarray(grey).convert("RGB").save(path, quality=JPEG_QUALITY)
    return path.read_bytes()


def _write_class_split(job: tuple[Path, int, ClassSet, str]) -> tuple[str, str]:
    root, seed, item, split = job
    digest = hashlib.sha256()
    for name, texture in item.textures.items():
        folder = root / item.name / split / name
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(item.num_train if split == "train" else item.num_val):
            rng = _rng(seed, item.name, split, name, number)
            digest.update(_save(folder / f"{number:04d}.jpg", picture(rng, texture, item.size_px, item.size_px)))
    return f"{item.name}/{split}", digest.hexdigest()


def _write_voc_split(job: tuple[Path, int, str, str]) -> tuple[str, str]:
    root, seed, name_of_set, split = job
    scenes, key = VOC_SETS[name_of_set]
    voc = root / "VOCdevkit" / name_of_set
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (voc / folder).mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    names = []
    for number in range(VOC_SPLITS[split]):
        grey, boxes = _scene(_rng(seed, key, split, number), scenes)
        height, width = grey.shape
        name = f"{number + (0 if split == 'trainval' else VOC_SPLITS['trainval']):06d}"
        digest.update(_save(voc / "JPEGImages" / f"{name}.jpg", grey))
        (voc / "Annotations" / f"{name}.xml").write_bytes(_voc_xml(name, width, height, boxes))
        names.append(name)
    (voc / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return f"{name_of_set}/{split}", digest.hexdigest()


def _write_coco_split(job: tuple[Path, int, str]) -> tuple[str, str]:
    root, seed, split = job
    folder = root / "coco" / split
    if folder.is_dir():  # of another version
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    digest = hashlib.sha256()
    images, annotations = [], []
    for number in range(COCO_SPLITS[split]):
        grey, boxes = _scene(_rng(seed, "coco", split, number), COCO_SCENES)
        height, width = grey.shape
        name = f"{number:012d}.jpg"
        digest.update(_save(folder / name, grey))
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        annotations += [_coco_box(box, number) for box in boxes]
    for box_id, annotation in enumerate(annotations, start=1):
        annotation["id"] = box_id
    categories = [{"id": number, "name": name} for number, (name, _) in COCO_CATEGORIES.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_json(root / "coco" / "annotations" / f"instances_{split}.json", content)
    digest.update(json.dumps(content).encode())
    return f"coco/{split}", digest.hexdigest()


def _scene(rng: np.random.Generator, kind: Scenes) -> tuple[np.ndarray, list[Box]]:
    """A smooth, noisy ground with one to three textured rectangles that overlap little; about one in ten is faint."""
    width, height = (int(side) for side in rng.integers(kind.size_px[0], kind.size_px[1] + 1, 2))
    ground = rng.normal(128, 8, (height, width)) + rng.uniform(-40, 40)
    boxes: list[Box] = []
    for _ in range(int(rng.integers(1, 4))):
        w, h = kind.draw_sides(rng, width, height)
        left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
        box = Box(int(rng.integers(len(kind.textures))), left, top, left + w, top + h, bool(rng.random() < 0.1))
        if any(_overlap(box, other) > 0.2 for other in boxes):
            continue
        texture = picture(rng, kind.textures[box.label], h, w).astype(float)
        part = ground[top : top + h, left : left + w]
        part += (texture - part) * (0.3 if box.difficult else 1.0)
        boxes.append(box)
    return np.clip(ground, 0, 255).astype(np.uint8), boxes


def _overlap(a: Box, b: Box) -> float:
    """Shared area as a share of the smaller box."""
    width = min(a.right, b.right) - max(a.left, b.left)
    height = min(a.bottom, b.bottom) - max(a.top, b.top)
    areas = [(box.right - box.left) * (box.bottom - box.top) for box in (a, b)]
    return max(0, width) * max(0, height) / min(areas)


def _voc_xml(name: str, width: int, height: int, boxes: list[Box]) -> bytes:
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = f"{name}.jpg"
    size = ElementTree.SubElement(root, "size")
    for key, value in (("width", width), ("height", height), ("depth", 3)):
        ElementTree.SubElement(size, key).text = str(value)
    for box in boxes:
        node = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(node, "name").text = VOC_CLASSES[box.label]
        ElementTree.SubElement(node, "difficult").text = str(int(box.difficult))
        corners = ElementTree.SubElement(node, "bndbox")
        # VOC counts pixels from one and includes both ends.
        for key, value in (("xmin", box.left + 1), ("ymin", box.top + 1), ("xmax", box.right), ("ymax", box.bottom)):
            ElementTree.SubElement(corners, key).text = str(value)
    return ElementTree.tostring(root)


def _coco_box(box: Box, image_id: int) -> dict[str, object]:
    width, height = box.right - box.left, box.bottom - box.top
    return {
        "image_id": image_id,
        "category_id": list(COCO_CATEGORIES)[box.label],
        "bbox": [box.left, box.top, width, height],
        "area": width * height,
        "iscrowd": int(box.difficult),
    }


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Write the generated picture sets.")
    parser.add_argument("--root", type=Path, required=True, help="folder to write them to")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other pictures of the same kinds")
    arguments = parser.parse_args()
    generate(arguments.root, arguments.seed)
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
