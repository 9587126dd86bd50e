"""How many seeds the verdicts of a plan will need, at the spread over seeds that is known."""

from collections.abc import Iterator

from reproduce.harness.plan.model import Cell, Plan
from reproduce.harness.spec.tables import PRINTED_FAILURE, Row, Table
from reproduce.harness.verdict import stats
from reproduce.harness.verdict.seed_results import read_seed_results

EXAMPLES = (3, 5, 8)
"""Numbers of seeds whose largest spread is quoted if none is known."""
MIN_SEEDS = 3
"""Seeds of ours from which a spread counts as known."""


def num_margin_cells(plan: Plan, table: Table) -> int:
    """Return how many planned cells of a table are to be compared with a margin: the family of Holm's correction."""
    return sum(1 for _ in _margin_cells(plan, table))


def seeds_in_words(plan: Plan) -> list[str]:
    """Return lines that say how many seeds each column's cells need for `reproduced`, if that is the truth."""
    lines: list[str] = []
    for table in plan.tables.values():
        cells = list(_margin_cells(plan, table))
        columns = dict.fromkeys(cell.column for _, cell in cells if table.columns[cell.column].eval)
        if plan.request.source == "released" or not columns:
            continue
        lines.append(
            f"seeds for a verdict on {table.heading} ({len(cells)} cells tested together; {stats.POWER:.0%} "
            "probability of reproduced if that is true):"
        )
        for column in columns:
            in_column = [(row, cell) for row, cell in cells if cell.column == column]
            lines.append(f"  {table.columns[column].title}: {_of_column(plan, table, column, in_column, len(cells))}")
    return lines


def _of_column(plan: Plan, table: Table, column: str, cells: list[tuple[Row, Cell]], family_size: int) -> str:
    margins = [margin for row, _ in cells if (margin := table.margin(row, column))]
    points = min(margin.points for margin in margins)
    measured = [
        spread
        for _, cell in cells
        if (found := read_seed_results(plan, cell).independent) and len(found) >= MIN_SEEDS
        for spread in [stats.sd(found)]
        if spread is not None
    ]
    published = next((margin.sd for margin in margins if margin.sd is not None), None)
    spread = max(measured) if measured else published
    if spread is None:
        enough = (f"{num} up to {stats.largest_spread(num, points, family_size):.2f}" for num in EXAMPLES)
        return f"no spread over seeds is known; margin {points:g}: {', '.join(enough)} points (sd)"
    needed = stats.seeds_for(spread, points, family_size) or f"more than {stats.MAX_SEEDS}"
    whose = "measured here" if measured else "published"
    return f"{needed}, at a spread (sd) of {spread:.2g} points ({whose}), margin {points:g}"


def _margin_cells(plan: Plan, table: Table) -> Iterator[tuple[Row, Cell]]:
    if table.expected != "printed":
        return
    rows = {row.label: row for row in table.rows}
    for cell in plan.cells:
        if cell.table != table.table or not cell.column or plan.margin(cell) is None:
            continue
        row = rows[cell.row]
        is_reference = table.columns[cell.column].relative_to == cell.row
        if row.cells[cell.column] != PRINTED_FAILURE and not is_reference:
            yield row, cell
