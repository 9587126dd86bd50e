"""The family of a check: all that it compares with recorded numbers, and what each comparison's share of alarms is."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from reproduce.harness.plan.model import Cell, Plan
from reproduce.harness.spec.baseline import RecordedCell, RecordedNumbers
from reproduce.harness.verdict import stats

MIN_CELLS = 3
"""Cells of one checkpoint whose mean gets a verdict of its own."""


@dataclass(frozen=True)
class Checkpoint:
    """The cells of one pretraining in one unit. They rise and fall together, because they evaluate the same network."""

    pretrain: str
    unit: str
    cells: tuple[Cell, ...]

    @property
    def name(self) -> str:
        """The checkpoint's name in reports, such as "swav_800ep, top-1, %"."""
        return f"{self.pretrain}, {self.unit}"

    @property
    def metric_keys(self) -> tuple[str, ...]:
        """What is measured, cell by cell."""
        return tuple(cell.metric_key for cell in self.cells)


@dataclass(frozen=True)
class Family:
    """What a check compares with recorded numbers. A number that two tables show is one member."""

    cells: tuple[str, ...] = ()
    """Metric keys of the planned cells that have a recorded number."""
    checkpoints: tuple[Checkpoint, ...] = ()
    """Checkpoints whose mean over several cells is compared."""
    controls: tuple[tuple[str, str], ...] = ()
    """Metric keys of a number and of the control that it has to beat."""

    @classmethod
    def of_plan(cls, plan: Plan, recorded: RecordedNumbers) -> "Family":
        """Return the family of a plan's check: planned cells count, whether or not they have a result yet."""
        if not plan.uses_reference_data:
            return cls()
        planned = list(_recorded_cells(plan, recorded))
        units: dict[tuple[str, str], dict[str, Cell]] = {}
        for cell in planned:
            unit = plan.tables[cell.table].columns[cell.column].unit
            units.setdefault((cell.pretrain, unit), {}).setdefault(cell.metric_key, cell)
        checkpoints = [Checkpoint(*key, tuple(cells.values())) for key, cells in units.items()]
        return cls(
            tuple(dict.fromkeys(cell.metric_key for cell in planned)),
            tuple(
                each
                for each in checkpoints
                if len(each.cells) >= MIN_CELLS and len(recorded.seed_by_seed(*each.metric_keys)[0]) > 1
            ),
            tuple(dict.fromkeys(_controls(plan, planned, recorded))),
        )

    @property
    def tail(self) -> float:
        """The probability with which each comparison may raise a false alarm to one side.

        `stats.FAMILY_LEVEL` is shared equally by all of them (Bonferroni): a cell's and a checkpoint's interval have
        two ends, the difference from a control has one.
        """
        num_ends = 2 * len(self.cells) + 2 * len(self.checkpoints) + len(self.controls)
        return stats.FAMILY_LEVEL / max(num_ends, 2)


def _recorded_cells(plan: Plan, recorded: RecordedNumbers) -> Iterator[Cell]:
    for cell in plan.cells:
        table = plan.tables.get(cell.table)
        if table and table.expected == "recorded" and cell.column and cell.metric_key in recorded.cells:
            yield cell


def _controls(plan: Plan, planned: list[Cell], recorded: RecordedNumbers) -> Iterator[tuple[str, str]]:
    by_place = {cell.table_key: cell.metric_key for cell in planned}
    for cell in planned:
        table = plan.tables[cell.table]
        (row,) = [row for row in table.rows if row.label == cell.row]
        control = by_place.get(f"{cell.table}/{row.control}/{cell.column}")
        if control and table.columns[cell.column].has_control:
            pair = (cell.metric_key, control)
            if len(recorded.seed_by_seed(*pair)[0]) > 1:
                yield pair


def resolution(known: RecordedCell) -> float:
    """Return the binomial standard error of a recorded number's test set, in points."""
    return stats.binomial_se(stats.mean(known.values), known.num_test_images)


def lowest_difference(recorded: RecordedNumbers, pair: tuple[str, str], num_new: int, tail: float) -> float:
    """Return the lowest difference of a number from its control that new seeds of unchanged code give.

    A one-sided prediction bound. The differences are taken seed by seed, so it holds however the two numbers of a seed
    depend on each other.
    """
    ours, controls = recorded.seed_by_seed(*pair)
    differences = [one - other for one, other in zip(ours, controls, strict=True)]
    error = math.hypot(*(resolution(recorded.cells[key]) for key in pair))
    return stats.mean(differences) - stats.reach_of_new_seeds(differences, num_new, error, tail)
