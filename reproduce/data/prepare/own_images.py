"""Find out how somebody stores own pictures, and arrange them as class folders of two splits, by links.

Understood are train and validation folders of class folders; one folder of class folders; a table of file names and
labels (`metadata.csv`, `metadata.jsonl`, or any .csv or .jsonl file); and a folder of pictures without labels.
"""

import errno
import hashlib
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

import yaml

from reproduce.data.datasets.class_folders import list_class_folders, list_images
from reproduce.data.datasets.image_file import IMAGE_SUFFIXES
from reproduce.data.prepare.image_table import TRAIN_NAMES, UNLABELED, VAL_NAMES, Splits, read_table, resolver
from reproduce.errors import UserError
from reproduce.files import write_atomic

TABLES = ("metadata.csv", "metadata.jsonl")
VAL_SHARE = 5
"""One picture of so many of a class is for validation, where no split is given."""
UNLABELED_FOLDER = "unlabeled"
"""The only class folder of pictures without labels."""
SPLIT_FILE = "split.csv"


@dataclass(frozen=True)
class OwnImages:
    """Pictures as runs read them."""

    data: Path
    """The folder for DATA."""
    config: Path
    """The data config for DATA_CONFIG."""
    labeled: bool
    summary: str
    """What was found, in a sentence."""


def arrange(images: Path, home: Path) -> OwnImages:
    """Return pictures as runs read them, from links below `home` unless they are stored that way.

    The same pictures are always arranged and split in the same way. Raises `UserError` if they can't be understood.
    """
    if not images.exists():
        raise UserError(f"IMAGES={images} is not there: give a folder of pictures, or a table of file names and labels")
    if (given := _split_folders(images)) and not any(
        (images / name / table).exists() for name in given for table in TABLES
    ):
        train, val = given
        labels = list_class_folders(images / train).classes
        if len(labels) == 1:
            raise UserError(f"IMAGES={images}: {train}/ has one class, {labels[0]}, and every accuracy would be 100%")
        if labels:
            what = f"{len(labels)} classes in {train}/ and {val}/"
            # "own" and a blank: no official data set is called so, whatever the folder is called.
            return _configured(home, images, images, (train, val), f"own {_plain(images)}", what)
    found = dict(_read(images, given))
    labeled = UNLABELED not in {label for split in found.values() for label in split}
    what = _in_words(found)
    if labeled and len(found) == 1 and (split := next(iter(found))):  # of one table: two would be two splits
        other = "val" if split == "train" else "train"
        raise UserError(
            f"{_table(images)} has a label for each picture, and all are of split {split}: write {other} for some "
            "rows, or leave the column out"
        )
    if labeled and "" in found:
        found = _divided(images, found[""])
        what += (
            f", of which one in {VAL_SHARE} of each class is for validation ({SPLIT_FILE} beside the links says which)"
        )
    elif not labeled:
        files = (found.get("") or found.get("train") or {}).get(UNLABELED)
        if not files:
            raise UserError(f"IMAGES={images}: all pictures are for validation and have no labels: write split train")
        found = {"train": {UNLABELED_FOLDER: files}, "val": {}}  # nothing to validate: a pretraining's only
    listing = _listing(found)
    # Links know where the pictures are; runs are named after what they are. A link on the way that leads elsewhere
    # than before means other pictures.
    folder = home / f"{_plain(images)}-{_digest(str(images.resolve()) + listing + _targets(found))}"
    if not folder.exists():
        _link(folder, found, listing)
    return _configured(home, images, folder, ("train", "val"), f"{_plain(images)} {_digest(listing)}", what, labeled)


def _split_folders(images: Path) -> tuple[str, str] | None:
    """Return the names of the folders for training and validation, or None unless there are both."""
    if not images.is_dir():
        return None
    names = {entry.name.lower(): entry.name for entry in os.scandir(images) if entry.is_dir()}
    train, val = (next((names[each] for each in wanted if each in names), None) for wanted in (TRAIN_NAMES, VAL_NAMES))
    return (train, val) if train and val else None


def _table(images: Path) -> Path | None:
    """Return the one table of all pictures, or None if there is none."""
    tables = [images] if images.is_file() else [images / table for table in TABLES if (images / table).is_file()]
    return tables[0] if tables else None


def _read(images: Path, given: tuple[str, str] | None) -> Iterator[tuple[str, dict[str, dict[str, Path]]]]:
    """Yield each split with its pictures."""
    if given:
        seen: dict[str, str] = {}
        for split, name in zip(("train", "val"), given, strict=True):
            tables = [images / name / table for table in TABLES if (images / name / table).is_file()]
            if not tables:
                raise UserError(f"IMAGES={images}: {name}/ has no class folders and no {' or '.join(TABLES)}")
            yield from read_table(tables[0], split, seen).items()
        return
    if table := _table(images):
        yield from read_table(table, "", {}).items()
        return
    folders = list_class_folders(images)
    by_class = {
        name: {file: images / name / file for file in found.images}
        for name, found in zip(folders.classes, folders.list_each(), strict=True)
    }
    by_class = {name: files for name, files in by_class.items() if files}
    loose = [name for name in folders.stray if name.lower().endswith(IMAGE_SUFFIXES)]
    if by_class and loose:
        raise UserError(
            f"IMAGES={images} has pictures ({loose[0]}, ...) beside folders of them ({next(iter(by_class))}, ...): "
            "move them into folders of their classes, or give a folder without folders"
        )
    if not by_class and not loose:
        raise UserError(_nothing(images, folders.stray))
    if len(by_class) > 1:
        yield "", by_class
        return
    if listed := [name for name in folders.stray if name.lower().endswith((".csv", ".jsonl"))]:
        raise UserError(
            f"IMAGES={images} has no class folders, but {listed[0]}: for its labels give {images / listed[0]}"
        )
    names = list(list_images(images).images)
    if below := _splits_below(names):
        raise UserError(
            f"IMAGES={images} has no class folders, but {below}/ has folders for training and validation: give "
            f"IMAGES={images / below}"
        )
    yield "", {UNLABELED: {name: images / name for name in names}}


def _splits_below(names: Iterable[str]) -> str | None:
    """Return the highest folder with class folders in folders for training and validation, or None."""
    found: dict[str, set[str]] = defaultdict(set)
    for name in names:
        *folders, _class, _file = ["", *name.split("/")]
        for depth, folder in enumerate(folders):
            split = "train" if folder.lower() in TRAIN_NAMES else "val" if folder.lower() in VAL_NAMES else ""
            if split:
                found["/".join(folders[1:depth])].add(split)
    return min(
        (folder for folder, each in found.items() if len(each) == 2), key=lambda f: (f.count("/"), f), default=None
    )


def _nothing(images: Path, stray: list[str]) -> str:
    if tars := [name for name in stray if name.endswith(".tar")]:
        return f"IMAGES={images} has archives ({tars[0]}, ...): unpack them first, e.g. tar -xf {tars[0]}"
    return (
        f"IMAGES={images} has no pictures ({', '.join(IMAGE_SUFFIXES)}): give a folder of class folders, with or "
        "without train and val above them, a table of file names and labels, or a folder of pictures without labels"
    )


def _divided(images: Path, by_class: Mapping[str, Mapping[str, Path]]) -> Splits:
    """Divide each class: the pictures whose names have the lowest hashes are for validation."""
    divided: Splits = {"train": {}, "val": {}}
    for label, files in by_class.items():
        if len(files) < 2:
            raise UserError(
                f"IMAGES={images}: class {label} has one picture, and training and validation need one each"
            )
        order = sorted(
            files, key=lambda name: hashlib.sha256(f"{label}/{name}".encode(errors="surrogateescape")).digest()
        )
        num_val = max(1, round(len(order) / VAL_SHARE))
        divided["val"][label] = {name: files[name] for name in order[:num_val]}
        divided["train"][label] = {name: files[name] for name in order[num_val:]}
    return divided


def _listing(found: Splits) -> str:
    """Return which picture is in which split and class, a line each."""
    lines = (
        f"{split},{json.dumps(label, ensure_ascii=False)},{json.dumps(name, ensure_ascii=False)}"
        for split, by_class in found.items()
        for label, files in by_class.items()
        for name in files
    )
    return "\n".join(["split,class,file", *sorted(lines)]) + "\n"


def _targets(found: Splits) -> str:
    """Return which file each picture is in the end, a line each, in the order of `_listing`."""
    resolve = resolver()
    lines = (
        f"{json.dumps([split, label, name])} {resolve(file)}"
        for split, by_class in found.items()
        for label, files in by_class.items()
        for name, file in files.items()
    )
    return "\n".join(sorted(lines))


def _link(folder: Path, found: Splits, listing: str) -> None:
    """Make class folders of links, all or none."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(mkdtemp(prefix=".making-", dir=folder.parent))
    try:
        made.chmod(0o755)
        for split, by_class in found.items():
            (made / split).mkdir()
            for label, files in by_class.items():
                for name, file in files.items():
                    link = made / split / label / name
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.symlink_to(file.absolute())  # unresolved: a link on the way may be led elsewhere later
        (made / SPLIT_FILE).write_bytes(listing.encode(errors="surrogateescape"))
        made.rename(folder)
    except OSError as error:
        shutil.rmtree(made, ignore_errors=True)
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(
                f"a picture's path is too long for a link below {folder.parent}: shorten its name"
            ) from error
        raise
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def _configured(
    home: Path,
    images: Path,
    data: Path,
    splits: tuple[str, str],
    source: str,
    what: str,
    labeled: bool = True,
) -> OwnImages:
    """Write the data config, which names the only dataset that there is."""
    train, val = splits
    config = home / f"{_plain(images)}-{_digest(str(images.resolve()))}.yaml"
    dataset = {"name": "imagenet", "source": source, "layout": "folders", "root": ".", "train": train, "val": val}
    write_atomic(config, yaml.safe_dump({"name": _plain(images), "imagenet": dataset}, sort_keys=False))
    return OwnImages(data, config, labeled, f"IMAGES={images}: {what}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:10]


def _plain(images: Path) -> str:
    """Return the pictures' name, of characters that need no quotes anywhere."""
    name = images.resolve().name if images.is_dir() else images.resolve().parent.name
    return "".join(each if each.isascii() and (each.isalnum() or each in "-_") else "-" for each in name) or "pictures"


def _in_words(found: Splits) -> str:
    classes = {label for by_class in found.values() for label in by_class}
    number = sum(len(files) for by_class in found.values() for files in by_class.values())
    return f"{number:,} pictures " + ("without labels" if classes == {UNLABELED} else f"of {len(classes):,} classes")
