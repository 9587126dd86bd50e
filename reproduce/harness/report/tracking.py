"""Verdicts in W&B: a run for each table that changed and one for the claims, with a row for each cell or part.

A preflight is a run, too, with a row for each rehearsal, and so are the pictures of trained networks.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from reproduce.harness.plan.model import REPORTS, Plan
from reproduce.harness.report.files import Changes
from reproduce.harness.spec import claims, preflight_file, tables
from reproduce.harness.verdict.cells import CellVerdict
from reproduce.harness.verdict.check import TableVerdict
from reproduce.harness.verdict.claims import ClaimVerdict

CELL_COLUMNS = ["row", "column", "expected", "ours", "sd", "difference", "verdict", "reason", "runs"]
PART_COLUMNS = ["claim", "part", "status", "printed", "difference", "low", "high", "effect size", "reason", "runs"]


REHEARSAL_COLUMNS = [
    *("rehearsal", "recipes", "kind", "status", "compared", "closest to its tolerance", "share of its tolerance"),
    *("seconds", "result"),
]


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


def log_preflight(scale: str) -> str | None:
    """Log the last preflight of a scale to W&B; return the reason if that fails, which must not affect its status."""
    from reproduce.engine.runs import tracking

    try:
        if result := preflight_file.last_preflight(scale):
            rows = [_rehearsal_row(each) for each in result["rehearsals"]]
            keys = ("equal", "hardware", "commit", "dirty", "precisions", "seconds", "world_size", "not_rehearsed")
            facts = {key: result[key] for key in keys}
            folder = preflight_file.preflight_path(scale).parent
            tracking.log_table("preflight", scale, folder, REHEARSAL_COLUMNS, rows, facts)
    except Exception as error:  # noqa: BLE001  # whatever the service or its client raises
        return f"{type(error).__name__}: {error}"
    return None


def log_pictures(scale: str, run_folders: Sequence[Path]) -> str | None:
    """Log pictures of trained networks to W&B, as one run; return the reason if that fails, which is no error."""
    from reproduce.engine.runs import tracking

    try:
        configs = {folder: yaml.load((folder / "config.yaml").read_text(), yaml.CSafeLoader) for folder in run_folders}
        tracked = [folder for folder, config in configs.items() if config["logging"]["wandb"]]
        tracking.log_pictures(scale, REPORTS / scale, tracked)
    except Exception as error:  # noqa: BLE001  # whatever the service or its client raises
        return f"{type(error).__name__}: {error}"
    return None


def _rehearsal_row(each: Mapping[str, Any]) -> list[Any]:
    quantity, step, _, share = each["worst"] or (None, None, None, None)
    closest = None if quantity is None else f"{quantity} at step {step}"
    return [
        *(each["name"], " ".join(each["recipes"]), each["kind"], each["status"], each["num_compared"]),
        *(closest, share, each["seconds"], each["line"]),
    ]


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
