"""Do the paper's conclusions hold in what our runs gave? Each with its difference, interval, effect size and reason."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Literal

from models.zoo import entries
from reproduce.harness import results
from reproduce.harness.plan import build
from reproduce.harness.plan.model import Cell, Level, Plan
from reproduce.harness.plan.run_state import missing_reason, valid_result
from reproduce.harness.spec import claims
from reproduce.harness.spec.claims import Claim, Comparison, Convergence, FasterConvergence, Measurement, Spread
from reproduce.harness.verdict import stats as statistics
from reproduce.harness.verdict.cells import Evidence, Outcome
from reproduce.harness.verdict.stats import Difference

UNKNOWN = "nothing is known of the spread over seeds, so it is not decided; SEEDS=3 can decide it"
"""Of one seed a side, whatever it gave: the test sets' error, which is known, is none of seeds."""

OF_PUBLIC = "Level L0: of the published networks themselves, one training a side; seeds are the evaluation's."

Side = Literal["right", "wrong", ""]


class Standing(StrEnum):
    """What is said of a claim."""

    HOLDS = "holds"
    CONTRADICTED = "contradicted"
    INCONCLUSIVE = "inconclusive"
    NOT_RUN = "not run"


SIDES: dict[Standing, Side] = {Standing.HOLDS: "right", Standing.CONTRADICTED: "wrong", Standing.INCONCLUSIVE: ""}
"""The way that one seed a side points, by what it would say if its known error were all."""

WORST_FIRST = (Standing.CONTRADICTED, Standing.NOT_RUN, Standing.INCONCLUSIVE, Standing.HOLDS)
"""A claim stands as the first of these that one of its parts does: it is all of them or none."""


@dataclass(frozen=True)
class Finding:
    """One part of a claim. `difference` and `interval` in points (curves: percent of the training)."""

    what: str
    standing: Standing
    reason: str
    printed: float | None = None
    difference: float | None = None
    interval: tuple[float, float] | None = None
    """Of one seed a side it holds the test sets' error alone; None where there is none."""
    p_value: float | None = None
    effect_size: float | None = None
    """Hedges' g, for several seeds."""
    side: Side = ""
    """Where one seed a side leaves it undecided, the way that it points; "" where known error covers even that."""
    lacking: bool = False
    """Whether a run that can be made has no result."""
    run_ids: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Answer:
    """A claim with what was found."""

    claim: Claim
    findings: list[Finding]
    level: Level = "L1"
    """Whose networks were compared: L0, the authors' public checkpoints, L1, our own pretrainings."""

    @property
    def standing(self) -> Standing:
        """Of the whole. Each part is tested at its full level: that all of them hold is an intersection-union test."""
        return next(standing for standing in WORST_FIRST if any(each.standing == standing for each in self.findings))

    @property
    def side(self) -> Side:
        """The way that an inconclusive claim points: the wrong one if a part does, the right one if all others do."""
        if self.standing != Standing.INCONCLUSIVE:
            return ""
        sides: set[Side] = {each.side for each in self.findings if each.standing == Standing.INCONCLUSIVE}
        return "wrong" if "wrong" in sides else "right" if sides == {"right"} else ""

    @property
    def lacking(self) -> bool:
        """Whether a run that can be made has no result."""
        return any(finding.lacking for finding in self.findings)


def judge(plan: Plan) -> list[Answer]:
    """Judge the claims that were asked for, or else those that need a number of the plan's tables."""
    chosen = plan.claims or claims.using(cell.metric_key.removeprefix(entries.PREFIX) for cell in plan.cells)
    own = plan if plan.claims else build.plan_for_claims(plan.request, chosen)
    of_need = {
        Measurement(cell.pretrain.removeprefix(entries.PREFIX), cell.eval, cell.metric): cell for cell in own.cells
    }
    parts, level = _Judge(Evidence.of(own), of_need), own.level
    return [Answer(claim, [parts.find(part) for part in claim.parts()], level) for claim in chosen]


@dataclass
class _Judge:
    """Judges parts of claims by the numbers that a plan's cells came to."""

    evidence: Evidence
    cells: dict[Measurement, Cell]

    def find(self, part: Comparison | Spread | Convergence | FasterConvergence) -> Finding:
        if self.evidence.plan.request.source == "released" and (
            why := build.missing_weights_reason(part.measurements())
        ):
            return Finding(_in_words(part), Standing.NOT_RUN, why)
        found = self._find(part)
        if found.difference is None or self.evidence.plan.level == "L1":
            return found
        return replace(found, reason=f"{found.reason} {OF_PUBLIC}")

    def _find(self, part: Comparison | Spread | Convergence | FasterConvergence) -> Finding:
        match part:
            case Comparison():
                return self._compare(part)
            case Spread():
                return self._spread(part)
            case Convergence():
                return self._convergence(part)
            case FasterConvergence():
                return self._sooner(part)

    def _outcomes(self, needs: Iterable[Measurement]) -> list[Outcome]:
        return [self.evidence.outcome(self.cells[need]) for need in needs]

    def _run_ids(self, needs: Iterable[Measurement]) -> list[str]:
        return [name for need in needs if need in self.cells for name in self.cells[need].runs.values()]

    def _compare(self, part: Comparison) -> Finding:
        what = _in_words(part)
        needs = list(part.measurements())
        higher, lower = self._outcomes(needs)
        if lacking := _lacking(what, [higher, lower], part.printed, self._run_ids(needs)):
            return lacking
        known = math.hypot(higher.test_set_error, lower.test_set_error)
        found = statistics.difference(list(higher.values.values()), list(lower.values.values()), known)
        return _signed(what, found, part.printed, _num_seeds(higher, lower), self._run_ids(needs))

    def _spread(self, part: Spread) -> Finding:
        """The spread of the means decides: no test set resolves 0.3 points. Beyond it, the widest pair's interval does.

        The pair is chosen for being widest, so its interval is Bonferroni's over all pairs.
        """
        what = _in_words(part)
        needs = list(part.measurements())
        found = self._outcomes(needs)
        if lacking := _lacking(what, found, part.max_points, self._run_ids(needs)):
            return lacking
        pairs = list(itertools.permutations(found, 2))
        confidence = 1 - (1 - statistics.CONFIDENCE) / (len(pairs) // 2)
        widest = max((_difference(*pair, confidence) for pair in pairs), key=lambda pair: pair.points)
        if widest.points <= part.max_points + statistics.ROUNDING:
            standing, place = Standing.HOLDS, "within"
        elif widest.interval.low > part.max_points:
            standing, place = Standing.CONTRADICTED, "beyond, with its whole interval,"
        else:
            standing, place = Standing.INCONCLUSIVE, "beyond, but its interval reaches within,"
        reason = f"The widest difference is {widest.points:.2f} points, {place} the bound of {part.max_points}."
        if _num_seeds(*found) < 2:
            reason, side = f"One seed each. {reason[:-1]}; {UNKNOWN}.", SIDES[standing]
            finding = _finding(what, Standing.INCONCLUSIVE, reason, widest, part.max_points, self._run_ids(needs))
            return replace(finding, side=side)
        return _finding(what, standing, reason, widest, part.max_points, self._run_ids(needs))

    def _convergence(self, part: Convergence) -> Finding:
        what = _in_words(part)
        needs = list(part.measurements())
        run_ids = self._run_ids(needs)
        good, bad = self._outcomes(needs)
        lacking = _lacking(what, [good, Outcome({}, {}, bad.failed, bad.missing)], None, run_ids)
        if lacking and not good.collapsed:
            return lacking
        if good.collapsed:
            standing, reason = Standing.CONTRADICTED, f"{good.collapsed[min(good.collapsed)].rstrip('.')}."
        elif bad.values and bad.collapsed:
            standing = Standing.INCONCLUSIVE
            reason = f"{len(bad.collapsed)} of {len(bad.collapsed) + len(bad.values)} seeds of {part.fails} collapsed."
        elif bad.values:
            standing, reason = Standing.CONTRADICTED, f"{part.fails} did not collapse."
        else:
            standing, reason = Standing.HOLDS, f"Every seed of {part.fails} collapsed, none of {part.converges}."
        told = [good] if good.collapsed else [good, bad]
        if standing != Standing.INCONCLUSIVE and _num_seeds(*told) < 2:  # seeds may differ in this, too
            side = SIDES[standing]
            reason = f"{part.fails} collapsed, {part.converges} did not." if side == "right" else reason
            reason = f"One seed a side: {reason[:-1]}, {_place(side)}; {UNKNOWN}."
            return Finding(what, Standing.INCONCLUSIVE, reason, side=side, run_ids=run_ids)
        return Finding(what, standing, reason, run_ids=run_ids)

    def _sooner(self, part: FasterConvergence) -> Finding:
        what = _in_words(part)
        needs = list(part.measurements())
        first, then = (self._half_falls(need) for need in needs)
        if lacking := _lacking(what, [first, then], None, self._run_ids(needs)):
            return lacking
        found = statistics.difference(list(then.values.values()), list(first.values.values()))
        return _signed(what, found, None, _num_seeds(first, then), self._run_ids(needs))

    def _half_falls(self, need: Measurement) -> Outcome:
        plan = self.evidence.plan
        runs = {seed: plan.runs[name] for seed, name in self.cells[need].runs.items()}
        values, missing = {}, {}
        for seed, run in runs.items():
            curve = results.losses(Path(run.folder) / "metrics.jsonl") if valid_result(plan, run) else []
            if curve:
                values[seed] = half_fall_percent(curve)
            else:
                missing[seed] = missing_reason(plan, run)
        return Outcome(values, missing=missing)


def _in_words(part: Comparison | Spread | Convergence | FasterConvergence) -> str:
    match part:
        case Comparison():
            return f"{part.higher} over {part.lower}, {part.eval}"
        case Spread():
            return f"spread of {len(part.experiments)} experiments, {part.eval}"
        case Convergence():
            return f"{part.converges} converges, {part.fails} does not"
        case FasterConvergence():
            return f"{part.faster} before {part.slower}, percent of the training until half of the loss's fall"


def half_fall_percent(curve: Sequence[tuple[float, float]]) -> float:
    """Percent of the training after which a loss `(step, loss)` has fallen half of the way from first to last.

    The loss is averaged over hundredths of the training: single batches scatter.
    """
    last_step = curve[-1][0] or 1.0
    hundredths: dict[int, list[float]] = {}
    for step, loss in curve:
        hundredths.setdefault(min(99, int(100 * step / last_step)), []).append(loss)
    means = {hundredth: statistics.mean(values) for hundredth, values in hundredths.items()}
    half = (means[min(means)] + means[max(means)]) / 2
    return float(next(hundredth for hundredth, loss in means.items() if loss <= half or hundredth == max(means)))


def _difference(ours: Outcome, theirs: Outcome, confidence: float) -> Difference:
    known = math.hypot(ours.test_set_error, theirs.test_set_error)
    return statistics.difference(list(ours.values.values()), list(theirs.values.values()), known, confidence)


def _lacking(what: str, found: Sequence[Outcome], printed: float | None, run_ids: list[str]) -> Finding | None:
    """A finding without numbers, where a run failed, collapsed or is missing: the rest would look too good."""
    collapsed = [sentence for each in found for sentence in each.collapsed.values()]
    failed = [sentence for each in found for sentence in each.failed.values()]
    missing = [label for each in found for label in each.missing.values()]
    if failed or missing:
        reason = failed[0] if failed else f"No result yet: {'; '.join(missing)}"
        return Finding(what, Standing.NOT_RUN, f"{reason.rstrip('.')}.", printed, lacking=True, run_ids=run_ids)
    if gone := [sentence for each in found for sentence in each.unavailable.values()]:
        return Finding(what, Standing.NOT_RUN, f"{gone[0].rstrip('.')}.", printed, run_ids=run_ids)
    if collapsed:
        return Finding(what, Standing.INCONCLUSIVE, f"{collapsed[0].rstrip('.')}.", printed, run_ids=run_ids)
    return None


def _signed(what: str, found: Difference, printed: float | None, num_seeds: int, run_ids: list[str]) -> Finding:
    """Above zero with its whole interval it holds, below it is contradicted."""
    if found.interval.low > 0:
        standing, place = Standing.HOLDS, "above zero"
    elif found.interval.high < 0:
        standing, place = Standing.CONTRADICTED, "below zero"
    else:
        standing, place = Standing.INCONCLUSIVE, "not clear of zero"
    if num_seeds > 1:
        reason = f"The 90% interval of the difference is {place}. {num_seeds} seeds a side (Welch)."
        return _finding(what, standing, reason, found, printed, run_ids)
    side = SIDES[standing]
    reason = f"One seed a side: {found.points:+.1f} points, {_place(side)}; {UNKNOWN}."
    return replace(_finding(what, Standing.INCONCLUSIVE, reason, found, printed, run_ids), side=side)


def _num_seeds(*sides: Outcome) -> int:
    """Of the side that has fewest."""
    return min(len(side.values) + len(side.collapsed) for side in sides)


def _place(side: Side) -> str:
    return f"on the {side} side" if side else "no more than its known error"


def _finding(
    what: str, standing: Standing, reason: str, found: Difference, printed: float | None, run_ids: list[str]
) -> Finding:
    known = found.interval.low < found.interval.high
    interval = (found.interval.low, found.interval.high) if known else None
    return Finding(
        what, standing, reason, printed, found.points, interval, found.p_value, found.effect_size, run_ids=run_ids
    )
