"""plan.json: a plan as the workflow reads it, with the cost and the state of every run."""

import dataclasses
from pathlib import Path

from reproduce.files import write_json
from reproduce.harness.plan import cost, cost_report
from reproduce.harness.plan.model import Plan
from reproduce.harness.spec import margins


def write(plan: Plan) -> Path:
    """Write a plan to reports/<scale>/plan.json, and record the margins of the runs that are still to do."""
    path = plan.reports / "plan.json"
    costs = cost.plan_cost(plan)
    runs = [
        dataclasses.asdict(run) | {"command": run.command(), "state": costs.states[run.run_id].value}
        for run in plan.runs.values()
    ]
    content = {
        "request": dataclasses.asdict(plan.request),
        "data_root": plan.data_root,
        "generated_data_dir": plan.generated_data_dir,
        "cluster": plan.cluster,
        "runs": runs,
        "cells": [dataclasses.asdict(cell) for cell in plan.cells],
        "cost": cost_report.as_data(plan, costs),
    }
    write_json(path, content)
    _record_margins(plan)
    return path


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
