"""The verdict on one cell: what its runs came to, held against what is printed or recorded."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from reproduce.errors import UserError
from reproduce.harness.plan.build import plan_for_other_seeds, public_weights
from reproduce.harness.plan.model import Cell, Plan, Run
from reproduce.harness.plan.run_state import missing_reason, valid_result
from reproduce.harness.spec import baseline, margins, tables
from reproduce.harness.spec.baseline import RecordedNumbers
from reproduce.harness.spec.paper_data import paper_data_sources
from reproduce.harness.spec.tables import PRINTED_FAILURE, Column, Margin, Printed, Row, Table
from reproduce.harness.verdict import stats as statistics
from reproduce.harness.verdict.stats import Verdict

TURNED = {Verdict.BETTER: Verdict.WORSE, Verdict.WORSE: Verdict.BETTER}
"""What above and below the margin mean of a cost."""


@dataclass(frozen=True)
class Judged:
    """The verdict on one cell, with all that it rests on. Numbers are in the column's unit."""

    verdict: Verdict
    reason: str
    needed: bool = False
    """Whether runs of ours should have made this number."""
    printed: Printed = None
    """As the paper prints it: a number, a time, or `fail`."""
    share_of: str = ""
    """The row whose number ours is divided by before anything is compared: shares are judged, not the numbers."""
    canary: str = ""
    """Whether the evaluation's canary `agreed`, `disagreed`, or is `missing`; empty where none is asked."""
    expected: float | None = None
    """What ours is held against: the printed or recorded number, or an erratum's correction."""
    values: dict[int, float] = field(default_factory=dict)
    """By seed."""
    mean: float | None = None
    sd: float | None = None
    difference: float | None = None
    interval: tuple[float, float] | None = None
    interval_of: str = ""
    p_value: float | None = None
    """Of several seeds. Held to a margin: of what the verdict claims, adjusted for the table's other cells (Holm).
    Held against recorded numbers: Welch's test of equal means, which the verdict does not rest on."""
    margin: Margin | None = None
    margin_before: float | None = None
    """Points of the margin that was noted before a result was there, where the table has another by now."""
    as_recorded: bool | None = None
    """Whether seeds that were recorded give the same numbers again, to the digit; None where none of them ran."""
    other_pictures: bool = False
    """Whether it is of other pictures than the scale's own: bars that are set for these do not hold."""
    run_ids: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """What the runs of a cell came to, by seed; a seed is in exactly one of values, collapsed, failed and missing."""

    values: dict[int, float] = field(default_factory=dict)
    collapsed: dict[int, str] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    missing: dict[int, str] = field(default_factory=dict)
    unasked: dict[int, float] = field(default_factory=dict)
    """Results of other seeds than those asked for. (Where one of these failed, it is among the failed.)"""
    unavailable: dict[int, str] = field(default_factory=dict)
    """Of public weights that are no longer where they were."""
    num_test_images: int | None = None
    pretrainings: dict[int, str] = field(default_factory=dict)
    """By seed, the run that made the network; none of public weights and of measurements."""
    run_ids: list[str] = field(default_factory=list)
    """Of these values; where the best of several settings counts, of that setting."""
    choice: str = ""
    """How it was chosen, a sentence."""

    @property
    def independent(self) -> list[float]:
        """The values that count as seeds: what another training could have made another number.

        Several finetunings of one pretraining are one, their mean. Runs without a pretraining of ours that all give
        the same number are one, too: nothing is drawn in them.
        """
        by_network: dict[str | int, list[float]] = {}
        for seed, value in self.values.items():
            by_network.setdefault(self.pretrainings.get(seed, seed), []).append(value)
        values = [statistics.mean(each) for each in by_network.values()]
        nothing_drawn = not self.pretrainings and len(set(values)) == 1
        return values[:1] if nothing_drawn else values

    @property
    def test_set_error(self) -> float:
        """Binomial standard error that a finite test set leaves, in points; 0 where no result counts its pictures.

        (For mean average precision, which is no share of hits, it is a rough stand-in of the right size.)
        """
        if not self.num_test_images:
            return 0.0
        return statistics.binomial_se(statistics.mean(list(self.values.values())), self.num_test_images)


@dataclass(frozen=True)
class Evidence:
    """What a check judges by: a plan's runs, runs of seeds beyond it, and recorded numbers."""

    plan: Plan
    recorded: RecordedNumbers
    beyond: Plan | None

    @classmethod
    def of(cls, plan: Plan) -> "Evidence":
        """All that there is."""
        return cls(plan, baseline.load(plan.request.scale), plan_for_other_seeds(plan))

    def cell(self, table: Table, row: str, column: str) -> Cell | None:
        """How a number is made; None where no run of ours makes it."""
        return _cell(self.plan, f"{table.table}/{row}/{column}")

    def outcome(self, cell: Cell) -> Outcome:
        """What a cell's runs came to; a seed that failed counts, asked for or not."""
        found = outcome(self.plan, cell)
        others = _cell(self.beyond, cell.table_key) if self.beyond else None
        if not self.beyond or not others:
            return found
        more = outcome(self.beyond, others)
        unasked = " That seed was not asked for; a failure counts all the same."
        collapsed, failed = (
            {seed: f"{sentence.removesuffix('.')}.{unasked}" for seed, sentence in bad.items()}
            for bad in (more.collapsed, more.failed)
        )
        return replace(found, collapsed=found.collapsed | collapsed, failed=found.failed | failed, unasked=more.values)


def _cell(plan: Plan, place: str) -> Cell | None:
    return next((cell for cell in plan.cells if cell.table_key == place), None)


def outcome(plan: Plan, cell: Cell) -> Outcome:
    """Read what a cell's runs left: of several settings, those with the highest mean of the metric that chooses.

    A setting that lacks a result leaves nothing to choose by. Raises `UserError` for a result that is cut short or
    lacks the metric.
    """
    if not cell.runs_by_override:
        return _outcome(plan, cell.runs, cell.metric)
    found = {setting: _outcome(plan, runs, cell.selection_metric) for setting, runs in cell.runs_by_override.items()}
    lacking = [each for each in found.values() if len(each.values) < len(each.run_ids)]
    if lacking:
        return min(lacking, key=lambda each: len(each.missing))  # a failure before what is only missing
    means = {setting: statistics.mean(list(each.values.values())) for setting, each in found.items()}
    best = max(means, key=lambda setting: means[setting])
    others = ", ".join(f"{setting} ({mean:.2f})" for setting, mean in means.items())
    choice = f"Of {others} the best by {cell.selection_metric}, as the authors chose it: {best}."
    return replace(_outcome(plan, cell.runs_by_override[best], cell.metric), choice=choice)


def _outcome(plan: Plan, runs: dict[int, str], metric: str) -> Outcome:
    values: dict[int, float] = {}
    bad: dict[str, dict[int, str]] = {"collapsed": {}, "failed": {}, "unavailable": {}}
    missing: dict[int, str] = {}
    num_test_images = None
    for seed, run in ((seed, plan.runs[name]) for seed, name in runs.items()):
        if failure := _failure(plan, run):
            status, sentence = failure
            bad[status if status in bad else "failed"][seed] = sentence
        elif (result := valid_result(plan, run)) is None:
            missing[seed] = missing_reason(plan, run)
        else:
            values[seed] = _metric(run, result, metric)
            num_test_images = result.get("counts", {}).get("num_test_images")
    return Outcome(
        values,
        bad["collapsed"],
        bad["failed"],
        missing,
        unavailable=bad["unavailable"],
        num_test_images=num_test_images,
        pretrainings={seed: parent for seed, name in runs.items() for parent in plan.runs[name].parents},
        run_ids=list(runs.values()),
    )


def _failure(plan: Plan, run: Run) -> tuple[str, str] | None:
    """Status and sentence of why a run has no result, if it or its pretraining failed."""
    for each in (*(plan.runs[name] for name in run.parents), run):
        if not each.result.exists() and (failure := each.read_failure()):
            return failure["status"], f"{each.label} {failure['status']}: {failure['message']}"
    return None


def _metric(run: Run, result: dict[str, Any], name: str) -> float:
    try:
        return float(result["metrics"][name])
    except KeyError as error:
        raise UserError(
            f"{run.result} has no metric {name!r}, only {', '.join(result['metrics'])}: correct the table's column; "
            "or, if the evaluation gives it by now, delete that file and run the same command again"
        ) from error


def judge(evidence: Evidence, table: Table, row: Row, key: str) -> Judged:
    """Judge one cell."""
    return _with_erratum(_judge(evidence, table, row, key), row, key)


def _judge(evidence: Evidence, table: Table, row: Row, key: str) -> Judged:
    printed, column = row.cells.get(key), table.columns[key]
    cell = evidence.cell(table, row.label, key)
    if cell is None:
        released = evidence.plan.request.source == "released" and column.eval
        return _not_released(table, row, printed) if released else _not_ours(row, column, printed)
    found = evidence.outcome(cell)
    blank = Judged(Verdict.NOT_RUN, "", needed=True, printed=printed, run_ids=found.run_ids)
    if printed == PRINTED_FAILURE:
        return _against_failure(replace(found, values=found.values | found.unasked), blank)
    if bad := found.collapsed | found.failed:  # a seed that failed counts; the others' mean would look too good
        return replace(blank, verdict=Verdict.FAILED, reason=bad[min(bad)])
    if found.unavailable:
        return replace(blank, verdict=Verdict.UNAVAILABLE, reason=found.unavailable[min(found.unavailable)])
    if found.missing:
        return replace(blank, reason=_no_result(found))
    ours = _measured(found, blank)
    if table.expected == "recorded":
        return _told_of_others(found, _told_of_choice(found, _against_recorded(evidence, cell, ours)))
    if other := _other_pictures(evidence.plan, cell):
        return replace(ours, verdict=Verdict.NO_BASELINE, reason=other)
    expected = row.errata[key].value if key in row.errata else tables.parse_printed(printed)
    present = evidence.plan.margin(cell)
    assert expected is not None and present is not None
    margin, before, told_of_margin = _margin(evidence.plan, cell, present)
    if column.relative_to:
        judged = _as_share(evidence, table, row, key, found, expected, margin, ours)
    else:
        judged = _against_printed(found, expected, margin, ours)
    if column.lower_is_better:
        judged = replace(judged, verdict=TURNED.get(judged.verdict, judged.verdict))
    if judged.margin:
        told = replace(judged, margin_before=before, reason=f"{judged.reason} {told_of_margin}".rstrip())
        judged = _told_of_runs(column, told)
    return _told_of_others(found, _told_of_choice(found, judged))


def _other_pictures(plan: Plan, cell: Cell) -> str:
    """A sentence where a run of a cell reads pictures that the paper's number is not of; "" where none does."""
    evaluations = [plan.runs[name] for name in cell.run_ids]
    parents = [plan.runs[name] for each in evaluations for name in each.parents if name in plan.runs]
    for run in (*parents, *evaluations):
        if dataset := run.workload.dataset:
            theirs = paper_data_sources().get(dataset["name"], "others")
            if dataset["source"] != theirs:
                return f"{run.label} reads {dataset['source']}, the paper's {theirs}: nothing to compare with."
    return ""


def _told_of_choice(found: Outcome, judged: Judged) -> Judged:
    return replace(judged, reason=f"{judged.reason} {found.choice}") if found.choice else judged


def _as_share(
    evidence: Evidence, table: Table, row: Row, key: str, found: Outcome, expected: float, margin: Margin, ours: Judged
) -> Judged:
    """Judge a number as a share of another row's, ours of ours and theirs of theirs: hardware cancels out."""
    name = table.columns[key].relative_to
    if row.label == name:
        reason = "The other rows are judged as shares of this number; it is itself held against nothing."
        return replace(ours, verdict=Verdict.NO_BASELINE, reason=reason, share_of=name)
    cell = evidence.cell(table, name, key)
    reference = evidence.outcome(cell).values if cell else {}
    (whole,) = [tables.parse_printed(other.cells[key]) for other in table.rows if other.label == name]
    if not reference or not whole:
        reason = f"It is judged as a share of {name}, which has no number yet."
        return replace(ours, verdict=Verdict.NOT_RUN, reason=reason, share_of=name)
    mean = statistics.mean(list(reference.values()))
    values = {seed: value / reference.get(seed, mean) for seed, value in found.values.items()}
    shares = Outcome(values, pretrainings=found.pretrainings)
    judged = _against_printed(shares, expected / whole, margin, replace(_measured(shares, ours), share_of=name))
    unit = table.columns[key].unit
    return replace(
        judged,
        reason=f"{judged.reason} Judged is the share of {name}, not the {unit} ({ours.mean:.3g} and {mean:.3g}).",
    )


def _told_of_runs(column: Column, judged: Judged) -> Judged:
    """A mean of several runs of the authors' is firmer than one run of ours."""
    if column.num_runs == 1:
        return judged
    ours = len(judged.values)
    return replace(judged, reason=f"{judged.reason} Printed is a mean of {column.num_runs} runs, ours is of {ours}.")


def _told_of_others(found: Outcome, judged: Judged) -> Judged:
    if not found.unasked:
        return judged
    others = ", ".join(f"{seed} ({value:.2f})" for seed, value in sorted(found.unasked.items()))
    return replace(judged, reason=f"{judged.reason} Results of seeds that were not asked for: {others}.")


def _not_ours(row: Row, column: Column, printed: Printed) -> Judged:
    """A cell that no run of ours makes, and why."""
    if row.from_other_paper:
        return Judged(Verdict.REPORTED, row.from_other_paper, printed=printed)
    if row.unavailable:
        return Judged(Verdict.UNAVAILABLE, row.unavailable, printed=printed)
    where = f" They are public: {row.weights}." if row.weights else ""
    return Judged(Verdict.NOT_RUN, f"{row.not_run}{where}" if row.not_run else column.not_run, printed=printed)


def _not_released(table: Table, row: Row, printed: Printed) -> Judged:
    """A cell that no public weights can make, and why."""
    item = public_weights(table, row)
    why = item.unavailable if item else "none are known"
    return Judged(
        Verdict.UNAVAILABLE, f"No public weights fill this row (models/zoo/released.yaml): {why}.", printed=printed
    )


def _no_result(found: Outcome) -> str:
    return f"No result yet: {'; '.join(found.missing.values())}."


def _measured(found: Outcome, blank: Judged) -> Judged:
    values = list(found.values.values())
    return replace(blank, values=found.values, mean=statistics.mean(values), sd=statistics.sd(values))


def _against_failure(found: Outcome, blank: Judged) -> Judged:
    """The paper prints `fail`: a collapse agrees, a training that converges does not."""
    if found.failed:
        return replace(blank, verdict=Verdict.FAILED, reason=found.failed[min(found.failed)])
    if found.missing:
        return replace(blank, reason=_no_result(found))
    if not found.values:
        why = f"As in the paper, the training does not converge: {found.collapsed[min(found.collapsed)]}."
        return replace(blank, verdict=Verdict.EXPECTED_FAILURE, reason=why.replace("..", "."))
    ours = _measured(found, blank)
    if found.collapsed:
        some = f"{len(found.collapsed)} of {len(found.collapsed) + len(found.values)} seeds"
        return replace(ours, verdict=Verdict.INCONCLUSIVE, reason=f"In the paper the training fails; here {some} did.")
    return replace(ours, verdict=Verdict.BETTER, reason="In the paper the training fails to converge; here it did not.")


def _against_printed(found: Outcome, expected: float, margin: Margin, ours: Judged) -> Judged:
    seeds = found.independent
    judgement = statistics.against_printed(seeds, expected, margin.points, found.test_set_error)
    several = len(seeds) > 1
    place = {
        Verdict.REPRODUCED: "lies inside the margin",
        Verdict.WITHIN: "is inside the margin",
        Verdict.BETTER: "lies above the margin",
        Verdict.WORSE: "lies below the margin",
        Verdict.INCONCLUSIVE: "straddles an edge of the margin"
        if several
        else "lies outside, and its test set's error reaches into the margin",
    }[judgement.verdict]
    more = "; more seeds would tell" if several and judgement.verdict == Verdict.INCONCLUSIVE else ""
    spread = judgement.interval if several or found.test_set_error else None
    error = "the mean of our seeds on this test set" if several else "our one seed's test set, not of seeds"
    unit = "" if ours.share_of else " points"
    assert ours.mean is not None
    return replace(
        ours,
        verdict=judgement.verdict,
        reason=f"{_seeds_in_words(found)} {place} of {margin.points}{unit} around {expected:g}{more}.",
        expected=expected,
        difference=ours.mean - expected,
        interval=(spread.low, spread.high) if spread else None,
        interval_of=f"{error}, 90%" if spread else "",
        p_value=judgement.p_value,
        margin=margin,
    )


def _seeds_in_words(found: Outcome) -> str:
    num_seeds, num_runs = len(found.independent), len(found.values)
    if num_seeds > 1:
        of = f", the means of {num_runs} runs," if num_runs > num_seeds else ""
        return f"The 90% interval of {num_seeds} seeds{of}"
    if num_runs == 1:
        return "One seed"
    if found.pretrainings:
        return f"One seed, the mean of {num_runs} runs on its network,"
    return f"One number, the same in {num_runs} runs that draw nothing,"


def _margin(plan: Plan, cell: Cell, margin: Margin) -> tuple[Margin, float | None, str]:
    """The margin to judge by: the narrowest of the table's and those noted before the results were there.

    Beside it the points that were noted, where they are others, and a sentence on it. So a margin that was widened
    after a result helps nobody.
    """
    before = list(_margins_before(plan, cell))
    if None in before:
        return margin, None, "No margin was noted before the result was there."
    noted = min(points for points in before if points is not None)
    if noted == margin.points:
        return margin, None, ""
    if noted > margin.points:
        return margin, noted, f"The margin was narrowed after the result was there: it was {noted} points."
    told = f"The margin was widened to {margin.points} points after the result was there; the {noted} of before stand."
    return replace(margin, points=noted), noted, told


def _margins_before(plan: Plan, cell: Cell) -> Iterator[float | None]:
    for run in (plan.runs[name] for name in cell.run_ids):
        yield margins.read(margins.path(run.folder)).get(run.run_id, {}).get(cell.table_key)


def _with_erratum(judged: Judged, row: Row, key: str) -> Judged:
    """A misprint stands beside the verdict, as the paper's and not as ours."""
    if key not in row.errata:
        return judged
    erratum = row.errata[key]
    reason = f"{judged.reason} Erratum of the paper, which prints {row.cells[key]:g}: {erratum.source}"
    return replace(judged, expected=erratum.value, reason=reason)


def _against_recorded(evidence: Evidence, cell: Cell, ours: Judged) -> Judged:
    plan, recorded = evidence.plan, evidence.recorded
    if not plan.uses_reference_data:
        why = "Not the pictures of this scale: nothing to compare with."
        return replace(ours, verdict=Verdict.NO_BASELINE, reason=why, other_pictures=True)
    known = recorded.cells.get(cell.metric_key)
    if known is None:
        return replace(ours, verdict=Verdict.NO_BASELINE, reason="Nothing is recorded for this cell yet.")
    values = list(ours.values.values())
    unchanged = statistics.prediction_interval(known.values, len(values), known.num_test_images, len(recorded.cells))
    verdict = statistics.against_recorded(values, unchanged)
    place = {Verdict.WITHIN: "inside", Verdict.BETTER: "above", Verdict.WORSE: "below"}[verdict]
    num_seeds = len(known.values)
    reason = (
        f"{place.capitalize()} the interval in which new seeds of unchanged code fall ({num_seeds} recorded seeds)."
    )
    welch = statistics.difference(values, known.values)
    if welch.p_value is not None:
        reason += f" Welch's test of equal means: p = {welch.p_value:.3f}."
    before = dict(zip(recorded.header["seeds"], known.values, strict=False))
    if recorded.header["seeds"][0] in plan.request.seeds and known.run_id not in cell.run_ids:
        same, told = None, "The config has changed since the recording."
    else:
        same, told = _again(before, ours.values)
    return replace(
        ours,
        verdict=verdict,
        reason=f"{reason} {told}".rstrip(),
        expected=statistics.mean(known.values),
        difference=welch.points,
        interval=(unchanged.low, unchanged.high),
        interval_of="new seeds of unchanged code, 99% over all cells together",
        p_value=welch.p_value,
        as_recorded=same,
    )


def _again(before: dict[int, float], now: dict[int, float]) -> tuple[bool | None, str]:
    """Whether the seeds that both have gave the same number, and that in words. Recorded numbers have four decimals."""
    both = sorted(before.keys() & now.keys())
    if not both:
        return None, ""
    other = [seed for seed in both if round(now[seed], 4) != before[seed]]
    if not other:
        return True, "The recorded seeds among these give the same numbers again."
    return False, f"Seed {other[0]} gave {before[other[0]]:.2f} when it was recorded: another machine, or other code."
