"""Generate small datasets in the layouts of the real ones: `python -m reproduce.data.prepare.synthetic --root DIR`.

Writes `imagenet/`, `places205/` and `inat18/` (class folders), `VOCdevkit/VOC2007` (XML boxes, several objects per
image, `difficult` flags), `VOCdevkit/VOC0712` (two classes: a detector has only a minute to learn them) and `coco/`
(JSON boxes of small, medium and large objects). The same seed gives the same JPEG files. `manifest.json` is written
last: its existence means that everything is complete.
"""

import argparse
import hashlib
import json
import math
import os
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from reproduce.data.datasets.voc import CORNER_TAGS, VOC_CLASSES
from reproduce.data.prepare.scenes import SceneObject, Scenes, coco_object_sides, draw_scene, voc_object_sides
from reproduce.data.prepare.textures import Texture, draw_image
from reproduce.errors import run_cli
from reproduce.files import file_lock, read_json, write_json

VERSION = "generated-2"
"""Changes whenever the images do; `source` in conf/data/generated.yaml names it."""
COCO_VERSION = "generated-coco-2"
VOC0712_VERSION = "generated-voc0712-2"
"""Versions of the COCO and VOC0712 images, which were added later."""
JPEG_QUALITY = 90

DIRECTIONS = {
    name: number * math.pi / 8 for number, name in enumerate(("upright", "steep", "slanted", "flat", "level"))
}
"""Five angles from 0 to 90 degrees, in radians; flips turn them into the other quarter."""


def _textures(weave: str, wave: str, *directions: str) -> dict[str, Texture]:
    return {f"{direction}_{wave}_{weave}": Texture(weave, wave, DIRECTIONS[direction]) for direction in directions}


@dataclass(frozen=True)
class ClassSet:
    """A classification dataset: the texture of each class, and its number of square images per class."""

    name: str
    textures: dict[str, Texture]
    num_train: int
    num_val: int


@dataclass(frozen=True)
class Sizes:
    """How many images the datasets have. `num_per_class` replaces training and validation images of every class set."""

    num_per_class: tuple[int, int] | None
    size_px: int
    """Side of the square images of the class sets."""
    voc: tuple[int, int]
    """Images of VOC2007's trainval and test."""
    voc0712: tuple[int, int]
    coco: tuple[int, int]
    """Images of COCO's train2017 and val2017."""
    tinted: bool = False
    """Whether each image has a color of its own: on gray ones, half of the color jitter changes nothing."""


SIZES = {
    "full": Sizes(None, 64, voc=(300, 300), voc0712=(300, 300), coco=(400, 200)),
    # For the first steps of each recipe, of trunks of any size (tables/golden/): a dozen steps at the scale's batch.
    "rehearsal_smoke": Sizes((10, 4), 64, voc=(60, 30), voc0712=(16, 6), coco=(24, 8), tinted=True),
    "rehearsal_paper": Sizes((1, 1), 256, voc=(60, 30), voc0712=(8, 2), coco=(4, 2), tinted=True),
}
"""By the value of --size."""

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
"""One texture per VOC class, in the order of `VOC_CLASSES`."""
VOC_SPLITS = ("trainval", "test")

COCO_CATEGORIES = {
    1: ("stripe", Texture("stripes", "sine", DIRECTIONS["upright"])),
    3: ("net", Texture("grid", "thin", DIRECTIONS["slanted"])),
}
"""Name and texture by category id. Ids have gaps, as in COCO; a detector has only a minute to learn two categories."""
COCO_SPLITS = ("train2017", "val2017")

VOC_SCENES = Scenes((96, 128), VOC_TEXTURES, voc_object_sides)
VOC0712_SCENES = Scenes((96, 128), [VOC_TEXTURES[0], VOC_TEXTURES[13]], voc_object_sides)
VOC_SETS = {"VOC2007": (VOC_SCENES, "voc"), "VOC0712": (VOC0712_SCENES, "voc0712")}
"""By folder: the images, and the key of their random draws."""
COCO_SCENES = Scenes((128, 160), [texture for _, texture in COCO_CATEGORIES.values()], coco_object_sides)


def generate(root: Path, seed: int = 0, size: str = "full") -> None:
    """Write all datasets below `root`, on all cores, unless its manifest says that they exist in this version."""
    manifest = root / "manifest.json"
    wanted = {"version": VERSION, "coco": COCO_VERSION, "voc0712": VOC0712_VERSION, "seed": seed}
    with file_lock(root / ".lock", "the image generator"):
        found = read_json(manifest) if manifest.exists() else {}
        in_full, asked = (json.loads(json.dumps(asdict(SIZES[each]))) for each in ("full", size))
        # Manifests of earlier versions name no size: there was one.
        if {"size": in_full, **found}.items() >= {**wanted, "size": asked}.items():
            return
        root.mkdir(parents=True, exist_ok=True)
        manifest.unlink(missing_ok=True)  # it would vouch for what is left of the earlier images
        hashes = _write_datasets(root, seed, SIZES[size])
        write_json(manifest, {**wanted, "size": asdict(SIZES[size]), "sha256": hashes})
        print(f"generated images in {root}")


def _write_datasets(root: Path, seed: int, sizes: Sizes) -> dict[str, str]:
    """Write all datasets; return a hash of each split's images."""
    jobs = [(root, seed, item, split, sizes) for item in CLASS_SETS for split in ("train", "val")]
    voc_jobs = [(root, seed, each, split, sizes) for each in VOC_SETS for split in VOC_SPLITS]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        class_sets, voc = pool.map(_write_class_split, jobs), pool.map(_write_voc_split, voc_jobs)
        coco = pool.map(_write_coco_split, [(root, seed, split, sizes) for split in COCO_SPLITS])
        return dict([*class_sets, *voc, *coco])


def _rng(*key: object) -> np.random.Generator:
    """Return a random generator that depends on names and numbers only."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))


def _save(path: Path, gray: np.ndarray, tint: np.random.Generator | None) -> bytes:
    """Write a gray image as an RGB JPEG, like a photograph, and return the file's content; `tint` draws its color."""
    image = Image.fromarray(gray).convert("RGB")
    if tint is not None:
        image = Image.fromarray((gray[:, :, None] * tint.uniform(0.3, 1, 3)).astype(np.uint8))
    image.save(path, quality=JPEG_QUALITY)
    return path.read_bytes()


def _write_class_split(job: tuple[Path, int, ClassSet, str, Sizes]) -> tuple[str, str]:
    root, seed, item, split, sizes = job
    digest = hashlib.sha256()
    num = (sizes.num_per_class or (item.num_train, item.num_val))[("train", "val").index(split)]
    for name, texture in item.textures.items():
        folder = root / item.name / split / name
        shutil.rmtree(folder, ignore_errors=True)  # images of another size
        folder.mkdir(parents=True)
        for number in range(num):
            rng = _rng(seed, item.name, split, name, number)
            tint = _rng(seed, "tint", item.name, split, name, number) if sizes.tinted else None
            digest.update(
                _save(folder / f"{number:04d}.jpg", draw_image(rng, texture, sizes.size_px, sizes.size_px), tint)
            )
    return f"{item.name}/{split}", digest.hexdigest()


def _write_voc_split(job: tuple[Path, int, str, str, Sizes]) -> tuple[str, str]:
    root, seed, name_of_set, split, sizes = job
    num_trainval, num_test = sizes.voc if name_of_set == "VOC2007" else sizes.voc0712
    scenes, key = VOC_SETS[name_of_set]
    voc = root / "VOCdevkit" / name_of_set
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (voc / folder).mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    names = []
    for number in range(num_trainval if split == "trainval" else num_test):
        gray, objects = draw_scene(_rng(seed, key, split, number), scenes)
        height, width = gray.shape
        name = f"{number + (0 if split == 'trainval' else num_trainval):06d}"
        tint = _rng(seed, "tint", key, name) if sizes.tinted else None
        digest.update(_save(voc / "JPEGImages" / f"{name}.jpg", gray, tint))
        (voc / "Annotations" / f"{name}.xml").write_bytes(_voc_xml(name, width, height, objects))
        names.append(name)
    (voc / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return f"{name_of_set}/{split}", digest.hexdigest()


def _write_coco_split(job: tuple[Path, int, str, Sizes]) -> tuple[str, str]:
    root, seed, split, sizes = job
    folder = root / "coco" / split
    if folder.is_dir():  # images of another version
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    digest = hashlib.sha256()
    images, annotations = [], []
    for number in range(sizes.coco[COCO_SPLITS.index(split)]):
        gray, objects = draw_scene(_rng(seed, "coco", split, number), COCO_SCENES)
        height, width = gray.shape
        name = f"{number:012d}.jpg"
        digest.update(_save(folder / name, gray, _rng(seed, "tint", "coco", name) if sizes.tinted else None))
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        annotations += [_coco_annotation(each, number) for each in objects]
    for annotation_id, annotation in enumerate(annotations, start=1):
        annotation["id"] = annotation_id
    categories = [{"id": number, "name": name} for number, (name, _) in COCO_CATEGORIES.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_json(root / "coco" / "annotations" / f"instances_{split}.json", content)
    digest.update(json.dumps(content).encode())
    return f"coco/{split}", digest.hexdigest()


def _voc_xml(name: str, width: int, height: int, objects: list[SceneObject]) -> bytes:
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = f"{name}.jpg"
    size = ElementTree.SubElement(root, "size")
    for key, value in (("width", width), ("height", height), ("depth", 3)):
        ElementTree.SubElement(size, key).text = str(value)
    for each in objects:
        node = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(node, "name").text = VOC_CLASSES[each.label]
        ElementTree.SubElement(node, "difficult").text = str(int(each.difficult))
        box = ElementTree.SubElement(node, "bndbox")
        # VOC counts pixels from one and includes both ends.
        corners = (each.left + 1, each.top + 1, each.right, each.bottom)
        for tag, value in zip(CORNER_TAGS, corners, strict=True):
            ElementTree.SubElement(box, tag).text = str(value)
    return ElementTree.tostring(root)


def _coco_annotation(each: SceneObject, image_id: int) -> dict[str, object]:
    width, height = each.right - each.left, each.bottom - each.top
    return {
        "image_id": image_id,
        "category_id": list(COCO_CATEGORIES)[each.label],
        "bbox": [each.left, each.top, width, height],
        "area": width * height,
        "iscrowd": int(each.difficult),
    }


def main() -> int:
    """Generate the datasets that the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(description="Write the generated datasets.")
    parser.add_argument("--root", type=Path, required=True, help="folder to write them to")
    parser.add_argument("--seed", type=int, default=0, help="seed of the images (default: 0)")
    parser.add_argument("--size", choices=sorted(SIZES), default="full", help="number of images (default: full)")
    arguments = parser.parse_args()
    generate(arguments.root, arguments.seed, arguments.size)
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
