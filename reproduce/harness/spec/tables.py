"""The tables to make: one YAML file each, checked as it is read."""

import hashlib
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from reproduce.errors import UserError, did_you_mean

TABLES = Path(__file__).resolve().parents[3] / "tables"
NOT_TABLES = ("recorded",)
"""Files beside the tables that hold something else."""

FAILS = "fail"
"""What the paper prints in place of a number where the training does not converge."""

CLOCK = re.compile(r"(?P<whole>\d+)(?:h(?P<minutes>\d\d)|min(?P<seconds>\d\d)s)")
"""4h09 is a number of hours, 3min40s one of minutes."""

Printed = float | str | None
"""What the paper prints in a cell: a number, a time or `fail`, or (None) a dash."""


def number(printed: Printed) -> float | None:
    """The value of what is printed, in its column's unit; None where that is no number."""
    if not isinstance(printed, str):
        return printed
    clock = CLOCK.fullmatch(printed)
    return int(clock["whole"]) + int(clock["minutes"] or clock["seconds"]) / 60 if clock else None


@dataclass(frozen=True)
class Margin:
    """How far from the printed number still counts as the same, and the evidence for it."""

    points: float
    source: str


@dataclass(frozen=True)
class Correction:
    """What a misprinted number should be, and how that is known: an erratum of the paper, no failure of ours."""

    value: float
    source: str


@dataclass(frozen=True)
class BestOf:
    """Settings of an evaluation of which the authors took the best for each method."""

    key: str
    """Of the evaluation's config."""
    values: list[float]
    metric: str
    """What chooses, whichever metric the column shows; the highest is best."""


@dataclass(frozen=True)
class Column:
    """One column: the evaluation and metric that make its numbers, or why nothing does."""

    title: str
    unit: str
    decimals: int
    eval: str | None
    metric: str = ""
    best_of: BestOf | None = None
    measurement: str = ""
    """In place of an evaluation, what is measured of the network itself, without pictures (conf/measurement)."""
    controlled: bool = True
    """Whether rows must beat their controls here; not where an untrained trunk can do as well."""
    relative_to: str = ""
    """A row: numbers are compared as shares of its number, which another machine leaves as they are."""
    lower_is_better: bool = False
    """Of a cost: what lies above the margin is `worse`."""
    num_runs: int = 1
    """How many runs the authors' own number is the mean of."""
    group: str = ""
    note: str = ""
    margin: Margin | None = None
    not_run: str = ""


@dataclass(frozen=True)
class Row:
    """One row: the pretraining whose features are judged, or why none is.

    `cells` are what the paper prints, by column; a table of recorded numbers has none.
    """

    method: str
    setting: str = ""
    pretrain: str | None = None
    network: str | None = None
    """An experiment with this row's network, where nothing here trains it: what is measured of a network is ours."""
    not_run: str = ""
    reported: str = ""
    unavailable: str = ""
    weights: str = ""
    """Where a network trained by others is public."""
    note: str = ""
    rerun_by_authors: list[str] = field(default_factory=list)
    beats: str = ""
    """A control, another row: a number no more than `beats_by_points` above it is `worse`, wherever it lies."""
    beats_by_points: float = 5.0
    margins: dict[str, Margin] = field(default_factory=dict)
    """By column, where this row needs another margin than the column's."""
    errata: dict[str, Correction] = field(default_factory=dict)
    """By column."""
    cells: dict[str, Printed] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The row's name, one of its own within its table."""
        return f"{self.method}, {self.setting}" if self.setting else self.method


@dataclass(frozen=True)
class Table:
    """One table at one scale. `expected` says what its cells are held against."""

    table: str
    title: str
    caption: str
    section: str
    expected: Literal["printed", "recorded"]
    columns: dict[str, Column]
    rows: list[Row]
    draws: str = ""
    """A figure without printed numbers: what it draws of each row's pretraining against its epochs."""
    errata: list[str] = field(default_factory=list)
    """Of the text around the table."""

    @property
    def heading(self) -> str:
        """How the paper calls it: Table 3, Figure 2."""
        words = re.sub(r"(?<=[a-z])(?=\d)|_", " ", self.table)
        return words[0].upper() + words[1:]

    def has_cell(self, row: Row, column: str) -> bool:
        """Whether there is a number in this place, or a dash."""
        return self.expected == "recorded" or row.cells[column] is not None

    def margin(self, row: Row, column: str, given: bool = False) -> Margin | None:
        """The margin of one cell; where its network is `given`, not trained by us, that of its evaluation alone."""
        of_cell = row.margins.get(column, self.columns[column].margin)
        return _of_given_networks().get(self.columns[column].eval or "", of_cell) if given else of_cell

    def drawn_here(self) -> Iterator[Row]:
        """The rows whose training a figure draws."""
        return (row for row in self.rows if self.draws and row.pretrain)

    def made_here(self) -> Iterator[tuple[Row, str, str]]:
        """The cells that runs of ours can make, as row, column, and the experiment that makes them."""
        for row in self.rows:
            for key, column in self.columns.items():
                experiment = (column.eval and row.pretrain) or (column.measurement and (row.pretrain or row.network))
                if experiment and self.has_cell(row, key):
                    yield row, key, experiment


def scales() -> list[str]:
    """The scales that have tables."""
    return sorted(folder.name for folder in TABLES.iterdir() if folder.is_dir())


def names(scale: str) -> list[str]:
    """The tables of a scale, table10 after table9, then the rest. Raises `UserError` for an unknown scale."""
    if scale not in scales():
        raise UserError(f"there is no scale {scale!r}: {did_you_mean(scale, scales())}")
    found = [path.stem for path in (TABLES / scale).glob("*.yaml") if path.stem not in NOT_TABLES]
    return sorted(found, key=lambda name: (not name.startswith("table"), len(name), name))


def load(name: str, scale: str) -> Table:
    """Read and check one table. Raises `UserError` for an unknown scale or table, and for what is wrong in its file."""
    if name not in names(scale):
        elsewhere = [other for other in scales() if name in names(other)]
        instead = f"say SCALE={elsewhere[0]} (--scale)" if elsewhere else did_you_mean(name, names(scale))
        raise UserError(f"there is no table {name!r} at scale {scale}: {instead}")
    path = TABLES / scale / f"{name}.yaml"
    table: Table = read(Table, path)
    _check(table, path)
    return table


def read(kind: Any, path: Path) -> Any:
    """A YAML file as an instance of the dataclass `kind`. Raises `UserError` for what does not fit."""
    try:
        raw = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    return _read(kind, raw, str(path), "")


def _of_given_networks() -> dict[str, Margin]:
    """`tables/margins.yaml`, by evaluation."""
    found: dict[str, Margin] = read(dict[str, Margin], TABLES / "margins.yaml")
    return found


def sha256(name: str, scale: str) -> str:
    """Hash of a table's file, its margins among the rest."""
    return hashlib.sha256((TABLES / scale / f"{name}.yaml").read_bytes()).hexdigest()


def _read(kind: Any, raw: Any, file: str, key: str) -> Any:
    """Turn plain YAML data into `kind`: a dataclass, a container, or a plain type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if hasattr(kind, "__dataclass_fields__"):
        return _read_dataclass(kind, raw, file, key)
    if origin is dict and isinstance(raw, Mapping):
        return {name: _read(arguments[1], value, file, f"{key}.{name}") for name, value in raw.items()}
    if origin is list and isinstance(raw, list):
        return [_read(arguments[0], value, file, f"{key}[{index}]") for index, value in enumerate(raw)]
    if origin is types.UnionType:
        return _read_union(arguments, raw, file, key)
    if origin is Literal:
        if raw not in arguments:
            raise UserError(f"{file}: {key} is {raw!r}; {did_you_mean(str(raw), arguments)}")
        return raw
    if kind is float and isinstance(raw, int) and not isinstance(raw, bool):
        return float(raw)
    if origin is not None or not isinstance(raw, kind) or (isinstance(raw, bool) and kind is not bool):
        wanted = str(kind) if origin else kind.__name__
        raise UserError(f"{file}: {key or 'the file'} should be of type {wanted}, but it is {raw!r}")
    return raw


def _read_union(options: tuple[Any, ...], raw: Any, file: str, key: str) -> Any:
    if raw is None and types.NoneType in options:
        return None
    chosen = [option for option in options if option is not types.NoneType]
    plain = {option: (int, float) if option is float else typing.get_origin(option) or option for option in chosen}
    fitting = [option for option in chosen if isinstance(raw, plain[option])]
    return _read((fitting or chosen)[0], raw, file, key)


def _read_dataclass(kind: Any, raw: Any, file: str, key: str) -> Any:
    if not isinstance(raw, Mapping):
        raise UserError(f"{file}: {key or 'the file'} should have keys, but it is {raw!r}")
    known = {entry.name: entry for entry in fields(kind)}
    annotations = typing.get_type_hints(kind)
    for name in raw:
        if name not in known:
            raise UserError(f"{file}: there is no key {name!r} in {key or 'a table'}: {did_you_mean(str(name), known)}")
    for name, entry in known.items():
        if name not in raw and entry.default is MISSING and entry.default_factory is MISSING:
            raise UserError(f"{file}: {key or 'the table'} needs a value for {name!r}")
    prefix = f"{key}." if key else ""
    return kind(**{name: _read(annotations[name], value, file, prefix + name) for name, value in raw.items()})


def _check(table: Table, path: Path) -> None:
    """What types do not say."""
    if table.table != path.stem:
        raise UserError(f"{path}: table is {table.table!r}, but the file is named {path.stem!r}; make them the same")
    for key, column in table.columns.items():
        _check_column(table, column, f"{path}: columns.{key}")
    for index, row in enumerate(table.rows):
        _check_row(table, row, f"{path}: rows[{index}] ({row.label})")
    labels = [row.label for row in table.rows]
    if twice := {label for label in labels if labels.count(label) > 1}:
        raise UserError(f"{path}: two rows are named {min(twice)!r}; tell them apart by their setting")


def _check_column(table: Table, column: Column, where: str) -> None:
    if sum(map(bool, (column.eval, column.measurement, column.not_run))) != 1:
        raise UserError(f"{where} needs either an eval or a reason under not_run")
    if not column.not_run and not column.metric:
        raise UserError(f"{where} names an eval; it needs a metric too")
    if column.best_of and not (column.eval and column.best_of.values):
        raise UserError(f"{where}: best_of needs an eval, and values to choose from")
    if table.expected == "printed" and column.margin is None:
        raise UserError(f"{where} needs a margin with its source, to judge printed numbers by")
    labels = [row.label for row in table.rows]
    if column.relative_to and column.relative_to not in labels:
        raise UserError(f"{where}: relative_to names no row of the table: {did_you_mean(column.relative_to, labels)}")


def _check_row(table: Table, row: Row, where: str) -> None:
    if sum(map(bool, (row.pretrain, row.not_run, row.reported, row.unavailable))) != 1:
        raise UserError(f"{where} needs exactly one of pretrain, not_run, reported, unavailable")
    if table.expected == "printed" and set(row.cells) != set(table.columns):
        raise UserError(f"{where}: cells should be those of the columns: {', '.join(table.columns)}")
    labels = [other.label for other in table.rows]
    if row.beats and row.beats not in labels:
        raise UserError(f"{where}: beats names no row of the table: {did_you_mean(row.beats, labels)}")
    if row.network and row.pretrain:
        raise UserError(f"{where} is trained here; its network is that of its pretrain, leave the other out")
    if row.weights and not row.not_run:
        raise UserError(f"{where} names public weights; it needs a reason under not_run why nothing evaluates them")
    for key in [*row.cells, *row.rerun_by_authors, *row.margins, *row.errata]:
        if key not in table.columns:
            raise UserError(f"{where}: there is no column {key!r}: {did_you_mean(key, table.columns)}")
    for key, printed in row.cells.items():
        if isinstance(printed, str) and printed != FAILS and number(printed) is None:
            raise UserError(f"{where}: cells.{key} is {printed!r}: write a number, 4h09, 3min40s, {FAILS} or null")
