"""Whether the paper's claims (`spec.claims`) hold in our runs: each part with its difference and interval."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from models.zoo import entries
from reproduce.errors import UserError
from reproduce.harness import results
from reproduce.harness.plan import build
from reproduce.harness.plan.model import Cell, Level, Plan, Request, Run
from reproduce.harness.plan.run_state import missing_reason, valid_result
from reproduce.harness.spec import baseline, claims
from reproduce.harness.spec.claims import Claim, Comparison, Convergence, FasterConvergence, Measurement, Spread
from reproduce.harness.verdict import doubts, notes, stats
from reproduce.harness.verdict.labels import ClaimStatus, Tendency
from reproduce.harness.verdict.notes import Note
from reproduce.harness.verdict.seed_results import RecordedInputs, SeedResults, VerdictInputs
from reproduce.harness.verdict.stats import Difference
from reproduce.harness.verdict.wording import sentences

Part = Comparison | Spread | Convergence | FasterConvergence

TENDENCIES: dict[ClaimStatus, Tendency] = {
    ClaimStatus.HOLDS: "right",
    ClaimStatus.CONTRADICTED: "wrong",
    ClaimStatus.INCONCLUSIVE: "",
}
"""Which way one seed per side points, by the status that it would have if its known error were all."""

WORST_FIRST = (
    *(ClaimStatus.CONTRADICTED, ClaimStatus.CHANGED, ClaimStatus.NOT_RUN, ClaimStatus.INCONCLUSIVE, ClaimStatus.HOLDS),
)
"""A claim has the first of these statuses that one of its parts has: all parts must hold."""


@dataclass(frozen=True)
class PartVerdict:
    """The verdict on one part of a claim. `difference` and `interval` are in points (curves: percent of training)."""

    label: str
    status: ClaimStatus
    notes: tuple[Note, ...] = ()
    printed: float | None = None
    difference: float | None = None
    interval: tuple[float, float] | None = None
    """For one seed per side it holds the test sets' error alone; None if it has no width."""
    p_value: float | None = None
    effect_size: float | None = None
    """Hedges' g, for several seeds."""
    tendency: Tendency = ""
    """Which way one seed per side points; "" if the known error covers even that."""
    incomplete: bool = False
    """Whether a run that can be made has no result."""
    run_ids: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        """Return the notes in words."""
        return sentences(self.notes)


@dataclass(frozen=True)
class ClaimVerdict:
    """The verdict on a claim: that on each of its parts."""

    claim: Claim
    parts: tuple[PartVerdict, ...]
    level: Level
    """Whose networks were compared: public weights, or those of our own training."""
    runs: tuple[Run, ...] = ()
    """The runs behind its parts, with those that these build on."""
    doubts: tuple[str, ...] = ()
    """What a reader should know of the results before believing it, without full stops."""

    @property
    def status(self) -> ClaimStatus:
        """Return the worst part's status. Each part is tested at its full level (an intersection-union test)."""
        return next(status for status in WORST_FIRST if any(part.status == status for part in self.parts))

    @property
    def tendency(self) -> Tendency:
        """Return which way an inconclusive claim points: wrong if a part does, right if all inconclusive parts do."""
        if self.status != ClaimStatus.INCONCLUSIVE:
            return ""
        found: set[Tendency] = {part.tendency for part in self.parts if part.status == ClaimStatus.INCONCLUSIVE}
        return "wrong" if "wrong" in found else "right" if found == {"right"} else ""

    @property
    def incomplete(self) -> bool:
        """Return whether a run that can be made has no result."""
        return any(part.incomplete for part in self.parts)


def check_claims(plan: Plan) -> list[ClaimVerdict]:
    """Judge the requested claims or, if the plan requests none, those that use a number of its tables."""
    chosen = plan.claims or claims.using(cell.metric_key.removeprefix(entries.PREFIX) for cell in plan.cells)
    own = plan if plan.claims else build.plan_for_claims(plan.request, chosen)
    cells = {
        Measurement(cell.pretrain.removeprefix(entries.PREFIX), cell.eval, cell.metric): cell for cell in own.cells
    }
    judge = _PartJudge(VerdictInputs.load(own), cells)
    verdicts = [judge.claim_verdict(claim) for claim in chosen]
    return [replace(each, doubts=tuple(doubts.doubts(own, each.runs))) for each in verdicts]


def check_recorded_claims(scale: str) -> list[ClaimVerdict]:
    """Judge the claims that use a recorded number of a scale by these numbers alone, not by results.

    So claims can be judged where none of the runs was done. Raises `UserError` if nothing is recorded.
    """
    recorded = baseline.load(scale)
    if not recorded.cells:
        raise UserError(f"nothing is recorded at scale {scale}: make record-baseline SCALE={scale} does that")
    chosen = claims.using(recorded.cells)
    plan = build.plan_for_claims(Request((), scale, tuple(recorded.header["seeds"])), chosen)
    cells = {Measurement(cell.pretrain, cell.eval, cell.metric): cell for cell in plan.cells}
    judge = _PartJudge(RecordedInputs.load(plan), cells)
    return [judge.claim_verdict(claim) for claim in chosen]


def part_label(part: Part) -> str:
    """Return what a part compares, in words."""
    match part:
        case Comparison():
            against = f" against {part.lower_eval}" if part.lower_eval else ""
            return f"{part.higher} over {part.lower}, {part.eval}{against}"
        case Spread():
            return f"spread of {len(part.experiments)} experiments, {part.eval}"
        case Convergence():
            return f"{part.converges} converges, {part.fails} does not"
        case FasterConvergence():
            return f"{part.faster} before {part.slower}, percent of the training until half of the loss's fall"


@dataclass(frozen=True)
class _PartJudge:
    """Judges parts of claims by the results of a plan's cells, or by the recorded numbers."""

    inputs: VerdictInputs | RecordedInputs
    cells: dict[Measurement, Cell]

    def claim_verdict(self, claim: Claim) -> ClaimVerdict:
        """Return the verdict on a claim, with its runs, but without the doubts about their results."""
        plan, parts = self.inputs.plan, claim.parts()
        measured = [self.cells[each] for part in parts for each in part.measurements() if each in self.cells]
        behind = dict.fromkeys(name for cell in measured for run_id in cell.run_ids for name in plan.behind(run_id))
        runs = tuple(plan.runs[name] for name in behind)
        return ClaimVerdict(claim, tuple(map(self.verdict_for, parts)), plan.level, runs)

    def verdict_for(self, part: Part) -> PartVerdict:
        public = self.inputs.plan.request.source == "released"
        if public and (why := build.missing_weights_reason(part.measurements())):
            return PartVerdict(part_label(part), ClaimStatus.NOT_RUN, (notes.StatedReason(why),))
        found = self._with_first_steps(part, self._verdict_for(part))
        if found.difference is None or not public:
            return found
        return replace(found, notes=(*found.notes, notes.PublishedNetworks()))

    def _with_first_steps(self, part: Part, found: PartVerdict) -> PartVerdict:
        """Call a part `changed` if a run behind it took other first steps than recorded: it then decides nothing."""
        run_ids = [name for each in part.measurements() for name in self.cells[each].run_ids]
        differences = self.inputs.first_steps.differences(run_ids)
        if not differences:
            return found
        status = found.status if found.status == ClaimStatus.NOT_RUN else ClaimStatus.CHANGED
        return replace(found, status=status, tendency="", notes=(*found.notes, *differences))

    def _verdict_for(self, part: Part) -> PartVerdict:
        blank = PartVerdict(part_label(part), ClaimStatus.NOT_RUN, run_ids=self._run_ids(part.measurements()))
        match part:
            case Comparison():
                return self._compare(part, replace(blank, printed=part.printed))
            case Spread():
                return self._spread(part, replace(blank, printed=part.max_points))
            case Convergence():
                return self._convergence(part, blank)
            case FasterConvergence():
                return self._sooner(part, blank)

    def _seed_results(self, measurements: Iterable[Measurement]) -> list[SeedResults]:
        return [self.inputs.seed_results(self.cells[each]) for each in measurements]

    def _run_ids(self, measurements: Iterable[Measurement]) -> tuple[str, ...]:
        return tuple(name for each in measurements if each in self.cells for name in self.cells[each].runs.values())

    def _compare(self, part: Comparison, blank: PartVerdict) -> PartVerdict:
        higher, lower = self._seed_results(part.measurements())
        if incomplete := _without_numbers(blank, [higher, lower]):
            return incomplete
        found = _difference(higher, lower)
        return _require_spread(_signed(blank, found, _num_seeds(higher, lower)), [higher, lower])

    def _spread(self, part: Spread, blank: PartVerdict) -> PartVerdict:
        """Judge a spread: it holds if every two experiments are equivalent within the bound, beyond doubt by seeds.

        All are measured on the same test images, so the error of those images, which resolves no 0.3 points, does not
        matter for that. It does for the contradiction: the widest pair's interval, with that error, lies beyond the
        bound. That pair is chosen because it is the widest, so its interval is Bonferroni's over all pairs. One seed
        each shows no spread over seeds; it points where the means do.
        """
        found = self._seed_results(part.measurements())
        if incomplete := _without_numbers(blank, found):
            return incomplete
        pairs = list(itertools.permutations(found, 2))
        confidence = 1 - (1 - stats.CONFIDENCE) / (len(pairs) // 2)
        widest = max((_difference(*pair, confidence) for pair in pairs), key=lambda pair: pair.points)
        one_seed = _num_seeds(*found) < 2
        reach = widest.points if one_seed else stats.widest_possible_difference([each.independent for each in found])
        if reach <= part.max_points + stats.ROUNDING:
            status = ClaimStatus.HOLDS
        elif widest.interval.low > part.max_points:
            status = ClaimStatus.CONTRADICTED
        else:
            status = ClaimStatus.INCONCLUSIVE
        note = notes.WidestDifference(widest.points, part.max_points, status, one_seed, reach)
        if one_seed:
            undecided = _with_difference(blank, ClaimStatus.INCONCLUSIVE, note, widest)
            return replace(undecided, tendency=TENDENCIES[status])
        return _require_spread(_with_difference(blank, status, note, widest), found)

    def _convergence(self, part: Convergence, blank: PartVerdict) -> PartVerdict:
        good, bad = self._seed_results(part.measurements())
        incomplete = _without_numbers(blank, [good, SeedResults(failed=bad.failed, missing=bad.missing)])
        if incomplete and not good.collapsed:
            return incomplete
        note: Note
        if good.collapsed:
            status, one_seed = ClaimStatus.CONTRADICTED, _num_seeds(good) < 2
            note = notes.CollapsedUnexpectedly(good.collapsed[min(good.collapsed)], one_seed)
        else:
            num_collapsed, num_seeds = len(bad.collapsed), len(bad.collapsed) + len(bad.values)
            if hasty := [failure for failure in bad.collapsed.values() if failure.hasty]:
                early = notes.HastyDetector(hasty[0], notes.MIN_PATIENCE_EPOCHS)
                return replace(blank, status=ClaimStatus.INCONCLUSIVE, notes=(early,))
            if bad.values and bad.collapsed:
                status = ClaimStatus.INCONCLUSIVE
            else:
                status = ClaimStatus.CONTRADICTED if bad.values else ClaimStatus.HOLDS
            one_seed = status != ClaimStatus.INCONCLUSIVE and _num_seeds(good, bad) < 2
            tendency = TENDENCIES[status] if one_seed else ""
            note = notes.Convergence(part.converges, part.fails, num_collapsed, num_seeds, tendency)
        if one_seed:  # whether a training collapses may differ from seed to seed, too
            return replace(blank, status=ClaimStatus.INCONCLUSIVE, notes=(note,), tendency=TENDENCIES[status])
        return replace(blank, status=status, notes=(note,))

    def _sooner(self, part: FasterConvergence, blank: PartVerdict) -> PartVerdict:
        first, then = (self._half_falls(each) for each in part.measurements())
        if incomplete := _without_numbers(blank, [first, then]):
            return incomplete
        found = stats.difference(then.independent, first.independent)
        return _signed(blank, found, _num_seeds(first, then))

    def _half_falls(self, measurement: Measurement) -> SeedResults:
        if isinstance(self.inputs, RecordedInputs):
            return SeedResults(missing={0: "curves are not recorded"})
        plan = self.inputs.plan
        values, missing = {}, {}
        for seed, run in ((seed, plan.runs[name]) for seed, name in self.cells[measurement].runs.items()):
            curve = results.losses(Path(run.folder) / "metrics.jsonl") if valid_result(plan, run) else []
            if curve:
                values[seed] = half_fall_percent(curve)
            else:
                missing[seed] = missing_reason(plan, run)
        return SeedResults(values, missing=missing)


def half_fall_percent(curve: Sequence[tuple[float, float]]) -> float:
    """Return the percent of training after which a loss `(step, loss)` has fallen half way from first to last.

    The loss is averaged over hundredths of the training because single batches scatter.
    """
    last_step = curve[-1][0] or 1.0
    hundredths: dict[int, list[float]] = {}
    for step, loss in curve:
        hundredths.setdefault(min(99, int(100 * step / last_step)), []).append(loss)
    means = {hundredth: stats.mean(values) for hundredth, values in hundredths.items()}
    half = (means[min(means)] + means[max(means)]) / 2
    return float(next(hundredth for hundredth, loss in means.items() if loss <= half or hundredth == max(means)))


def _difference(ours: SeedResults, theirs: SeedResults, confidence: float = stats.CONFIDENCE) -> Difference:
    """Compare two experiments by the numbers that count as seeds (`SeedResults.independent`)."""
    known = math.hypot(ours.test_set_error, theirs.test_set_error)
    return stats.difference(ours.independent, theirs.independent, known, confidence)


def _without_numbers(blank: PartVerdict, found: Sequence[SeedResults]) -> PartVerdict | None:
    """Return a verdict without numbers if a run failed, collapsed or is missing: the rest would look too good."""
    failed = [failure for each in found for failure in each.failed.values()]
    missing = [run for each in found for run in each.missing.values()]
    unavailable = [failure for each in found for failure in each.unavailable.values()]
    collapsed = [failure for each in found for failure in each.collapsed.values()]
    if failed or missing:
        note = failed[0] if failed else notes.MissingResults(tuple(missing))
        return replace(blank, notes=(note,), incomplete=True)
    if unavailable:
        return replace(blank, notes=(unavailable[0],))
    if collapsed:
        return replace(blank, status=ClaimStatus.INCONCLUSIVE, notes=(collapsed[0],))
    return None


def _signed(blank: PartVerdict, found: Difference, num_seeds: int) -> PartVerdict:
    """Judge a difference that should be positive: it holds if its whole interval is, and is contradicted if none is."""
    if found.interval.low > 0:
        status = ClaimStatus.HOLDS
    elif found.interval.high < 0:
        status = ClaimStatus.CONTRADICTED
    else:
        status = ClaimStatus.INCONCLUSIVE
    if num_seeds > 1:
        return _with_difference(blank, status, notes.DifferenceSign(status, num_seeds), found)
    tendency = TENDENCIES[status]
    note = notes.OneSeedDifference(found.points, tendency)
    return replace(_with_difference(blank, ClaimStatus.INCONCLUSIVE, note, found), tendency=tendency)


def _require_spread(part: PartVerdict, sides: Sequence[SeedResults]) -> PartVerdict:
    """Let a part decide nothing if the pretrainings of a side gave one number: one of them may be a copy."""
    same = [len(each.independent) for each in sides if each.pretrainings and each.without_spread]
    if not same:
        return part
    found = (*part.notes, notes.NoSpread(same[0]))
    return replace(part, status=ClaimStatus.INCONCLUSIVE, notes=found, interval=None, p_value=None, effect_size=None)


def _num_seeds(*sides: SeedResults) -> int:
    """Return the number of seeds of the side that has fewest."""
    return min(len(side.independent) + len(side.collapsed) for side in sides)


def _with_difference(blank: PartVerdict, status: ClaimStatus, note: Note, found: Difference) -> PartVerdict:
    has_width = found.interval.low < found.interval.high
    return replace(
        blank,
        status=status,
        notes=(note,),
        difference=found.points,
        interval=(found.interval.low, found.interval.high) if has_width else None,
        p_value=found.p_value,
        effect_size=found.effect_size,
    )
