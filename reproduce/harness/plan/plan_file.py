"""reports/<scale>/plan.json: the last plan of a scale, with the cost and the state of every run.

The workflow runs what it holds; check and report take from it the flags that they are not given.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reproduce.errors import UserError
from reproduce.files import read_json, write_json
from reproduce.harness.plan import budget, build, cost, cost_report
from reproduce.harness.plan.model import REPORTS, Plan, Request
from reproduce.harness.spec import margins
from reproduce.typed_yaml import convert

VERSION = 1
"""The version of the file's format."""
PLACE = ("table", "row", "column", "metric")
"""The fields of a cell that say which it is."""


@dataclass(frozen=True)
class WrittenPlan:
    """What a plan.json says of a plan that was written before."""

    path: Path
    request: Request
    run_ids: dict[str, set[str]]
    """The run ids behind the cells of each table, without their parents."""
    cells: set[tuple[str, ...]]
    """The cells, by table, row, column and metric."""

    def answers(self, request: Request) -> bool:
        """Return whether a request is the one that was planned, or that for some of its tables."""
        same = dataclasses.replace(self.request, tables=request.tables) == request
        return same and set(request.tables) <= set(self.request.tables)


def path_of(scale: str) -> Path:
    """Return the plan file of a scale."""
    return REPORTS / scale / "plan.json"


def write(plan: Plan, whole: Plan | None = None) -> Path:
    """Write a plan, and record the margins of the runs that are still to do; return the file.

    `whole` is the plan that was requested, if only a part of it can be done now.
    """
    path = path_of(plan.request.scale)
    costs = cost.plan_cost(plan)
    runs = [
        dataclasses.asdict(run) | {"command": run.command(), "state": costs.states[run.run_id].value}
        for run in plan.runs.values()
    ]
    content = {
        "version": VERSION,
        "request": dataclasses.asdict(plan.request),
        "data_root": plan.data_root,
        "generated_data_dir": plan.generated_data_dir,
        "cluster": plan.cluster,
        "runs": runs,
        "cells": [dataclasses.asdict(cell) for cell in plan.cells],
        "places": [[getattr(cell, key) for key in PLACE] for cell in (whole or plan).cells],
        "cost": cost_report.as_data(plan, costs),
    }
    write_json(path, content)
    _record_margins(plan)
    return path


def read(scale: str) -> WrittenPlan | None:
    """Read the plan that was written last at a scale; None without the file. Raises `UserError` if it is damaged."""
    path = path_of(scale)
    if not path.exists():
        return None
    content = read_json(path)
    version = content.get("version") if isinstance(content, dict) else None
    if version != VERSION:
        raise UserError(f"{path} has version {version}, not {VERSION}. Write it again: make plan-..., or delete it")
    try:
        request = _read_request(content["request"], path, scale)
        run_ids: dict[str, set[str]] = {name: set() for name in request.tables}
        for cell in content["cells"]:
            for runs in [cell["runs"], *cell["runs_by_override"].values()]:
                run_ids[cell["table"]].update(runs.values())
        cells = [[cell[key] for key in PLACE] for cell in content["cells"]]
        places = {tuple(place) for place in content.get("places", cells)}
        return WrittenPlan(path, request, run_ids, places)
    except (KeyError, TypeError, AttributeError, ValueError, UserError) as error:
        raise UserError(f"{path} is damaged ({error}). Write it again: make plan-..., or delete it") from error


def _read_request(raw: Any, path: Path, scale: str) -> Request:
    request: Request = convert(Request, raw, str(path), "request")
    if request.scale != scale or not request.seeds:
        raise ValueError(f"its request is for scale {request.scale} and {len(request.seeds)} seeds")
    return request


def planned(request: Request) -> Plan:
    """Build the plan of a request; with a budget, of the cells that it pays for.

    What a budget bought is decided once: the same request again, when some runs are done, has the same cells.
    """
    plan = build.build_plan(request)
    if not request.budget:
        return plan
    written = read(request.scale)
    if written and written.answers(request):
        return plan.with_cells(
            cell for cell in plan.cells if tuple(getattr(cell, key) for key in PLACE) in written.cells
        )
    return plan.with_cells(budget.choose(plan, cost.plan_cost(plan)).cells)


def plan_to_judge(tables: tuple[str, ...], scale: str, flags: Mapping[str, Any]) -> tuple[Plan, str]:
    """Return the plan that check and report judge, and a sentence on how it differs from the written one.

    `flags` are the fields of `Request` that the command line sets. If the written plan has all requested `tables`, the
    other fields are taken from it; otherwise they have their defaults. The sentence is "" if nothing differs.
    """
    written = read(scale)
    if written is None:
        return planned(Request(tables, scale, **flags)), ""
    if others := [name for name in tables if name not in written.request.tables]:
        what = ", ".join(written.request.tables) or "a single run"
        sentence = f"{written.path} plans {what}, not {', '.join(others)}: judged is the request by its own flags"
        return planned(Request(tables, scale, **flags)), sentence
    plan = planned(dataclasses.replace(written.request, tables=tables, **flags))
    differences = [
        f"{name.replace('_', ' ')} {_as_text(value)} (planned: {_as_text(getattr(written.request, name))})"
        for name, value in flags.items()
        if value != getattr(written.request, name)
    ]
    if differences:
        return plan, f"the request differs from {written.path} and is what is judged: {', '.join(differences)}"
    run_ids = set[str]().union(*(written.run_ids[name] for name in tables))
    if gone := run_ids - plan.runs.keys():
        return plan, (
            f"tables or configs have changed since {written.path} was written, and are judged as they are now: "
            f"{len(gone)} of its {len(run_ids)} runs behind cells are no longer part of the plan"
        )
    return plan, ""


def _as_text(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _record_margins(plan: Plan) -> None:
    """Record the margins of runs that have no result yet, so that no margin can be fitted to a result."""
    to_do: dict[Path, dict[str, dict[str, float]]] = {}
    for cell in plan.cells:
        for run in (plan.runs[name] for name in cell.run_ids):
            margin = plan.margin(cell)
            if margin and not run.result.exists():
                of_scale = to_do.setdefault(margins.path(run.folder), {})
                of_scale.setdefault(run.run_id, {})[cell.table_key] = margin.points
    for file, points in to_do.items():
        margins.record(file, points)
