"""The files that a check writes to `reports/<scale>`, and what in them has changed since the check before."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reproduce.files import write_atomic, write_json
from reproduce.harness.plan.model import Plan
from reproduce.harness.report import cells_csv, render_checkpoints, summary
from reproduce.harness.report.junit import as_junit
from reproduce.harness.report.render_checkpoints import checkpoints_as_data
from reproduce.harness.report.render_claims import claim_as_data, claims_as_markdown, read_claims
from reproduce.harness.report.render_tables import table_as_data, table_as_markdown
from reproduce.harness.spec import claims
from reproduce.harness.verdict.check import TableVerdict
from reproduce.harness.verdict.checkpoints import CheckpointVerdict
from reproduce.harness.verdict.claims import ClaimVerdict
from reproduce.harness.verdict.first_steps import FirstStepsCheck


@dataclass(frozen=True)
class Changes:
    """The verdicts of a check that an earlier check had not given."""

    tables: list[TableVerdict]
    claims: list[ClaimVerdict]


def write_verdicts(
    plan: Plan,
    checked: Sequence[TableVerdict],
    verdicts: Sequence[ClaimVerdict] = (),
    checkpoints: Sequence[CheckpointVerdict] = (),
) -> Changes:
    """Write the verdicts on tables, checkpoints and claims, and `junit.xml`; return what changed.

    `summary.md` and `cells.csv` have every table that the folder holds, not only those of this check.
    """
    changed_tables = []
    first_steps = FirstStepsCheck.of_plan(plan)
    for table in checked:
        stem = plan.reports / table.table.table
        data = table_as_data(plan, table, first_steps)
        if not _same_verdicts(_read(stem.with_suffix(".json")), data):
            changed_tables.append(table)
        write_json(stem.with_suffix(".json"), data)
        write_atomic(stem.with_suffix(".md"), table_as_markdown(plan, table))
    changed_claims = _write_claims(plan, verdicts) if verdicts else []
    if any(table.expected == "recorded" for table in plan.tables.values()):
        write_json(plan.reports / render_checkpoints.FILE, checkpoints_as_data(plan, checkpoints))
    write_atomic(plan.reports / "junit.xml", as_junit(checked, verdicts, bool(plan.claims), checkpoints))
    found = summary.read_verdicts(plan.reports, plan.request.scale)
    summary.write(plan.reports, plan.request.scale, found)
    cells_csv.write(plan.reports, found.tables)
    return Changes(changed_tables, changed_claims)


def _write_claims(plan: Plan, verdicts: Sequence[ClaimVerdict]) -> list[ClaimVerdict]:
    """Write `claims.json` and `claims.md`; return the verdicts that changed.

    Claims that an earlier check judged, and this one did not, stay as they were.
    """
    path = plan.reports / f"{claims.TARGET}.json"
    before = read_claims(path)
    now = {verdict.claim.claim: claim_as_data(plan, verdict) for verdict in verdicts}
    known = before | now
    kept = [known[claim.claim] for claim in claims.load() if claim.claim in known]
    write_json(path, {"scale": plan.request.scale, "claims": kept})
    write_atomic(path.with_suffix(".md"), claims_as_markdown(plan.request.scale, kept))
    return [
        verdict
        for verdict in verdicts
        if not _same_verdicts(before.get(verdict.claim.claim, {}), now[verdict.claim.claim])
    ]


def _read(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _same_verdicts(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Return whether two checks wrote the same data, apart from when they ran."""
    return bool({**before, "checked": ""} == {**json.loads(json.dumps(now)), "checked": ""})
