"""The recorded numbers of a scale that the paper has none for: tables/<scale>/recorded.yaml."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reproduce.errors import UserError
from reproduce.harness.spec import tables
from reproduce.parsing import parse_yaml

HEADER = ("commit", "dirty", "date", "seeds", "machine", "packages")
OPTIONAL = ("same_seed",)
"""What made the numbers of the same seed, if they were added later."""


@dataclass(frozen=True)
class RecordedCell:
    """One measured number over several seeds."""

    values: list[float]
    num_test_images: int
    run_id: str
    """The run of the first seed, which changes with the config."""
    same_seed: tuple[float, ...] = ()
    """The first seed's numbers under other arithmetic, where they were recorded."""


@dataclass(frozen=True)
class RecordedNumbers:
    """The file `tables/<scale>/recorded.yaml`."""

    header: dict[str, Any] = field(default_factory=dict)
    cells: dict[str, RecordedCell] = field(default_factory=dict)
    wall_seconds: dict[str, float] = field(default_factory=dict)
    """Mean wall time of a run, by "kind/name"."""

    @property
    def commits(self) -> list[str]:
        """The commits of the code that gave the numbers."""
        return [each.strip() for each in str(self.header.get("commit") or "").split(",") if each.strip()]

    def seed_by_seed(self, *metric_keys: str) -> list[list[float]]:
        """Return the values of several cells for the seeds that all of them have, in the same order.

        A cell with several values per seed has none that belongs to one seed alone.
        """
        seeds = self.header["seeds"]
        values = [self.cells[key].values for key in metric_keys]
        common = 0 if any(len(each) > len(seeds) for each in values) else min(map(len, values))
        return [each[:common] for each in values]


def path(scale: str) -> Path:
    """Return the file with the recorded numbers of a scale."""
    return tables.TABLES_DIR / scale / "recorded.yaml"


def load(scale: str) -> RecordedNumbers:
    """Load the recorded numbers of a scale, empty without the file. Raises `UserError` if the file is damaged."""
    file = path(scale)
    if not file.exists():
        return RecordedNumbers()
    try:
        text = file.read_text()
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is damaged ({error}); restore it from git, or record it again") from error
    return parse(text, file)


def parse(text: str, file: Path) -> RecordedNumbers:
    """Return the recorded numbers of a text; `file` is where it is from. Raises `UserError` if it is damaged."""
    try:
        raw = parse_yaml(text)
        cells = {key: read_cell(key, cell) for key, cell in raw["cells"].items()}
        return RecordedNumbers(
            _read_header(raw["recorded"]), cells, {key: float(value) for key, value in raw["wall_seconds"].items()}
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"no key {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise UserError(f"{file} is damaged ({what}); restore it from git, or record it again") from error


def _read_header(found: dict[str, Any]) -> dict[str, Any]:
    header = {key: found[key] for key in HEADER} | {key: found[key] for key in OPTIONAL if key in found}
    if not header["seeds"] or not header["machine"].keys() >= {"cpu", "cores"}:
        raise ValueError("recorded names no seeds, or not the machine")
    return header


def read_cell(key: str, cell: dict[str, Any]) -> RecordedCell:
    """Return a cell of the file. Raises an error if an entry is missing or is not of the form that is written."""
    values = [float(value) for value in cell["values"]]
    same_seed = tuple(float(value) for value in cell.get("same_seed", ()))
    if len(values) < 2 or not all(map(math.isfinite, (*values, *same_seed))):
        raise ValueError(f"cells.{key}.values is {values}, not the numbers of several seeds")
    return RecordedCell(values, int(cell["num_test_images"]), str(cell["run_id"]), same_seed)
