"""Canaries: printed numbers that the authors' own checkpoint should give (tables/canaries.yaml)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from reproduce.errors import UserError, did_you_mean
from reproduce.harness.spec import tables
from reproduce.harness.spec.tables import Column, Margin
from reproduce.typed_yaml import load_yaml


@dataclass(frozen=True)
class Canary:
    """A printed number that a public checkpoint should give, by its place in the paper's tables.

    `checkpoint` is the file name of other authors' checkpoint, if the number is theirs.
    """

    table: str
    row: str
    column: str
    checkpoint: str = ""


@dataclass(frozen=True)
class Canaries:
    """The file `tables/canaries.yaml`: the file name of SwAV's checkpoint, and the numbers that are to come out."""

    checkpoint: str
    canaries: list[Canary]


@dataclass(frozen=True)
class CanaryTarget:
    """A canary looked up: what measures it, on which checkpoint, the printed number, and how close ours must come."""

    evaluation: str
    column: Column
    checkpoint: str
    printed: float
    margin: Margin


def load() -> Canaries:
    """Read `tables/canaries.yaml`. Raises `UserError` if it is wrong."""
    found: Canaries = load_yaml(Canaries, _path())
    return found


def _path() -> Path:
    return tables.TABLES_DIR / "canaries.yaml"


def targets(file: Canaries) -> Iterator[CanaryTarget]:
    """Look up each canary of a file in the paper's tables. Raises `UserError` if no number is printed there."""
    for canary in file.canaries:
        table = tables.load(canary.table, "paper")
        where = f"{_path()}: {canary.table}, {canary.row}, {canary.column}"
        rows = {row.label: row for row in table.rows}
        for what, name, valid in (("row", canary.row, rows), ("column", canary.column, table.columns)):
            if name not in valid:
                raise UserError(f"{where}: there is no {what} {name!r}: {did_you_mean(name, valid)}")
        row, column = rows[canary.row], table.columns[canary.column]
        printed = tables.parse_printed(row.cells.get(canary.column))
        margin = table.margin(row, canary.column, tables.public_weights_margins())
        evaluation = table.eval_of(row, canary.column)
        if printed is None or margin is None or not evaluation:
            raise UserError(f"{where}: no number of an evaluation is printed there")
        yield CanaryTarget(evaluation, column, canary.checkpoint or file.checkpoint, printed, margin)
