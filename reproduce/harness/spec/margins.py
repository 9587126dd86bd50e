"""Margins are fixed before the results that they judge: what was noted when a run was planned, kept beside the results.

A note is renewed as long as its run has no result, and stands from then on. It is a file of its own for all runs of a
scale: a run's folder belongs to the run.
"""

from pathlib import Path

from reproduce.errors import UserError
from reproduce.files import read_json, write_json

Notes = dict[str, dict[str, float]]
"""Points by place of the cell ("table3/SwAV/voc07"), by run_id."""


def path(run_folder: str) -> Path:
    """Where the margins of a run are noted."""
    return Path(run_folder).parent / "margins.json"


def read(file: Path) -> Notes:
    """What was noted; nothing, where nothing was. Raises `UserError` for a file that is cut short or holds others."""
    notes = read_json(file) if file.exists() else {}
    of_runs = list(notes.values()) if isinstance(notes, dict) else [None]
    points = [each for of_run in of_runs for each in (of_run.values() if isinstance(of_run, dict) else [None])]
    if not all(isinstance(each, int | float) for each in points):
        raise UserError(
            f"{file} is damaged (not margins in points, by run and cell); restore it, or delete it: what is judged by "
            "it then says that no margin was noted before"
        )
    return dict(notes)


def note(file: Path, to_do: Notes) -> None:
    """Note the margins of runs that have no result yet."""
    before = read(file)
    after = before | {run_id: before.get(run_id, {}) | points for run_id, points in to_do.items()}
    if after != before:
        write_json(file, after)
