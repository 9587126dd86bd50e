"""Read a table of own pictures: which file is of which class and split (.csv or .jsonl)."""

import csv
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path, PurePosixPath

from reproduce.data.datasets.class_folders import is_hidden
from reproduce.data.datasets.image_file import IMAGE_SUFFIXES
from reproduce.errors import UserError
from reproduce.parsing import parse_json

TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "valid", "validation", "test", "testing")
"""Names of split folders in any case; the first that is there counts."""
FILE_COLUMNS = ("file_name", "filename", "file", "path", "image")
LABEL_COLUMNS = ("label", "class", "category", "target")
SPLIT_COLUMN = "split"
UNLABELED = ""
"""Stands for the class of pictures without labels: no folder and no label of a table can be empty."""
MAX_NAME_BYTES = 255
"""The longest name of a file or folder that file systems take."""

Splits = dict[str, dict[str, dict[str, Path]]]
"""Split ("train", "val", or "" where none is given) -> class -> name below the class folder -> file."""


def read_table(table: Path, split: str, seen: dict[str, str]) -> Splits:
    """Return the pictures that a .csv or .jsonl file lists with a label, and perhaps a split, each.

    `seen` gives the row of each file that tables listed already, and gets this table's.
    """
    found: Splits = defaultdict(lambda: defaultdict(dict))
    taken: dict[tuple[str, str], _Links] = defaultdict(_Links)
    split_words: set[str] = set()
    resolve = resolver()
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


def resolver() -> Callable[[Path], str]:
    """Return a function that resolves links as `Path.resolve` does, but looks at each folder once."""
    folder_of = cache(os.path.realpath)

    def resolve(file: Path) -> str:
        inside = os.path.join(folder_of(file.parent), file.name)
        return os.path.realpath(inside) if os.path.islink(inside) else inside

    return resolve
