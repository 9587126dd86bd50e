"""Make the pictures of finished pretrainings: in a process that has torch, once for each checkpoint."""

import sys
from collections.abc import Sequence
from pathlib import Path

from reproduce.engine.runs.picture_files import MAP, NEIGHBORS, read_pictures
from reproduce.errors import UserError
from reproduce.files import read_json
from reproduce.harness.execute.process_group import run_module
from reproduce.harness.plan.model import Plan
from reproduce.harness.plan.run_state import valid_result
from reproduce.harness.report.render_pictures import write_map
from reproduce.harness.report.tracking import log_pictures

AUTOMATIC_SCALES = ("smoke", "lite")
"""Scales whose networks are small: seconds for each, on the CPU that has just trained them for minutes."""


def make_pictures(run_folders: Sequence[Path], scale: str, data_root: str = "") -> None:
    """Make the pictures of finished pretrainings that have none of their checkpoint yet, and log them to W&B.

    `data_root` replaces the folder of images that each run's config names. Raises `UserError` if they can't be made.
    """
    lacking = [folder for folder in run_folders if not has_pictures(folder)]
    if not lacking:
        return
    print(f"drawing what {', '.join(folder.name for folder in lacking)} learned", flush=True)
    options = ["--data", data_root] if data_root else []
    error = run_module("reproduce.pictures", *map(str, lacking), *options)
    for folder in lacking:
        for picture in read_pictures(folder, checkpoint_of(folder)):
            if picture.name == MAP:
                write_map(folder, picture)
    if problem := log_pictures(scale, list(filter(has_pictures, lacking))):
        print(f"W&B has no pictures ({problem})", file=sys.stderr)
    if error:
        raise UserError(error)


def has_pictures(run_folder: Path) -> bool:
    """Return whether the pictures of a run's present checkpoint are there; neighbors are the last to be written."""
    return any(picture.name == NEIGHBORS for picture in read_pictures(run_folder, checkpoint_of(run_folder)))


def checkpoint_of(run_folder: Path) -> str:
    """Return the SHA-256 of the checkpoint that a run's result is of; "" for a result of an early version."""
    return str(read_json(run_folder / "result.json").get("provenance", {}).get("checkpoint_sha256", ""))


def make_pictures_of_plan(plan: Plan) -> None:
    """Make the pictures of a plan's pretrainings of the first seed, if they are small; a failure is a warning.

    On clusters the machine with the results may be one that must not compute.
    """
    if plan.request.scale not in AUTOMATIC_SCALES or plan.cluster["executor"] != "local":
        return
    try:
        folders = [
            Path(run.folder)
            for run in plan.runs.values()
            if run.kind == "pretrain" and run.seed == plan.request.seeds[0] and valid_result(plan, run)
        ]
        make_pictures(
            [each for each in folders if (each / "checkpoint.pt").exists()], plan.request.scale, plan.data_root
        )
    except (UserError, OSError) as error:
        print(f"warning: no pictures of this plan's pretrainings: {error}", file=sys.stderr)
