"""The check of a plan: give the verdicts, write them for the report, send them to W&B, print them.

`table_commands` imports this only to check: no other command needs what gives verdicts and shows them.
"""

import sys
from collections.abc import Iterator
from typing import NamedTuple

from reproduce.harness.plan.model import Plan
from reproduce.harness.report.files import write_verdicts
from reproduce.harness.report.headline import headline
from reproduce.harness.report.render_checkpoints import checkpoints_as_text
from reproduce.harness.report.render_claims import claims_as_text
from reproduce.harness.report.render_tables import NOTICES, NOTICES_FOOTNOTE, table_as_text
from reproduce.harness.report.summary import read_verdicts
from reproduce.harness.report.tracking import log_changes
from reproduce.harness.verdict import check, doubts
from reproduce.harness.verdict.check import TableVerdict
from reproduce.harness.verdict.checkpoints import CheckpointVerdict
from reproduce.harness.verdict.claims import ClaimVerdict, check_claims
from reproduce.harness.verdict.first_steps import FirstStepsCheck
from reproduce.harness.verdict.strict import open_issues


class Verdicts(NamedTuple):
    """All verdicts on a plan."""

    tables: list[TableVerdict]
    claims: list[ClaimVerdict]
    checkpoints: list[CheckpointVerdict]


def check_plan(plan: Plan, strict: bool) -> int:
    """Give a plan its verdicts, write and print them; return the exit status, with `strict` 1 if a doubt is left."""
    verdicts = Verdicts(check.check_tables(plan), check_claims(plan), check.check_checkpoints(plan))
    changes = write_verdicts(plan, *verdicts)
    shown = _tables_as_text(verdicts)
    for text in shown:
        print(text)
    if verdicts.claims:
        print(claims_as_text(verdicts.claims))
    if problem := log_changes(plan, changes):
        print(f"W&B has no table of these verdicts ({problem})", file=sys.stderr)
    for line in _summary(plan, verdicts, with_footnote=any(f"  {NOTICES} " in text for text in shown)):
        print(line)
    status = check.exit_status(verdicts.tables, verdicts.claims, bool(plan.claims), verdicts.checkpoints)
    print(f"check: {check.STATUS_MEANINGS[status]}; details in {plan.reports}")
    issues = open_issues(plan, verdicts.tables, verdicts.claims) if strict else []
    for issue in issues:
        print(f"strict: {issue}")
    return status or (check.DISAGREES if issues else check.AGREES)


def _tables_as_text(verdicts: Verdicts) -> list[str]:
    checkpoints = [checkpoints_as_text(verdicts.checkpoints)] if verdicts.checkpoints else []
    return [*map(table_as_text, verdicts.tables), *checkpoints]


def _summary(plan: Plan, verdicts: Verdicts, with_footnote: bool) -> Iterator[str]:
    """Yield what the verdicts prove together, and what to doubt of the tables; `with_footnote` explains `NOTICES`."""
    if matches := check.recorded_matches(verdicts.tables):
        yield matches
    written = read_verdicts(plan.reports, plan.request.scale)
    proved = headline([table for table in written.tables if table["table"] in plan.tables], written.checkpoints)
    recorded_only = all(table.expected == "recorded" for table in plan.tables.values()) and not plan.claims
    if (first_steps := FirstStepsCheck.of_plan(plan).in_words()) and not (proved and recorded_only):
        yield first_steps
    if proved:
        yield f"{NOTICES_FOOTNOTE}\n{proved}" if with_footnote else proved
    for doubt in doubts.of_tables():
        yield f"note: {doubt}"
