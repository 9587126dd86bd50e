"""What tests of verdicts share."""

from collections.abc import Callable

from reproduce.harness.plan.model import Plan
from reproduce.harness.verdict import check
from reproduce.harness.verdict.cells import CellVerdict

Finish = Callable[..., None]
"""The fixture `finish`."""


def cells_of(plan: Plan) -> dict[str, CellVerdict]:
    """The verdicts of a plan's cells by row and column: "SwAV/knn20"."""
    return {f"{row.label}/{key}": cell for table in check.check_tables(plan) for row, key, cell in table.cells()}
