"""Record the numbers of a finished plan as the scale's expected ones: tables/<scale>/recorded.yaml."""

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from reproduce.errors import UserError
from reproduce.files import write_atomic
from reproduce.harness import revision
from reproduce.harness.plan.model import Plan, Run
from reproduce.harness.spec import baseline
from reproduce.harness.verdict import stats
from reproduce.system import cpu_name

MIN_SEEDS = 5


def refuse_dirty(allow_dirty: bool) -> None:
    """Raise `UserError` if the checkout differs from its commit: nobody could reproduce its numbers."""
    if not allow_dirty and (not revision.commit() or revision.dirty()):
        raise UserError(
            "the checkout differs from its commit; commit the changes, or pass --allow-dirty, which marks the record"
        )


def record(plan: Plan, allow_dirty: bool = False) -> Path:
    """Record every cell of a finished plan and return the file.

    Raises `UserError` if a run has no result, or if the results come from more than one version of the runs' code.
    """
    cells: dict[str, dict[str, Any]] = {}
    found = {run.run_id: run.read_result() for run in plan.runs.values()}
    missing = [run.label for run in plan.runs.values() if found[run.run_id] is None]
    if missing:
        raise UserError(f"cannot record: {len(missing)} runs have no result ({missing[0]}, ...); run them first")
    done = {name: result for name, result in found.items() if result is not None}
    commits = {str(result["provenance"]["git_commit"]) for result in done.values()}
    dirty = any(result["provenance"]["git_dirty"] for result in done.values())
    if not allow_dirty and (dirty or len({revision.run_code_fingerprint(commit) for commit in commits}) > 1):
        what = "uncommitted code" if dirty else f"commits whose runs differ ({', '.join(sorted(commits))})"
        where = f"results/{plan.request.scale}"
        raise UserError(f"cannot record: results in {where} were made by {what}; delete them and record again")
    for cell in plan.cells:
        of_seeds = [done[name] for name in cell.runs.values()]
        values = [float(result["metrics"][cell.metric]) for result in of_seeds]
        cells[cell.metric_key] = {
            "n": len(values),
            "mean": round(stats.mean(values), 4),
            "sd": round(stats.sd(values) or 0.0, 4),
            "values": [round(value, 4) for value in values],
            "num_test_images": _num_test_images(plan.runs[next(iter(cell.runs.values()))], of_seeds[0]),
            "run_id": next(iter(cell.runs.values())),
        }
    wall: dict[str, list[float]] = {}
    for run in plan.runs.values():
        wall.setdefault(f"{run.kind}/{run.name}", []).append(float(done[run.run_id]["wall_seconds"]))
    header = {
        "commit": ", ".join(sorted(commits)),
        "dirty": dirty,
        "date": datetime.now(UTC).date().isoformat(),
        "seeds": list(plan.request.seeds),
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "system": f"{platform.system()} {platform.machine()}"},
        "packages": next(iter(done.values()))["provenance"]["packages"],
    }
    content = {
        "recorded": header,
        "cells": cells,
        "wall_seconds": {key: round(stats.mean(times), 1) for key, times in wall.items()},
    }
    opening = "# Written by `python -m reproduce record-baseline`; not by hand. Percent; sd with divisor n - 1.\n"
    target = baseline.path(plan.request.scale)
    write_atomic(target, opening + yaml.safe_dump(content, sort_keys=False, width=120, default_flow_style=None))
    return target


def _num_test_images(run: Run, result: dict[str, Any]) -> int:
    try:
        return int(result["counts"]["num_test_images"])
    except KeyError as error:
        raise UserError(
            f"{run.result} has no number of test images: evals/{run.workload.method}.py has to "
            "set context.run.counts['num_test_images']"
        ) from error
