"""Verdicts in W&B: a run for each table that changed and one for the claims, with a row for each cell or part."""

from collections.abc import Sequence
from typing import Any

from reproduce.harness.plan.model import Plan
from reproduce.harness.report.files import Changes
from reproduce.harness.spec import claims, tables
from reproduce.harness.verdict.cells import CellVerdict
from reproduce.harness.verdict.check import TableVerdict
from reproduce.harness.verdict.claims import ClaimVerdict

CELL_COLUMNS = ["row", "column", "expected", "ours", "sd", "difference", "verdict", "reason", "runs"]
PART_COLUMNS = ["claim", "part", "status", "printed", "difference", "low", "high", "effect size", "reason", "runs"]


def log_changes(plan: Plan, changes: Changes) -> str | None:
    """Log changed verdicts to W&B; return the reason if that fails, which must not affect the verdicts."""
    from reproduce.engine.runs import tracking

    try:
        for table in changes.tables:
            name, rows = table.table.table, _cell_rows(table)
            tracking.log_table(name, plan.request.scale, plan.reports, CELL_COLUMNS, rows)
        if changes.claims:
            rows = _part_rows(changes.claims)
            tracking.log_table(claims.TARGET, plan.request.scale, plan.reports, PART_COLUMNS, rows)
    except Exception as error:  # noqa: BLE001  # whatever the service or its client raises
        return f"{type(error).__name__}: {error}"
    return None


def _cell_rows(checked: TableVerdict) -> list[list[Any]]:
    return [
        [
            *(row.label, key, _expected_number(cell), cell.mean, cell.sd, cell.difference),
            *(str(cell.verdict), cell.reason, " ".join(cell.run_ids)),
        ]
        for row, key, cell in checked.cells()
    ]


def _expected_number(cell: CellVerdict) -> float | None:
    return cell.expected if cell.expected is not None else tables.parse_printed(cell.printed)


def _part_rows(verdicts: Sequence[ClaimVerdict]) -> list[list[Any]]:
    return [
        [
            *(verdict.claim.claim, part.label, str(part.status), part.printed, part.difference),
            *(part.interval or (None, None)),
            *(part.effect_size, part.reason, " ".join(part.run_ids)),
        ]
        for verdict in verdicts
        for part in verdict.parts
    ]
