"""Find out how somebody stores own pictures, and arrange them as class folders of two splits, by links.

Understood are train and validation folders of class folders; one folder of class folders; a table of file names and
labels (`metadata.csv`, `metadata.jsonl`, or any .csv or .jsonl file); and a folder of pictures without labels.
"""

import csv
import errno
import hashlib
import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from tempfile import mkdtemp

import yaml

from reproduce.data.datasets.class_folders import is_hidden, list_class_folders, list_images
from reproduce.data.datasets.image_file import IMAGE_SUFFIXES
from reproduce.errors import UserError
from reproduce.files import write_atomic
from reproduce.parsing import parse_json

TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "valid", "validation", "test", "testing")
"""Names of split folders in any case; the first that is there counts."""
TABLES = ("metadata.csv", "metadata.jsonl")
FILE_COLUMNS = ("file_name", "filename", "file", "path", "image")
LABEL_COLUMNS = ("label", "class", "category", "target")
SPLIT_COLUMN = "split"
VAL_SHARE = 5
"""One picture of so many of a class is for validation, where no split is given."""
UNLABELED = ""
"""Stands for the class of pictures without labels: no folder and no label of a table can be empty."""
UNLABELED_FOLDER = "unlabeled"
"""The only class folder of pictures without labels."""
MAX_NAME_BYTES = 255
"""The longest name of a file or folder that file systems take."""
SPLIT_FILE, CONFIG_FILE = "split.csv", "data.yaml"

Splits = dict[str, dict[str, dict[str, Path]]]
"""Split ("train", "val", or "" where none is given) -> class -> name below the class folder -> file."""


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


def _read(images: Path, given: tuple[str, str] | None) -> Iterator[tuple[str, dict[str, dict[str, Path]]]]:
    """Yield each split with its pictures."""
    if images.is_file():
        yield from _read_table(images, "", {}).items()
        return
    if given:
        seen: dict[str, str] = {}
        for split, name in zip(("train", "val"), given, strict=True):
            tables = [images / name / table for table in TABLES if (images / name / table).is_file()]
            if not tables:
                raise UserError(f"IMAGES={images}: {name}/ has no class folders and no {' or '.join(TABLES)}")
            yield from _read_table(tables[0], split, seen).items()
        return
    if tables := [images / table for table in TABLES if (images / table).is_file()]:
        yield from _read_table(tables[0], "", {}).items()
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


def _read_table(table: Path, split: str, seen: dict[str, str]) -> Splits:
    """Return the pictures that a .csv or .jsonl file lists with a label, and perhaps a split, each.

    `seen` gives the row of each file that tables listed already, and gets this table's.
    """
    found: Splits = defaultdict(lambda: defaultdict(dict))
    taken: dict[tuple[str, str], _Links] = defaultdict(_Links)
    split_words: set[str] = set()
    resolve = _resolver()
    try:
        rows = list(_rows(table))
    except (UnicodeDecodeError, ValueError, csv.Error) as error:
        raise UserError(f"{table} can't be read as a table: {' '.join(str(error).split())}") from error
    for number, row in enumerate(rows, start=1):
        where = f"{table}, row {number}"
        if not isinstance(row, Mapping):
            raise UserError(f'{where} is no object with keys, but {str(row)[:50]!r}: write {{"file_name": ...}}')
        _refuse_repeated_columns(row, where)
        name, label = _value(row, FILE_COLUMNS), _value(row, LABEL_COLUMNS)
        if name is None:
            raise UserError(f"{where} names no file: the table needs a column {FILE_COLUMNS[0]} and a column label")
        file = _file_of_row(table, name, where)
        if label is not None and ("/" in label or is_hidden(label) or not label or not _is_file_name(label)):
            raise UserError(f"{where} has the label {_short(label)}, which can't be the name of a folder")
        label = UNLABELED if label is None else label
        target = resolve(file)
        if target in seen:
            raise UserError(f"{where} names {name} a second time, after {seen[target]}: list each file once")
        seen[target] = f"row {number}" if not split else where
        word = (_value(row, (SPLIT_COLUMN,)) or "").lower()
        split_words.add(word)
        part = split or _split(word, where)
        link = str(PurePosixPath(name)).replace("../", "").lstrip("/")
        if other := taken[part, label].add(link, name):
            raise UserError(f"{where} names {name}, whose link would be in the way of that of {other}: rename one")
        found[part][label][link] = file
    if not split:
        _check_splits(table, split_words)
    labels = {label for each in found.values() for label in each}
    if len(labels) == 1 and labels != {UNLABELED}:
        raise UserError(f"{table} has one class, {labels.pop()}, and every accuracy would be 100%")
    if not rows or (UNLABELED in labels and len(labels) > 1):
        raise UserError(f"{table} lists no pictures" if not rows else f"{table} has rows with a label and rows without")
    return found


class _Links:
    """Names of links below one class folder, of which none may be a folder that another one needs."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._folders: dict[str, str] = {}

    def add(self, link: str, name: str) -> str | None:
        """Take up the link of the file `name`, or return the name of the file whose link excludes it."""
        parents = [str(parent) for parent in PurePosixPath(link).parents][:-1]
        for excluded, by in ((link, self._names), (link, self._folders), *((each, self._names) for each in parents)):
            if excluded in by:
                return by[excluded]
        self._names[link] = name
        for parent in parents:
            self._folders.setdefault(parent, name)
        return None


def _file_of_row(table: Path, name: str, where: str) -> Path:
    """Return the picture that a row names. Raises `UserError` if it is not there, or if no run would read it."""
    if not all(map(_is_file_name, name.split("/"))):
        raise UserError(f"{where} names {_short(name)}, which can't be the name of a file")
    file = table.parent / name
    try:
        exists = file.is_file()
    except OSError as error:
        raise UserError(f"{where} names {_short(name)}, which can't be found ({error.strerror})") from error
    if not exists:
        raise UserError(f"{where} names {name}, which is not there: names are relative to {table.parent}")
    if not name.lower().endswith(IMAGE_SUFFIXES):
        raise UserError(f"{where} names {name}, which is no picture: pictures end in {', '.join(IMAGE_SUFFIXES)}")
    if hidden := [part for part in PurePosixPath(name).parts if part != ".." and is_hidden(part)]:
        raise UserError(f"{where} names {name}, and {hidden[0]} is hidden or a system's: move the picture elsewhere")
    return file


def _is_file_name(name: str) -> bool:
    """Return whether a file system takes a name; an empty one counts as taken."""
    try:
        return "\0" not in name and len(os.fsencode(name)) <= MAX_NAME_BYTES
    except UnicodeEncodeError:
        return False


def _short(text: str) -> str:
    """Quote a text, with escapes for what can't be printed, and cut it if it is long."""
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


def _refuse_repeated_columns(row: Mapping[str, object], where: str) -> None:
    counts = Counter(_column(key) for key in row)
    if twice := next((key for key, count in counts.items() if key and count > 1), None):
        raise UserError(f"{where} has the column {twice} twice (upper and lower case are the same): keep one of them")


def _check_splits(table: Path, words: set[str]) -> None:
    """Raise `UserError` if a table's splits leave pictures out, or mix what is for validation with what is not."""
    val, test = words & set(VAL_NAMES[:3]), words & set(VAL_NAMES[3:])
    if val and test:
        raise UserError(
            f"{table} has rows of split {min(val)} and rows of split {min(test)}, and there is one validation: remove "
            "the rows of one of them"
        )
    if "" in words and len(words) > 1:
        raise UserError(f"{table} has rows with a split and rows without: give each row a split, or none")


def _rows(table: Path) -> Iterator[Mapping[str, object]]:
    with open(table, newline="", encoding="utf-8-sig") as lines:
        if table.suffix.lower() == ".jsonl":
            yield from (parse_json(line) for line in lines if line.strip())
            return
        reader = csv.DictReader(lines)
        counts = Counter(map(_column, reader.fieldnames or ()))
        if twice := next((name for name, count in counts.items() if name and count > 1), None):
            raise ValueError(f"its header has the column {twice} twice (upper and lower case are the same)")
        yield from reader


def _column(name: object) -> str:
    """Return the name of a column as it is compared."""
    return str(name).lower().strip()


def _value(row: Mapping[str, object], columns: tuple[str, ...]) -> str | None:
    """Return the first of a row's columns that it has, as text."""
    lower = {_column(key): value for key, value in row.items()}
    found = next((lower[each] for each in columns if lower.get(each) not in (None, "")), None)
    return None if found is None else str(found).strip()


def _split(name: str, where: str) -> str:
    if name and name not in (*TRAIN_NAMES, *VAL_NAMES):
        raise UserError(f"{where} has the split {name!r}: write train or val")
    return "train" if name in TRAIN_NAMES else "val" if name else ""


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


def _resolver() -> Callable[[Path], str]:
    """Return a function that resolves links as `Path.resolve` does, but looks at each folder once."""
    folder_of = cache(os.path.realpath)

    def resolve(file: Path) -> str:
        inside = os.path.join(folder_of(file.parent), file.name)
        return os.path.realpath(inside) if os.path.islink(inside) else inside

    return resolve


def _targets(found: Splits) -> str:
    """Return which file each picture is in the end, a line each, in the order of `_listing`."""
    resolve = _resolver()
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
