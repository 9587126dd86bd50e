"""BUDGET: the cells of a plan that prove most within some GPU-hours, canaries first and then the cheapest."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from reproduce.errors import UserError, did_you_mean
from reproduce.harness.plan import cost_facts
from reproduce.harness.plan.cost import PlanCost
from reproduce.harness.plan.cost_facts import REFERENCE_GPU
from reproduce.harness.plan.durations import format_duration
from reproduce.harness.plan.model import Cell, Plan
from reproduce.harness.spec import canaries

FORM = re.compile(r"(?P<hours>\d+(\.\d+)?)(\s+(?P<gpu>\S+))?")
"""A budget as it is written: hours, and the GPU that they are of."""


@dataclass(frozen=True)
class Budget:
    """GPU-hours of one kind of GPU."""

    hours: float
    gpu: str


@dataclass(frozen=True)
class Pick:
    """Cells that the same runs fill, and the GPU-hours that they add to what was picked before."""

    cells: tuple[Cell, ...]
    is_canary: bool
    hours: float


@dataclass(frozen=True)
class Choice:
    """What a budget buys, in the order of its worth; the cheapest that it does not; and the cells without a price."""

    budget: Budget
    picks: list[Pick]
    beyond: Pick | None
    unpriced: list[Cell]

    @property
    def cells(self) -> list[Cell]:
        """The cells of all picks."""
        return [cell for pick in self.picks for cell in pick.cells]


def parse(text: str) -> Budget:
    """Read a budget, such as "24" (of the reference GPU) or "24 H100". Raises `UserError` for another text."""
    found = FORM.fullmatch(text.strip())
    gpus = cost_facts.load().gpus
    if not found or not float(found["hours"]):
        raise UserError(
            f"the budget {text!r} is no number of GPU-hours: write 24, or 24 H100 (one of {', '.join(gpus)})"
        )
    gpu = found["gpu"] or REFERENCE_GPU
    if gpu not in gpus:
        raise UserError(f"the budget {text!r}: no speed of a {gpu!r} is known, {did_you_mean(gpu, gpus)}")
    return Budget(float(found["hours"]), gpu)


def choose(plan: Plan, costs: PlanCost) -> Choice:
    """Choose the cells of a plan that its request's budget pays for. Raises `UserError` for a budget of another form.

    Of public weights, no number counts before the canary of its evaluation agrees: canaries come first. Each next pick
    is the one that costs the least per cell, beside the runs that are picked already or are done.
    """
    budget = parse(plan.request.budget)
    own = plan.request.source == "scratch"
    places = set() if own else {(each.table, each.row, each.column) for each in canaries.load().canaries}
    groups: dict[frozenset[str], list[Cell]] = {}
    for cell in plan.cells:
        groups.setdefault(frozenset(name for run_id in cell.run_ids for name in plan.behind(run_id)), []).append(cell)
    order = {runs: number for number, runs in enumerate(groups)}  # of the tables, if the price does not decide
    hours = {name: costs.hours_on(cost, budget.gpu) for name, cost in costs.runs.items()}
    paid = {name for name, state in costs.states.items() if state.settled}

    def price(runs: frozenset[str]) -> float:
        return sum(hours[name] or 0.0 for name in runs - paid)

    def rank(runs: frozenset[str]) -> tuple[bool, float]:
        return not _is_canary(groups[runs], places), price(runs) / len(groups[runs])

    # Runs that are done need no price: they may have been made on a GPU that no factor is known for.
    left = {runs for runs in groups if all(hours[name] is not None for name in runs - paid)}
    unpriced = [cell for runs, cells in groups.items() if runs not in left for cell in cells]
    picks: list[Pick] = []
    remaining = budget.hours
    while affordable := [runs for runs in left if price(runs) <= remaining]:
        best = min(affordable, key=lambda runs: (*rank(runs), order[runs]))
        picks.append(Pick(tuple(groups[best]), _is_canary(groups[best], places), price(best)))
        remaining -= price(best)
        paid |= best
        left.discard(best)
    cheapest = min(left, key=lambda runs: (price(runs), order[runs]), default=None)
    beyond = cheapest and Pick(tuple(groups[cheapest]), _is_canary(groups[cheapest], places), price(cheapest))
    return Choice(budget, picks, beyond or None, unpriced)


def _is_canary(cells: Sequence[Cell], places: set[tuple[str, str, str]]) -> bool:
    return any((cell.table, cell.row, cell.column) in places for cell in cells)


def in_words(choice: Choice, plan: Plan, num_cells: int) -> list[str]:
    """Return lines that say what a budget buys of `num_cells`, with the hours that add up, and what comes next.

    `plan` has the cells that were bought. Some of its runs may be done, and the budget would buy more now.
    """
    head = f"budget of {choice.budget.hours:g} GPU-hours on {choice.budget.gpu}: {len(plan.cells)} of {num_cells} cells"
    if len(choice.cells) != len(plan.cells) or any(cell not in plan.cells for cell in choice.cells):
        return [f"{head}, as chosen when they were planned first"]
    lines = [f"{head}, in the order of what they prove per hour"]
    total = 0.0
    for pick in choice.picks:
        total += pick.hours
        lines.append(f"  {format_duration(total * 3600):>12}  {'canary: ' * pick.is_canary}{_names(pick.cells)}")
    if choice.beyond:
        more = format_duration(choice.beyond.hours * 3600)
        lines.append(f"  next: {_names(choice.beyond.cells)}, {more} more")
    if choice.unpriced:
        lines.append(f"  of unknown cost, and left out: {_names(choice.unpriced)}")
    return lines


def _names(cells: Sequence[Cell], most: int = 4) -> str:
    """Return cells as text, those of one row together, such as "table7 SwAV: knn20, knn200"."""
    columns: dict[str, list[str]] = {}
    for cell in cells:
        columns.setdefault(f"{cell.table} {cell.row}", []).append(cell.column)
    names = [f"{row}: {', '.join(filter(None, of_row))}".removesuffix(": ") for row, of_row in columns.items()]
    rest = f" and {len(names) - most} rows more" if len(names) > most else ""
    return "; ".join(names[:most]) + rest
