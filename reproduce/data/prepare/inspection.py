"""Inspect a dataset's files in each layout, and collect what is missing, unexpected or broken."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from reproduce.config.schema import Dataset
from reproduce.data.datasets.class_folders import FolderImages, list_class_folders, list_images
from reproduce.data.datasets.coco import image_files, read_coco_split
from reproduce.data.datasets.image_file import IMAGE_SUFFIXES, UnreadableImage, read_image
from reproduce.data.datasets.manifest import STAT_THREADS
from reproduce.data.datasets.shards import CONTENTS_FILE, read_packed_split
from reproduce.data.datasets.voc import annotation_of, read_voc_list, read_voc_objects, voc_list_path
from reproduce.data.prepare.official import DatasetSpec
from reproduce.data.prepare.progress import LogFn, with_progress
from reproduce.errors import UserError, few

ProblemKind = Literal["missing", "unexpected", "broken"]
Decode = Literal["sample", "all"]
"""Whether to decode some images of each split, or all of them."""
SAMPLE_IMAGES = 1000
"""Number of images of a split that are decoded, evenly spread over it."""
SHARDS_PER_CHECK = 20
"""One of so many shards is compared with its SHA-256."""
MAX_NAMES = 10
"""Names listed in one line; further ones are only counted."""
BLOCK_IMAGES = 10_000
"""Images given to the threads at a time: the queue of a million would fill the memory."""


@dataclass
class Inspection:
    """What is wrong with a dataset, one line each, and the size of every file.

    `files` maps a split to its files: name below the dataset's folder -> bytes.
    """

    problems: list[tuple[ProblemKind, str]] = field(default_factory=list)
    files: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, kind: ProblemKind, what: str) -> None:
        """Add a problem."""
        self.problems.append((kind, what))

    def add_names(self, kind: ProblemKind, what: str, names: list[str]) -> None:
        """Add a problem that concerns `names`, of which it lists the first few. Without names there is no problem."""
        if names:
            self.add(kind, f"{what} ({len(names):,}): {few(sorted(names), MAX_NAMES)}")

    def compare(self, what: str, number: int, expected: int) -> None:
        """Add a problem if a number is not the expected one."""
        if number != expected:
            kind: ProblemKind = "missing" if number < expected else "unexpected"
            difference = "too few" if number < expected else "too many"
            self.add(kind, f"{number:,} {what}, {abs(number - expected):,} {difference}: it should be {expected:,}")

    def compare_split(self, split: str, spec: DatasetSpec | None) -> None:
        """Add a problem if a split has another number of images than its authors say."""
        if spec and split in spec.splits:
            self.compare(f"images in {split}", len(self.files[split]), spec.splits[split].num_images)


def inspect_folders(root: Path, dataset: Dataset, spec: DatasetSpec | None, log: LogFn) -> Inspection:
    """Inspect `root/<split>/<class>/<image>`."""
    found = Inspection()
    classes = {}
    for split in dict.fromkeys((dataset.train, dataset.val)):
        if not (root / split).is_dir():
            found.add("missing", f"folder {root / split} is missing")
            continue
        folders = list_class_folders(root / split)
        names = folders.classes
        classes[split] = set(names)
        found.add_names("unexpected", f"files in {root / split} beside the class folders", folders.stray)
        hidden = [name for name in folders.hidden if _is_noteworthy(root / split / name)]
        counts: dict[str, int] = {}
        files: dict[str, int] = {}
        listed = with_progress(folders.list_each(with_status=True), len(names), f"class folders of {split} listed", log)
        for name, content in zip(names, listed, strict=True):
            counts[name] = len(content.images)
            files |= {f"{split}/{name}/{file}": size for file, size in _sizes(content).items()}
            what = f"files in {split}/{name} are not images and are ignored"
            found.add_names("unexpected", what, content.others)
            hidden += [f"{name}/{each}" for each in content.hidden if _is_noteworthy(root / split / name / each)]
        found.add_names("unexpected", f"hidden or system files and folders in {split}, which are ignored", hidden)
        found.files[split] = files
        found.add_names(
            "missing", f"class folders of {split} without images", [n for n, count in counts.items() if not count]
        )
        if spec:
            found.compare(f"class folders in {split}", len(names), spec.num_classes)
            found.compare_split(split, spec)
            each = spec.splits[split].per_class if split in spec.splits else None
            what = f"classes of {split} that should have {each} images each"
            found.add_names("missing", what, [f"{name} ({n})" for name, n in counts.items() if each and n < each])
            found.add_names("unexpected", what, [f"{name} ({n})" for name, n in counts.items() if each and n > each])
    for split, other in ((dataset.train, dataset.val), (dataset.val, dataset.train)):
        if split in classes and other in classes:
            without = list(classes[other] - classes[split])
            found.add_names("missing", f"classes of {other} without a folder in {split}", without)
    return found


def inspect_voc(root: Path, dataset: Dataset, spec: DatasetSpec | None, log: LogFn) -> Inspection:
    """Inspect Pascal VOC's image lists, and the image and annotation of each entry."""
    found = Inspection()
    existing = _sizes(list_images(root / "JPEGImages", with_status=True)) if (root / "JPEGImages").is_dir() else {}
    for split in dict.fromkeys((dataset.train, dataset.val)):
        path = voc_list_path(root, split)
        if not path.is_file():
            found.add("missing", f"image list {path} is missing")
            continue
        try:
            names = read_voc_list(root, split)
        except UserError as error:
            found.add("broken", str(error))
            continue
        found.files[split] = {f"JPEGImages/{n}.jpg": existing[f"{n}.jpg"] for n in names if f"{n}.jpg" in existing}
        absent = [f"{name}.jpg" for name in names if f"{name}.jpg" not in existing]
        found.add_names("missing", f"images in the list {split} that do not exist", absent)
        if spec and split in spec.splits:
            found.compare(f"names in the list {split}", len(names), spec.splits[split].num_images)
        broken = []
        for name in with_progress(names, len(names), f"annotations of {split} read", log):
            try:
                read_voc_objects(annotation_of(root, name))
            except UserError as error:
                broken.append(str(error))
        found.add_names("broken", f"annotations of {split} that can't be used", broken)
    return found


def inspect_coco(root: Path, dataset: Dataset, spec: DatasetSpec | None, _log: LogFn) -> Inspection:
    """Inspect COCO's `root/<split>/<image>`, and the JSON file that lists each split's images."""
    found = Inspection()
    for split in (dataset.train, dataset.val):
        annotations = root / "annotations" / f"instances_{split}.json"
        if not (root / split).is_dir():
            found.add("missing", f"folder {root / split} is missing")
            continue
        folder = list_images(root / split, with_status=True)
        images = _sizes(folder)
        found.files[split] = {f"{split}/{name}": size for name, size in images.items()}
        found.add_names("unexpected", f"files in {split} are not images", folder.others)
        found.compare_split(split, spec)
        try:
            content = json.loads(annotations.read_bytes())
            listed = {str(image["file_name"]) for image in content["images"]}
            num_categories = len(content["categories"])
            del content  # the annotations of COCO take gigabytes
            files = image_files(root, split, listed)
            broken: list[str] = []
            read_coco_split(root, split, dataset.source, broken.extend)
        except FileNotFoundError:
            found.add("missing", f"annotation file {annotations} is missing")
        except UserError as error:
            found.add("broken", str(error))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            found.add("broken", f"{annotations} is not COCO's JSON ({error!r})")
        else:
            found.add_names("missing", f"images in {annotations.name} that do not exist", list(listed - files.keys()))
            unlisted = set(images) - {path.removeprefix(f"{root / split}/") for path in files.values()}
            found.add_names("unexpected", f"images that are not in {annotations.name}", list(unlisted))
            wrong = [error for error in broken if not error.startswith("image ")]  # those are missing, and named above
            found.add_names("broken", f"annotations of {annotations.name} that can't be used", wrong)
            if spec:
                found.compare(f"categories in {annotations.name}", num_categories, spec.num_classes)
    return found


def inspect_shards(root: Path, dataset: Dataset, spec: DatasetSpec | None, decode: Decode, log: LogFn) -> Inspection:
    """Inspect the shards in `root/<split>`, without decoding their images: verify the folders before packing them."""
    found = Inspection()
    for split in dict.fromkeys((dataset.train, dataset.val)):
        try:
            packed = read_packed_split(root / split)
        except UserError as error:
            found.add("missing", str(error))
            continue
        found.files[split] = dict(zip(packed.names, packed.index.size.tolist(), strict=True))
        found.compare_split(split, spec)
        shards = packed.contents["shards"]
        sample = shards if decode == "all" else shards[::SHARDS_PER_CHECK]
        with ThreadPoolExecutor(STAT_THREADS) as pool:
            results = pool.map(lambda shard, folder=root / split: _changed_shard(folder, shard), sample)
            broken = [name for name in with_progress(results, len(sample), f"shards of {split} read", log) if name]
        what = f"of {len(sample):,} shards of {split}, some have another SHA-256 than in {CONTENTS_FILE}"
        found.add_names("broken", what, broken)
    return found


def _sizes(content: FolderImages) -> dict[str, int]:
    """Return the size of each image in bytes, 0 if it can't be read."""
    return {name: status.st_size if status else 0 for name, status in content.images.items()}


def _is_noteworthy(path: Path) -> bool:
    """Return whether a hidden entry may be or hold images: macOS's .DS_Store is not worth a word."""
    return path.name.lower().endswith(IMAGE_SUFFIXES) or path.is_dir()


def _changed_shard(folder: Path, shard: dict[str, Any]) -> str:
    """Return the shard's name if its content has another SHA-256 than it should, else ""."""
    with open(folder / shard["name"], "rb") as file:
        same = hashlib.file_digest(file, "sha256").hexdigest() == shard["sha256"]
    return "" if same else shard["name"]


def decode_images(root: Path, split: str, found: Inspection, decode: Decode, log: LogFn) -> None:
    """Decode images of a split, and add those that can't be decoded to what is `found`."""
    names = [name for name, size in sorted(found.files[split].items()) if size]
    sample = names if decode == "all" else names[:: max(1, len(names) // SAMPLE_IMAGES)]
    with ThreadPoolExecutor(STAT_THREADS) as pool:
        blocks = (sample[start : start + BLOCK_IMAGES] for start in range(0, len(sample), BLOCK_IMAGES))
        errors = (error for block in blocks for error in pool.map(lambda name: _decode_error(root / name), block))
        broken = [error for error in with_progress(errors, len(sample), f"images of {split} decoded", log) if error]
    found.add_names("broken", f"of {len(sample):,} images of {split}, some can't be decoded", broken)


def _decode_error(path: Path) -> str:
    """Return why an image can't be decoded, "" if it can."""
    try:
        read_image(str(path)).close()
    except UnreadableImage as error:
        return str(error)
    return ""
