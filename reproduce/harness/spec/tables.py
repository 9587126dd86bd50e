"""The paper's tables as data: one YAML file each, validated when it is read."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from reproduce.errors import UserError, did_you_mean
from reproduce.harness.spec.evaluations import check_metrics
from reproduce.harness.spec.proper_names import spell_out
from reproduce.typed_yaml import load_yaml, parse_yaml

TABLES_DIR = Path(__file__).resolve().parents[3] / "tables"
PUBLIC_MARGINS = "margins.yaml"
NON_TABLES = ("recorded",)
"""Files beside the tables that hold something else."""

PRINTED_FAILURE = "fail"
"""What the paper prints instead of a number if the training does not converge."""

MAX_DECIMALS = 6
MAX_RUNS = 100
"""Larger numbers in a table are typing errors."""

CLOCK_TIME = re.compile(r"(?P<whole>\d+)(?:h(?P<minutes>\d\d)|min(?P<seconds>\d\d)s)")
"""4h09 is a number of hours, 3min40s one of minutes."""

Printed = float | str | None
"""The content of a printed cell: a number, a time, `fail`, or None for a dash."""


def parse_printed(printed: Printed) -> float | None:
    """Return a printed number or time in its column's unit (hours of 4h09, minutes of 3min40s), or None."""
    if not isinstance(printed, str):
        return printed
    clock = CLOCK_TIME.fullmatch(printed)
    return int(clock["whole"]) + int(clock["minutes"] or clock["seconds"]) / 60 if clock else None


@dataclass(frozen=True)
class Margin:
    """The distance from the printed number, in points, that still counts as equal; `source` is the evidence for it."""

    points: float
    source: str
    sd: float | None = None
    """The published standard deviation over seeds, in points, if there is one."""


@dataclass(frozen=True)
class Erratum:
    """The correction of a number that the paper misprints; `source` says how it is known."""

    value: float
    source: str


@dataclass(frozen=True)
class BestOf:
    """Values of a hyperparameter of which the authors report the best one for each method."""

    key: str
    """The key in the evaluation's config."""
    values: list[float]
    metric: str
    """The metric that selects the best value, whichever metric the column shows; higher is better."""


@dataclass(frozen=True)
class Column:
    """A column: the evaluation and the metric of its numbers, or under `not_run` why there are none."""

    title: str
    unit: str
    decimals: int
    eval: str | None
    metric: str = ""
    best_of: BestOf | None = None
    measurement: str = ""
    """Instead of an evaluation, a measurement of the network itself, without images (conf/measurement)."""
    has_control: bool = True
    """Whether rows must beat their controls in this column; false if an untrained trunk can do as well."""
    relative_to: str = ""
    """The label of a row. Numbers are compared as ratios to its number, which do not depend on the machine."""
    lower_is_better: bool = False
    """Whether the column is a cost: a number above the margin is `worse`."""
    num_runs: int = 1
    """The number of runs that the authors average."""
    group: str = ""
    note: str = ""
    margin: Margin | None = None
    not_run: str = ""


@dataclass(frozen=True)
class Row:
    """A row: the pretraining whose features are evaluated, or why there is none.

    `cells` holds what the paper prints, by column; it is empty in a table of recorded numbers.
    """

    method: str
    variant: str = ""
    pretrain: str | None = None
    network: str | None = None
    """An experiment with this row's network, if none trains this row: measurements of the network need no training."""
    architecture: str | None = None
    """This row's network by its name (`network.architecture`), if no experiment has it."""
    not_run: str = ""
    from_other_paper: str = ""
    unavailable: str = ""
    weights: str = ""
    """Where weights trained by others can be found."""
    note: str = ""
    evals: dict[str, str] = field(default_factory=dict)
    """Evaluations by column that replace the columns' own: the protocols behind numbers of other papers."""
    quoted_from: dict[str, str] = field(default_factory=dict)
    """By column, from whose paper the number is, and what of its protocol is known."""
    rerun_by_authors: list[str] = field(default_factory=list)
    may_fail: bool = False
    """Whether the training may collapse, as the paper's does, in a table that prints nothing."""
    control: str = ""
    """The label of the row to beat: a number that does not clearly beat it is `worse` in any case."""
    min_points_above_control: float = 5.0
    """How clearly, in points, if no difference is recorded."""
    margins: dict[str, Margin] = field(default_factory=dict)
    """Margins by column that replace the columns' own."""
    errata: dict[str, Erratum] = field(default_factory=dict)
    """Corrections of misprints by column."""
    cells: dict[str, Printed] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The row's name, unique within its table."""
        return f"{self.method}, {self.variant}" if self.variant else self.method


@dataclass(frozen=True)
class Table:
    """A table at one scale. `expected` says what its cells are compared with: printed or recorded numbers."""

    table: str
    title: str
    caption: str
    section: str
    expected: Literal["printed", "recorded"]
    columns: dict[str, Column]
    rows: list[Row]
    plots: str = ""
    """The metric that a figure without printed numbers plots over the epochs of each row's pretraining."""
    chart: str = ""
    """The column that the page draws as a chart, too: one place for each row, with its seeds."""
    errata: list[str] = field(default_factory=list)
    """Misprints in the text around the table."""

    @property
    def heading(self) -> str:
        """The table's name in the paper: Table 3, Figure 2."""
        return spell_out(self.table)

    def has_cell(self, row: Row, column: str) -> bool:
        """Return whether a cell holds a number rather than a dash."""
        return self.expected == "recorded" or row.cells[column] is not None

    def eval_of(self, row: Row, column: str) -> str | None:
        """Return the evaluation of a cell: the row's own or else the column's, None if it has none."""
        return row.evals.get(column, self.columns[column].eval)

    def margin(self, row: Row, column: str, public: Mapping[str, Margin] = MappingProxyType({})) -> Margin | None:
        """Return the margin of a cell. `public` are the margins of evaluations of public weights, if it is of those."""
        return public.get(self.eval_of(row, column) or "", row.margins.get(column, self.columns[column].margin))

    def curve_rows(self) -> Iterator[Row]:
        """Return the rows whose training curve a figure plots."""
        return (row for row in self.rows if self.plots and row.pretrain)

    def reproducible_cells(self) -> Iterator[tuple[Row, str, str]]:
        """Yield the row, the column and the experiment (or the architecture) of every cell that our runs can fill."""
        for row in self.rows:
            for key, column in self.columns.items():
                measured = column.measurement and (row.pretrain or row.network or row.architecture)
                experiment = (column.eval and row.pretrain) or measured
                if experiment and self.has_cell(row, key):
                    yield row, key, experiment


def scales() -> list[str]:
    """Return the scales that have tables. (`tables/golden/` is a folder without.)"""
    return sorted({path.parent.name for path in TABLES_DIR.glob("*/*.yaml")})


def names(scale: str) -> list[str]:
    """Return the tables of a scale, table10 after table9, then the rest. Raises `UserError` for an unknown scale."""
    if scale not in scales():
        raise UserError(f"there is no scale {scale!r}: {did_you_mean(scale, scales())}")
    found = [path.stem for path in (TABLES_DIR / scale).glob("*.yaml") if path.stem not in NON_TABLES]
    return sorted(found, key=lambda name: (not name.startswith("table"), len(name), name))


def load(name: str, scale: str) -> Table:
    """Load and validate a table. Raises `UserError` for an unknown scale or table, and for an error in its file."""
    if name not in names(scale):
        elsewhere = [other for other in scales() if name in names(other)]
        instead = f"try SCALE={elsewhere[0]} (--scale)" if elsewhere else did_you_mean(name, names(scale))
        raise UserError(f"there is no table {name!r} at scale {scale}: {instead}")
    path = TABLES_DIR / scale / f"{name}.yaml"
    table: Table = load_yaml(Table, path)
    _check(table, path)
    return table


def parse(text: str, path: Path) -> Table:
    """Return the table in a text that stood in the file `path` at some time. Raises `UserError` for an error in it."""
    table: Table = parse_yaml(Table, text, str(path))
    _check(table, path)
    return table


def public_weights_margins() -> dict[str, Margin]:
    """Load the margins of evaluations of public weights, by evaluation: they cover the evaluation, no training."""
    found: dict[str, Margin] = load_yaml(dict[str, Margin], TABLES_DIR / PUBLIC_MARGINS)
    return found


def sha256(name: str, scale: str) -> str:
    """Return the SHA-256 of a table's file, which includes its margins."""
    return hashlib.sha256((TABLES_DIR / scale / f"{name}.yaml").read_bytes()).hexdigest()


def _check(table: Table, path: Path) -> None:
    """Check what the types do not express."""
    if table.table != path.stem:
        raise UserError(f"{path}: table is {table.table!r}, but the file is named {path.stem!r}; make them the same")
    if table.chart and table.chart not in table.columns:
        raise UserError(f"{path}: chart names no column: {did_you_mean(table.chart, table.columns)}")
    for key in table.columns:
        _check_column(table, key, f"{path}: columns.{key}")
    for index, row in enumerate(table.rows):
        _check_row(table, row, f"{path}: rows[{index}] ({row.label})")
    labels = [row.label for row in table.rows]
    if twice := {label for label in labels if labels.count(label) > 1}:
        raise UserError(f"{path}: two rows are named {min(twice)!r}; tell them apart by their variant")


def _check_column(table: Table, key: str, where: str) -> None:
    column = table.columns[key]
    if sum(map(bool, (column.eval, column.measurement, column.not_run))) != 1:
        raise UserError(f"{where} needs either an eval or a reason under not_run")
    if not column.not_run and not column.metric:
        raise UserError(f"{where} names an eval; it needs a metric too")
    _check_numbers(column, where)
    if column.eval:
        for name in dict.fromkeys([column.eval, *(row.evals[key] for row in table.rows if key in row.evals)]):
            check_metrics("eval", name, [column.metric, *([column.best_of.metric] if column.best_of else [])], where)
    if column.measurement:
        check_metrics("measurement", column.measurement, [column.metric], where)
    if column.best_of and not (column.eval and column.best_of.values):
        raise UserError(f"{where}: best_of needs an eval, and values to choose from")
    if table.expected == "printed" and column.margin is None:
        raise UserError(f"{where} needs a margin with its source, to judge printed numbers by")
    labels = [row.label for row in table.rows]
    if column.relative_to and column.relative_to not in labels:
        raise UserError(f"{where}: relative_to names no row of the table: {did_you_mean(column.relative_to, labels)}")


def _check_numbers(column: Column, where: str) -> None:
    if not 0 <= column.decimals <= MAX_DECIMALS:
        raise UserError(f"{where}.decimals is {column.decimals}: it must be from 0 to {MAX_DECIMALS}")
    if not 1 <= column.num_runs <= MAX_RUNS:
        raise UserError(f"{where}.num_runs is {column.num_runs}: it must be from 1 to {MAX_RUNS}")
    if column.margin:
        _check_margin(column.margin, f"{where}.margin")


def _check_margin(margin: Margin, where: str) -> None:
    if not margin.points > 0:
        raise UserError(f"{where}.points is {margin.points:g}: a margin must be more than 0")
    if margin.sd is not None and not margin.sd > 0:
        raise UserError(f"{where}.sd is {margin.sd:g}: a spread must be more than 0")


def _check_row(table: Table, row: Row, where: str) -> None:
    if sum(map(bool, (row.pretrain, row.not_run, row.from_other_paper, row.unavailable))) != 1:
        raise UserError(f"{where} needs exactly one of pretrain, not_run, from_other_paper, unavailable")
    if table.expected == "printed" and set(row.cells) != set(table.columns):
        raise UserError(f"{where}: cells should be those of the columns: {', '.join(table.columns)}")
    labels = [other.label for other in table.rows]
    if row.control and row.control not in labels:
        raise UserError(f"{where}: control names no row of the table: {did_you_mean(row.control, labels)}")
    if (row.network or row.architecture) and row.pretrain:
        raise UserError(f"{where} is trained here; its network is that of its pretrain, leave the other out")
    if row.network and row.architecture:
        raise UserError(f"{where} has a network and an architecture; name one of them")
    if row.weights and not row.not_run:
        raise UserError(f"{where} names public weights; it needs a reason under not_run why nothing evaluates them")
    for key in [*row.cells, *row.evals, *row.quoted_from, *row.rerun_by_authors, *row.margins, *row.errata]:
        if key not in table.columns:
            raise UserError(f"{where}: there is no column {key!r}: {did_you_mean(key, table.columns)}")
    if wrong := [key for key in row.evals if not table.columns[key].eval]:
        raise UserError(f"{where}: evals.{wrong[0]} replaces nothing, because the column has no eval")
    _check_row_numbers(row, where)


def _check_row_numbers(row: Row, where: str) -> None:
    if row.min_points_above_control < 0:
        raise UserError(f"{where}.min_points_above_control is {row.min_points_above_control:g}: it must be 0 or more")
    for key, margin in row.margins.items():
        _check_margin(margin, f"{where}.margins.{key}")
    if wrong := [key for key in row.errata if not isinstance(row.cells.get(key), float)]:
        raise UserError(f"{where}: errata.{wrong[0]} corrects nothing, because no number is printed there")
    for key, printed in row.cells.items():
        if isinstance(printed, str) and printed != PRINTED_FAILURE and parse_printed(printed) is None:
            raise UserError(
                f"{where}: cells.{key} is {printed!r}: write a number, 4h09, 3min40s, {PRINTED_FAILURE} or null"
            )
