"""The cost of a plan as a table for the terminal, and as plain data for plan.json."""

import textwrap
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from reproduce.config.schema import ABSENT
from reproduce.harness.plan.cost import PlanCost, ReleasedSubset, RunCost
from reproduce.harness.plan.cost_facts import REFERENCE_GPU
from reproduce.harness.plan.durations import format_duration
from reproduce.harness.plan.model import Plan, Run


def as_data(plan: Plan, costs: PlanCost) -> dict[str, Any]:
    """Return the cost as plain data for plan.json."""
    return {
        "runs": {
            name: asdict(cost) | {"gpu_hours": cost.gpu_hours, "cells": cells}
            for name, cost in costs.runs.items()
            for cells in [plan.cells_of(name)]
        },
        "data": [asdict(requirement) for requirement in costs.data],
        "gpus": {
            name: asdict(gpu)
            | {
                "gpu_hours": costs.gpu_hours(name, costs.runs),
                "gpu_hours_to_do": costs.gpu_hours(name, costs.to_do),
                "gpu_hours_from_released": _total_gpu_hours(costs.released, name),
            }
            for name, gpu in costs.facts.gpus.items()
        },
        "not_in_the_sums": costs.unpriced(costs.runs),
        "disk_gb": sum(cost.disk_gb for cost in costs.runs.values()),
    }


def _total_gpu_hours(subset: ReleasedSubset | None, gpu: str) -> float:
    return subset.cost.gpu_hours(gpu, subset.cost.runs) if subset else 0.0


def as_text(plan: Plan, costs: PlanCost) -> str:
    """Return a line per run, evaluations below their pretraining, then the sums, notes and data."""
    notes: dict[str, int] = {}
    rows = [("run", "state", "cells", "GPUs", "time", "GPU-hours", "disk", "data")]
    incomplete = {requirement.name for requirement in costs.data if requirement.missing}
    for run, indent in _by_pretraining(plan):
        cost = costs.runs[run.run_id]
        note = notes.setdefault(f"{cost.basis}: {cost.source}", len(notes) + 1)
        name = run.workload.dataset.get("name", "-")
        whose = f"  {run.parent_name}" if run.parent_name and not run.parents else ""
        state, cells = costs.states[run.run_id].label, str(plan.cells_of(run.run_id))
        rows.append(
            (
                *(indent + run.run_id + whose, state, cells, str(cost.num_gpus) if cost.num_gpus else "-"),
                *(f"{_hours(cost)} [{note}]", _amount(cost.gpu_hours) if cost.num_gpus else "-", _size(cost.disk_gb)),
                f"{name} ✗" if name in incomplete else name,
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [_wrapped(f"[{number}] {note}") for note, number in notes.items()]
    lines += [*_sums(costs), *_data(costs)]
    return "\n".join(lines)


def _by_pretraining(plan: Plan) -> Iterable[tuple[Run, str]]:
    for run in plan.runs.values():
        if not any(name in plan.runs for name in run.parents):
            yield run, ""
            yield from ((dependant, "  ") for dependant in plan.runs.values() if run.run_id in dependant.parents)


def _sums(costs: PlanCost) -> Iterable[str]:
    if any(cost.num_gpus for cost in costs.runs.values()):
        to_do, everything = costs.to_do, list(costs.runs)
        hours = {gpu: costs.gpu_hours(gpu, to_do) for gpu in costs.facts.gpus}
        words = ", ".join(f"{_amount(count)} on {gpu}" for gpu, count in hours.items())
        total = _amount(costs.gpu_hours(REFERENCE_GPU, everything))
        yield f"GPU-hours to do: {words}; of all runs on {REFERENCE_GPU}: {total}"
        for gpu, facts in costs.facts.gpus.items():
            if facts.speedup != 1:
                yield _wrapped(f"  {gpu}, roughly {facts.speedup:g} times a {REFERENCE_GPU}: {facts.source}")
        if left_out := costs.unpriced(to_do):
            yield f"  not in the sums: {len(left_out)} runs of unknown cost, or on GPUs that no factor is known for"
        if subset := costs.released:
            total = _amount(_total_gpu_hours(subset, REFERENCE_GPU))
            yield _wrapped(
                f"cheapest honest subset, FROM=released: {len(subset.plan.runs)} evaluations of published weights,"
                f" {len(subset.plan.cells)} cells, {total} GPU-hours on {REFERENCE_GPU}"
            )
        if any(cost.basis == "estimate" and cost.num_gpus for cost in costs.runs.values()):
            yield _wrapped(f"estimates may be off by a factor of two; forward: {costs.facts.forward.source}")
    disk = sum(cost.disk_gb for cost in costs.runs.values())
    yield f"disk: {_size(disk)} of checkpoints and results; a pretraining under way holds up to three checkpoints"


def _data(costs: PlanCost) -> Iterable[str]:
    for each in costs.data:
        source = "" if each.source == ABSENT else each.source
        yield _wrapped(f"data {each.name}: " + ", ".join(filter(None, [source, each.size, each.state, each.missing])))


def _hours(cost: RunCost) -> str:
    if cost.hours is None:
        return "?"
    about = "~" if cost.basis == "estimate" and cost.hours else ""
    return about + (f"{cost.hours:.3g} h" if cost.hours >= 10 else format_duration(cost.hours * 3600))


def _amount(hours: float | None) -> str:
    if hours is None:
        return "?"
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


def _size(gb: float) -> str:
    return f"{gb:.1f} GB" if gb >= 0.95 else f"{max(1, round(gb * 1000))} MB"


def _wrapped(text: str, width: int = 118) -> str:
    return textwrap.fill(text, width, subsequent_indent="    ", break_long_words=False)
