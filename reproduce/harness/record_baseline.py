"""Record the numbers of a finished plan as the scale's expected ones: tables/<scale>/recorded.yaml."""

import os
import platform
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from reproduce.config import DETECTORS
from reproduce.errors import UserError
from reproduce.files import write_atomic
from reproduce.harness import arithmetics, revision
from reproduce.harness.arithmetics import Setting
from reproduce.harness.execute.gpus import visible_gpus
from reproduce.harness.plan import build
from reproduce.harness.plan.model import CACHE, Cell, Plan, Run
from reproduce.harness.spec import baseline, tables
from reproduce.harness.spec.baseline import RecordedCell, RecordedNumbers
from reproduce.harness.verdict import stats
from reproduce.harness.verdict.family import Family, lowest_difference
from reproduce.harness.verdict.unchanged import unchanged
from reproduce.parsing import parse_yaml
from reproduce.system import cpu_name

MIN_SEEDS = 5
OTHER_ARITHMETIC = CACHE / "other-arithmetic"
FINETUNING = {"finetune", *DETECTORS}
"""The protocols that train the trunk: rounding moves their numbers as far as a seed does."""
UNTRAINED = "none"
"""The method of a pretraining that saves its initial weights."""


def refuse_dirty(allow_dirty: bool) -> None:
    """Raise `UserError` if the checkout differs from its commit: nobody could reproduce its numbers."""
    if not allow_dirty and (not revision.commit() or revision.dirty()):
        raise UserError(
            "the checkout differs from its commit; commit the changes, or pass --allow-dirty, which marks the record"
        )


def without_recorded_seeds(plan: Plan) -> tuple[Plan, RecordedNumbers]:
    """Return the plan of the seeds that are still to be recorded, and what stands recorded beside them.

    So a recording grows by seeds, on several machines if need be.
    """
    before = recorded_before(plan)
    if not before.cells:
        return plan, before
    seeds = tuple(seed for seed in plan.request.seeds if seed not in before.header["seeds"])
    return build.build_plan(replace(plan.request, seeds=seeds)), before


def recorded_before(plan: Plan) -> RecordedNumbers:
    """Return what is recorded of a plan's cells, if these runs and this code would give it again; else nothing."""
    recorded = _recorded_by_this_code(plan.request.scale)
    if not recorded.cells:
        return RecordedNumbers()
    seeds = recorded.header["seeds"]
    known = {cell.metric_key: recorded.cells.get(cell.metric_key) for cell in plan.cells}
    same_runs = all(
        (each := known[cell.metric_key]) and each.run_id == cell.runs.get(seeds[0]) and len(each.values) == len(seeds)
        for cell in plan.cells
    )
    if not same_runs or set(plan.request.seeds) <= set(seeds):
        return RecordedNumbers()
    return RecordedNumbers(recorded.header, {key: each for key, each in known.items() if each}, recorded.wall_seconds)


def _recorded_by_this_code(scale: str) -> RecordedNumbers:
    """Return what is recorded of a scale, if the code of runs was and is committed and the same; else nothing."""
    recorded = baseline.load(scale)
    if not recorded.cells or recorded.header["dirty"]:
        return RecordedNumbers()
    now = revision.run_code_fingerprint(revision.commit())
    same_code = all(revision.run_code_fingerprint(each) == now for each in recorded.commits)
    return recorded if same_code else RecordedNumbers()


def recorded_beside(plan: Plan) -> tuple[RecordedNumbers, tuple[str, ...]]:
    """Return the recorded numbers of other tables that stay when the plan's are recorded, and these tables' names.

    So a recording grows by tables, too. A table stays if today's code and configs would give all of its numbers again,
    for the plan's seeds.
    """
    recorded = _recorded_by_this_code(plan.request.scale)
    if not recorded.cells or tuple(recorded.header["seeds"]) != plan.request.seeds:
        return RecordedNumbers(), ()
    staying: dict[str, RecordedCell] = {}
    names = []
    for name in tables.names(plan.request.scale):
        if name in plan.tables or tables.load(name, plan.request.scale).expected != "recorded":
            continue
        cells = build.build_plan(replace(plan.request, tables=(name,), seeds=plan.request.seeds[:1])).cells
        known = {cell.metric_key: recorded.cells.get(cell.metric_key) for cell in cells}
        if all((each := known[cell.metric_key]) and each.run_id == next(iter(cell.runs.values())) for cell in cells):
            staying |= {key: each for key, each in known.items() if each}
            names.append(name)
    return RecordedNumbers(recorded.header, staying, recorded.wall_seconds), tuple(names)


def under_other_arithmetic(plan: Plan, settings: Sequence[Setting] | None = None) -> list[tuple[Setting, Plan]]:
    """Return the runs of the plan's first seed that train no trunk, once for each setting.

    Without `settings`, these are all in which this processor computes otherwise than by itself. Their results are kept
    apart. None for a cluster or GPUs, whose arithmetic no setting here changes.
    """
    if plan.cluster["executor"] != "local" or visible_gpus():
        return []
    cells = [cell for cell in plan.cells if not cell.runs_by_override and not _trains_a_trunk(plan, cell)]
    names = {name for cell in cells for name in _of_first_seed(plan, cell)}
    if not names:
        return []

    def elsewhere(run: Run, home: Path) -> Run:
        folder = str(home / plan.request.scale / run.run_id)
        return replace(run, folder=folder, overrides=[*run.overrides, f"paths.results={home}"])

    found = []
    for setting in arithmetics.unlike_this_machine() if settings is None else settings:
        home = OTHER_ARITHMETIC / re.sub(r"\W+", "-", setting.name)
        runs = {name: elsewhere(run, home) for name, run in plan.runs.items() if name in names}
        found.append((setting, replace(plan, runs=runs, cells=cells)))
    return found


def _trains_a_trunk(plan: Plan, cell: Cell) -> bool:
    """Return whether any network behind a cell is trained, before it is evaluated or by that; unknown ones count."""
    run = plan.runs[next(iter(cell.runs.values()))]
    parents = run.parents
    return (
        run.workload.method in FINETUNING
        or not parents
        or any(plan.runs[name].workload.method != UNTRAINED for name in parents)
    )


def _of_first_seed(plan: Plan, cell: Cell) -> list[str]:
    """Return the runs behind a cell's number of the plan's first seed, parents first."""
    name = cell.runs[plan.request.seeds[0]]
    return [*plan.runs[name].parents, name]


def record(
    plan: Plan, allow_dirty: bool = False, before: RecordedNumbers | None = None, others: Sequence[Plan] = ()
) -> Path:
    """Record every cell of a finished plan, with the seeds recorded `before`, and return the file.

    Tables that are recorded for the same seeds stay (`recorded_beside`). `others` are plans under other arithmetic.
    Raises `UserError` if a run has no result, or if the results come from more than one version of the runs' code or of
    the packages.
    """
    before = before or RecordedNumbers()
    beside, tables_beside = recorded_beside(plan)
    earlier = before if before.cells else beside
    done = _results(plan)
    elsewhere = [_results(each) for each in others]
    commits, dirty = _made_by(plan, [done, *elsewhere], allow_dirty)
    packages = next(iter(done.values()))["provenance"]["packages"]
    if earlier.cells and earlier.header["packages"] != packages:
        raise UserError(
            f"cannot record: the numbers in {baseline.path(plan.request.scale)} were made by other versions of "
            "packages; install those, or delete that file and record again"
        )
    cells = {key: _entry(known) for key, known in beside.cells.items()}
    for cell in plan.cells:
        of_seeds = [done[name] for name in cell.runs.values()]
        known = before.cells.get(cell.metric_key)
        values = [*(known.values if known else ()), *(float(result["metrics"][cell.metric]) for result in of_seeds)]
        num_test_images = _num_test_images(plan.runs[next(iter(cell.runs.values()))], of_seeds[0])
        first = next(iter(cell.runs.values()))
        same_seed = [float(each[first]["metrics"][cell.metric]) for each in elsewhere if first in each]
        found = RecordedCell(values, num_test_images, first, tuple(same_seed))
        if known:
            found = replace(found, run_id=known.run_id, same_seed=known.same_seed)
        cells[cell.metric_key] = _entry(found)
    wall: dict[str, list[float]] = {}
    for run in plan.runs.values():
        wall.setdefault(f"{run.kind}/{run.name}", []).append(float(done[run.run_id]["wall_seconds"]))
    machine = {"cpu": cpu_name(), "cores": os.cpu_count(), "system": f"{platform.system()} {platform.machine()}"}
    if earlier.cells:
        commits |= set(earlier.commits)
        if machine["cpu"] not in earlier.header["machine"]["cpu"].split(", "):
            machine["cpu"] = f"{earlier.header['machine']['cpu']}, {machine['cpu']}"
    header = {
        "commit": ", ".join(sorted(commits)),
        "dirty": dirty,
        "date": datetime.now(UTC).date().isoformat(),
        "seeds": [*before.header.get("seeds", ()), *plan.request.seeds],
        "machine": machine,
        "packages": packages,
    }
    if known_machines := earlier.header.get("same_seed"):
        header["same_seed"] = known_machines
    whole = plan
    if tables_beside:
        whole = build.build_plan(replace(plan.request, tables=(*plan.request.tables, *tables_beside)))
    return _write(
        whole, header, cells, earlier.wall_seconds | {key: round(stats.mean(times), 1) for key, times in wall.items()}
    )


def _entry(cell: RecordedCell) -> dict[str, Any]:
    """Return a cell as the file has it."""
    entry: dict[str, Any] = {
        "n": len(cell.values),
        "mean": round(stats.mean(cell.values), 4),
        "sd": round(stats.sd(cell.values) or 0.0, 4),
        "values": [round(value, 4) for value in cell.values],
        "num_test_images": cell.num_test_images,
        "run_id": cell.run_id,
    }
    if cell.same_seed:
        entry["same_seed"] = [round(value, 4) for value in cell.same_seed]
    return entry


def record_same_seed(plan: Plan, others: Sequence[Plan], allow_dirty: bool = False) -> Path:
    """Add to a recording what its first seed gives under the arithmetic of `others`, and return the file.

    Raises `UserError` if what is recorded is of other configs than the plan's, or if the results are of uncommitted or
    of several versions of the code. If today's code gives other numbers than the recorded, the interval is wide.
    """
    recorded = baseline.load(plan.request.scale)
    elsewhere = [_results(each) for each in others]
    commits, dirty = _made_by(plan, elsewhere, allow_dirty)
    raw = parse_yaml(baseline.path(plan.request.scale).read_text())
    for cell in others[0].cells:
        first = cell.runs[plan.request.seeds[0]]
        known = recorded.cells.get(cell.metric_key)
        if known is None:  # of a table that is not recorded
            continue
        if known.run_id != first:
            raise UserError(
                f"cannot record: {baseline.path(plan.request.scale)} has no number of {first}, because the config of "
                f"{cell.metric_key} has changed; record its seeds first"
            )
        numbers = [float(each[first]["metrics"][cell.metric]) for each in elsewhere]
        raw["cells"][cell.metric_key]["same_seed"] = [round(value, 4) for value in numbers]
    raw["recorded"]["same_seed"] = {"commit": ", ".join(sorted(commits)), "dirty": dirty, "cpu": cpu_name()}
    return _write(plan, raw["recorded"], raw["cells"], raw["wall_seconds"])


def _write(
    plan: Plan, header: dict[str, Any], cells: dict[str, dict[str, Any]], wall_seconds: dict[str, float]
) -> Path:
    """Write the file, with the fall that each number would notice."""
    recorded = RecordedNumbers(header, {key: baseline.read_cell(key, cell) for key, cell in cells.items()})
    for key, fall in noticeable_falls(plan, recorded).items():
        cells[key]["notices_fall_of"] = None if fall is None else round(fall, 1)
    content = {"recorded": header, "cells": cells, "wall_seconds": wall_seconds}
    opening = (
        "# Written by `python -m reproduce record-baseline`; not by hand. Percent; sd with divisor n - 1.\n"
        "# same_seed: what the first seed gives under other arithmetic, where no trunk is trained.\n"
        "# notices_fall_of: the smallest fall, in points, that a check of all these cells and the first seed calls\n"
        f"# worse {stats.POWER:.0%} of the time.\n"
    )
    target = baseline.path(plan.request.scale)
    write_atomic(target, opening + yaml.safe_dump(content, sort_keys=False, width=120, default_flow_style=None))
    return target


def _results(plan: Plan) -> dict[str, dict[str, Any]]:
    """Return the results of a plan's runs by run_id. Raises `UserError` if one is missing."""
    found = {run.run_id: run.read_result() for run in plan.runs.values()}
    missing = [run.label for run in plan.runs.values() if found[run.run_id] is None]
    if missing:
        raise UserError(f"cannot record: {len(missing)} runs have no result ({missing[0]}, ...); run them first")
    return {name: result for name, result in found.items() if result is not None}


def _made_by(plan: Plan, given: Sequence[dict[str, dict[str, Any]]], allow_dirty: bool) -> tuple[set[str], bool]:
    """Return the commits that made results, and whether any differed from its commit.

    Raises `UserError` for uncommitted code, unless allowed, and for commits whose runs differ.
    """
    provenances = [result["provenance"] for results in given for result in results.values()]
    commits = {str(each["git_commit"]) for each in provenances}
    dirty = any(each["git_dirty"] for each in provenances)
    if not allow_dirty and (dirty or len({revision.run_code_fingerprint(commit) for commit in commits}) > 1):
        what = "uncommitted code" if dirty else f"commits whose runs differ ({', '.join(sorted(commits))})"
        where = f"results/{plan.request.scale}" + (f" or {OTHER_ARITHMETIC}" if len(given) > 1 else "")
        raise UserError(f"cannot record: results in {where} were made by {what}; delete them and record again")
    return commits, dirty


def noticeable_falls(plan: Plan, recorded: RecordedNumbers) -> dict[str, float | None]:
    """Return the fall that a check of the plan's cells, by the first recorded seed, would notice in each."""
    seeds, tail = recorded.header["seeds"], Family.of_plan(plan, recorded).tail
    return {key: unchanged(known, seeds[:1], seeds, tail).noticeable_fall for key, known in recorded.cells.items()}


def doubts(plan: Plan) -> list[str]:
    """Return a sentence for each recorded number that a check could not hold: too near its control, or too wide."""
    recorded = baseline.load(plan.request.scale)
    family = Family.of_plan(plan, recorded)
    found = []
    for ours, control in family.controls:
        lowest = lowest_difference(recorded, (ours, control), 1, family.tail)
        if lowest <= 0:
            found.append(
                f"{ours} does not stand clear of its control {control}: new seeds of unchanged code may give"
                f" {lowest:+.1f} points, and a check calls 0 or fewer worse. Train it longer, or set has_control: false"
            )
    for key, fall in noticeable_falls(plan, recorded).items():
        if fall is None:
            num_seeds = len(recorded.cells[key].values)
            found.append(f"{key} would notice no fall: its {num_seeds} seeds spread too widely for its mean")
    return found


def _num_test_images(run: Run, result: dict[str, Any]) -> int:
    try:
        return int(result["counts"]["num_test_images"])
    except KeyError as error:
        raise UserError(
            f"{run.result} has no number of test images: evals/{run.workload.method}.py has to "
            "set context.run.counts['num_test_images']"
        ) from error
