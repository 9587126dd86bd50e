"""Every number of ours in one flat file, for pandas and spreadsheets: a line for each seed of each cell."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from reproduce.errors import UserError
from reproduce.files import read_json, write_atomic

FILE = "cells.csv"
OF_TABLE = ("scale", "level", "table")
OF_CELL = ("printed", "expected", "verdict", "mean", "sd", "difference", "interval_of", "p_value")
OF_RESULT = ("git_commit", "git_dirty", "hardware")
COLUMNS = (
    *(*OF_TABLE, "row", "column", "unit", *OF_CELL, "interval_low", "interval_high"),
    *("seed", "value", "run_id", *OF_RESULT, "finished"),
)
"""`expected` is what ours is compared with. From `seed` on, values are of one seed: empty if the cell has no number."""


def write(folder: Path, tables: Sequence[Mapping[str, Any]]) -> None:
    """Write the cells of tables, as `table_as_data` gives them, to `folder`."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, COLUMNS)
    writer.writeheader()
    writer.writerows(_lines(tables))
    write_atomic(folder / FILE, file.getvalue())


def _lines(tables: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for table in tables:
        folders = {run["run_id"]: run["folder"] for run in table["runs"]}
        for row in table["rows"]:
            for key, cell in row["cells"].items():
                if cell is None:
                    continue
                low, high = cell.get("interval") or (None, None)
                of_cell = {
                    **{name: table[name] for name in OF_TABLE},
                    **{name: cell.get(name) for name in OF_CELL},
                    "row": row["label"],
                    "column": key,
                    "unit": table["columns"][key]["unit"],
                    "interval_low": low,
                    "interval_high": high,
                }
                yield from ({**of_cell, **of_seed} for of_seed in _seeds(cell, folders))


def _seeds(cell: Mapping[str, Any], folders: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Yield what is of one seed for each number of a cell; an empty entry if there is none."""
    by_seed = {run_id.split("-")[-2].removeprefix("s"): run_id for run_id in cell["run_ids"]}
    for seed, value in cell["values"].items():
        run_id = by_seed.get(str(seed), "")
        yield {"seed": seed, "value": value, "run_id": run_id} | _origin(folders.get(run_id, ""))
    if not cell["values"]:
        yield {}


def _origin(folder: str) -> dict[str, Any]:
    """Return where and when a result was made, as far as it says."""
    try:
        result = read_json(Path(folder) / "result.json")
        provenance = {key: result["provenance"].get(key) for key in OF_RESULT}
    except (UserError, OSError, KeyError, TypeError, AttributeError):
        return {}
    return {name: _plain(value) for name, value in (*provenance.items(), ("finished", result.get("finished")))}


def _plain(value: Any) -> Any:
    """Return a value that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value
