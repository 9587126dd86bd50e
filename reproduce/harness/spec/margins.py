"""Margins as they were recorded before there was a result: results/<scale>/margins.json.

A margin is recorded when its run is planned, updated as long as the run has no result, and fixed from then on. One file
serves all runs of a scale, because a run's folder belongs to the run.
"""

from pathlib import Path

from reproduce.errors import UserError
from reproduce.files import read_json, write_json

RecordedMargins = dict[str, dict[str, float]]
"""Points by run_id and by the cell's `table_key` ("table3/SwAV/voc07")."""


def path(run_folder: str) -> Path:
    """Return the file that records the margins of a run."""
    return Path(run_folder).parent / "margins.json"


def read(file: Path) -> RecordedMargins:
    """Return the recorded margins, empty without the file. Raises `UserError` if the file is damaged."""
    recorded = read_json(file) if file.exists() else {}
    of_runs = list(recorded.values()) if isinstance(recorded, dict) else [None]
    points = [each for of_run in of_runs for each in (of_run.values() if isinstance(of_run, dict) else [None])]
    if not all(isinstance(each, int | float) for each in points):
        raise UserError(
            f"{file} is damaged: it does not hold margins in points by run and cell. Restore it, or delete it: "
            "verdicts then say that no margin was recorded before the result"
        )
    return dict(recorded)


def record(file: Path, to_do: RecordedMargins) -> None:
    """Record the margins of runs that have no result yet."""
    before = read(file)
    after = before | {run_id: before.get(run_id, {}) | points for run_id, points in to_do.items()}
    if after != before:
        write_json(file, after)
