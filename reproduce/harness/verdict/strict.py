"""What a strict check, for CI, does not let pass though no cell disagrees."""

from collections import Counter
from collections.abc import Iterator, Sequence

from reproduce.harness import revision
from reproduce.harness.plan.model import Plan
from reproduce.harness.plan.run_state import valid_result
from reproduce.harness.verdict.check import Checked
from reproduce.harness.verdict.claims import Answer, Standing
from reproduce.harness.verdict.stats import Verdict


def complaints(plan: Plan, checked: Sequence[Checked], answers: Sequence[Answer]) -> list[str]:
    """A sentence for each kind of doubt that the verdicts leave, none where they leave none."""
    return [*_of_cells(checked), *_of_claims(answers), *_of_code(plan)]


def _of_cells(checked: Sequence[Checked]) -> Iterator[str]:
    for table in checked:
        judged = [cell for _, _, cell in table.judged() if cell.needed]
        open_ones = Counter(
            str(cell.verdict)
            for cell in judged
            if cell.verdict in (Verdict.INCONCLUSIVE, Verdict.NOT_RUN)
            or (cell.verdict == Verdict.NO_BASELINE and not cell.share_of)  # what others are shares of has none
        )
        for verdict, count in open_ones.items():
            yield f"{table.table.heading}: {_cells(count)} {verdict}"
        if missing := sum(cell.canary == "missing" for cell in judged):
            yield f"{table.table.heading}: {_cells(missing)} not preceded by a canary"


def _of_claims(answers: Sequence[Answer]) -> Iterator[str]:
    for answer in answers:
        if answer.standing in (Standing.CONTRADICTED, Standing.INCONCLUSIVE) or answer.lacking:
            yield f"claim {answer.claim.claim}: {answer.standing}"


def _of_code(plan: Plan) -> Iterator[str]:
    here = revision.commit()
    if not here or revision.dirty():
        yield "the checkout differs from its commit"
    made_by = [result.get("provenance", {}) for run in plan.runs.values() if (result := valid_result(plan, run))]
    if others := sum(
        revision.run_code_fingerprint(str(each.get("git_commit"))) != revision.run_code_fingerprint(here)
        for each in made_by
    ):
        yield f"{others} of {len(made_by)} results were made by other code than this commit's"
    if dirty := sum(bool(each.get("git_dirty")) for each in made_by):
        yield f"{dirty} of {len(made_by)} results were made by code that is in no commit"


def _cells(count: int) -> str:
    return f"{count} cell{'' if count == 1 else 's'}"
