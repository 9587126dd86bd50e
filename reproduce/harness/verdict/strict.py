"""What a strict check, for CI, rejects although no cell disagrees."""

from collections import Counter
from collections.abc import Iterator, Sequence

from reproduce.harness import revision
from reproduce.harness.plan.model import Plan
from reproduce.harness.verdict import doubts
from reproduce.harness.verdict.check import TableVerdict
from reproduce.harness.verdict.claims import ClaimVerdict
from reproduce.harness.verdict.first_steps import FirstStepsCheck
from reproduce.harness.verdict.labels import ClaimStatus, Verdict


def open_issues(plan: Plan, checked: Sequence[TableVerdict], claims: Sequence[ClaimVerdict]) -> list[str]:
    """Return a sentence for each kind of doubt that the verdicts leave."""
    return [
        *_of_cells(checked),
        *_of_single_seeds(plan, checked),
        *_of_claims(claims),
        *_of_first_steps(plan),
        *_of_code(plan, checked),
    ]


def _of_cells(checked: Sequence[TableVerdict]) -> Iterator[str]:
    for table in checked:
        needed = [cell for _, _, cell in table.cells() if cell.needed]
        undecided = Counter(
            str(cell.verdict)
            for cell in needed
            if cell.verdict in (Verdict.INCONCLUSIVE, Verdict.NOT_RUN, Verdict.UNAVAILABLE)
            or (cell.verdict == Verdict.NO_BASELINE and not cell.share_of)  # the reference of shares never has one
        )
        for verdict, count in undecided.items():
            yield f"{table.table.heading}: {_cells(count)} {verdict}"
        for state, words in (("missing", "without a canary"), ("unverified", "with an unverified canary")):
            if number := sum(cell.canary == state for cell in needed):
                yield f"{table.table.heading}: {_cells(number)} {words}"


def _of_single_seeds(plan: Plan, checked: Sequence[TableVerdict]) -> Iterator[str]:
    """Yield the cells that lie within their margins by one training: how far seeds spread is then unknown."""
    if plan.request.source == "released":
        return
    for table in checked:
        single = sum(
            bool(cell.margin and table.table.columns[key].eval)
            and len(cell.values) == 1
            and cell.verdict == Verdict.WITHIN
            for _, key, cell in table.cells()
        )
        if single:
            yield f"{table.table.heading}: {_cells(single)} within by one seed; several show how far seeds spread"


def _of_claims(claims: Sequence[ClaimVerdict]) -> Iterator[str]:
    for claim in claims:
        if claim.status not in (ClaimStatus.HOLDS, ClaimStatus.NOT_RUN) or claim.incomplete:
            yield f"claim {claim.claim.claim}: {claim.status}"


def _of_first_steps(plan: Plan) -> Iterator[str]:
    runs = FirstStepsCheck.of_plan(plan).runs.values()
    if not_kept := sum(run.not_kept for run in runs):
        yield f"{not_kept} of {len(runs)} results have no first steps to compare with the recorded ones"
    if of_gpu := sum(run.state == "input equal" for run in runs):
        yield f"{of_gpu} of {len(runs)} results are of a GPU: only their input and rates are compared with the recorded"


def _of_code(plan: Plan, checked: Sequence[TableVerdict]) -> Iterator[str]:
    if not revision.commit() or revision.dirty():
        yield "the checkout differs from its commit"
    yield from doubts.of_tables()
    of_results = doubts.doubts(plan, plan.runs.values())
    counted = {doubt for table in checked for doubt in doubts.doubts(plan, plan.runs_of(table.table.table))}
    of_tables = (doubt for table in checked for doubt in table.doubts if doubt not in counted)
    yield from dict.fromkeys((*of_results, *of_tables))


def _cells(count: int) -> str:
    return f"{count} cell{'' if count == 1 else 's'}"
