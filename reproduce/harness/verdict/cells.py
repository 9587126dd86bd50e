"""The verdict on one cell: what its runs gave, compared with the printed or the recorded number."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

from reproduce.errors import UserError
from reproduce.harness.plan.build import public_weights
from reproduce.harness.plan.model import Cell, Plan
from reproduce.harness.spec import margins, tables
from reproduce.harness.spec.baseline import RecordedCell
from reproduce.harness.spec.paper_data import paper_data_sources
from reproduce.harness.spec.tables import PRINTED_FAILURE, Column, Margin, Printed, Row, Table
from reproduce.harness.verdict import notes, stats
from reproduce.harness.verdict.labels import AGREEING, DISAGREEING, IntervalKind, Verdict
from reproduce.harness.verdict.notes import CanaryState, Note
from reproduce.harness.verdict.seed_results import SeedResults, VerdictInputs
from reproduce.harness.verdict.unchanged import unchanged
from reproduce.harness.verdict.wording import sentences

FLIPPED = {Verdict.BETTER: Verdict.WORSE, Verdict.WORSE: Verdict.BETTER}
"""What above and below the margin mean if lower is better."""


@dataclass(frozen=True)
class CellVerdict:
    """The verdict on one cell with all that it rests on. Numbers are in the column's unit."""

    verdict: Verdict
    notes: tuple[Note, ...] = ()
    needed: bool = False
    """Whether runs of ours should have made this number."""
    printed: Printed = None
    """As the paper prints it: a number, a time, or `fail`."""
    share_of: str = ""
    """The row whose number ours is divided by before the comparison; all numbers here are then shares."""
    canary: CanaryState | Literal[""] = ""
    """State of the evaluation's canary; "" if the cell needs none."""
    expected: float | None = None
    """What ours is compared with: the printed or recorded number, or an erratum's correction."""
    values: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    """Our numbers by seed."""
    mean: float | None = None
    sd: float | None = None
    difference: float | None = None
    interval: tuple[float, float] | None = None
    interval_kind: IntervalKind | None = None
    noticeable_fall: float | None = None
    """Compared with recorded numbers: the smallest fall, in points, that the interval would almost surely notice
    (`stats.noticeable_fall`). None if there is none, or if the cell is compared with a margin."""
    p_value: float | None = None
    """For several seeds. Compared with a margin: p-value of the claim that the verdict makes, adjusted for the table's
    other cells (Holm). Compared with recorded numbers: Welch's test of equal means, which the verdict ignores."""
    margin: Margin | None = None
    margin_before: float | None = None
    """Points of the margin recorded before a result existed, if the table has another one now."""
    recorded_match: bool | None = None
    """Whether recorded seeds give their numbers again to the digit; None if none of them ran."""
    run_ids: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        """Return the notes in words."""
        return sentences(self.notes)

    def with_notes(self, *added: Note) -> "CellVerdict":
        """Return the same verdict with more notes."""
        return replace(self, notes=(*self.notes, *added))


def verdict_for(inputs: VerdictInputs, table: Table, row: Row, key: str) -> CellVerdict:
    """Return the verdict on the cell of `row` in column `key`, before adjustments that look at the whole table."""
    printed, column = row.cells.get(key), table.columns[key]
    cell = inputs.cell(table, row.label, key)
    if cell is None:
        from_public_weights = inputs.plan.request.source == "released" and column.eval
        return _without_public_weights(table, row, printed) if from_public_weights else _not_ours(row, column, printed)
    found = inputs.seed_results(cell)
    blank = CellVerdict(
        Verdict.NOT_RUN, needed=True, printed=printed, run_ids=tuple(run.run_id for run in found.runs.values())
    )
    if printed == PRINTED_FAILURE or (row.may_fail and found.collapsed):
        return _compare_with_failure(found, blank)
    if failures := found.collapsed | found.failed:  # a failed seed counts; the others' mean would look too good
        return replace(blank, verdict=Verdict.FAILED, notes=(failures[min(failures)],))
    if found.unavailable:
        return replace(blank, verdict=Verdict.UNAVAILABLE, notes=(found.unavailable[min(found.unavailable)],))
    if found.missing:
        return blank.with_notes(_missing(found))
    _require_possible(cell, column, found)
    ours = _measured(found, blank)
    if table.expected == "recorded":
        compared = _compare_with_recorded(inputs, cell, ours)
    elif other := _other_dataset(inputs.plan, cell):
        return replace(ours, verdict=Verdict.NO_BASELINE, notes=(other,))
    else:
        compared = _compare_with_printed(inputs, table, row, key, cell, found, ours)
    chosen = (found.choice,) if found.choice else ()
    return _require_spread(found, compared).with_notes(*chosen, *_other_seeds(cell, found))


def _other_seeds(cell: Cell, found: SeedResults) -> Iterator[Note]:
    """Yield a note on the seeds that gave numbers although nobody requested them: are they judged or not."""
    judged = {seed: value for seed, value in found.values.items() if seed not in cell.runs}
    for values, are_judged in ((judged, True), (found.other_seeds, False)):
        if values:
            yield notes.OtherSeeds(tuple(sorted(values.items())), are_judged)


def _require_spread(found: SeedResults, cell: CellVerdict) -> CellVerdict:
    """Call a number `inconclusive` if several pretrainings gave it to the last digit: one of them may be a copy."""
    if cell.verdict not in AGREEING | DISAGREEING or not found.pretrainings or not found.without_spread:
        return cell
    same = notes.NoSpread(len(found.independent))
    return replace(cell, verdict=Verdict.INCONCLUSIVE, p_value=None, interval=None, interval_kind=None).with_notes(same)


def _require_possible(cell: Cell, column: Column, found: SeedResults) -> None:
    """Raise `UserError` for a number that nothing can measure: it would be called better, or worse."""
    percent = column.unit.endswith("%")
    for seed, value in found.values.items():
        if not (0 <= value <= 100 if percent else value > 0):
            what = "no percentage" if percent else "not more than zero"
            raise UserError(
                f"{found.runs[seed].result} has {cell.metric} {value}, which is {what}: correct the evaluation "
                "or the table's unit, delete that file and run the same command again"
            )


def _not_ours(row: Row, column: Column, printed: Printed) -> CellVerdict:
    """Return the verdict on a cell that no run of ours makes."""
    if row.from_other_paper:
        return CellVerdict(Verdict.REPORTED, (notes.StatedReason(row.from_other_paper),), printed=printed)
    if row.unavailable:
        return CellVerdict(Verdict.UNAVAILABLE, (notes.StatedReason(row.unavailable),), printed=printed)
    not_run = CellVerdict(Verdict.NOT_RUN, (notes.StatedReason(row.not_run or column.not_run),), printed=printed)
    return not_run.with_notes(notes.PublicWeights(row.weights)) if row.not_run and row.weights else not_run


def _without_public_weights(table: Table, row: Row, printed: Printed) -> CellVerdict:
    """Return the verdict on a cell that no public weights can make."""
    item = public_weights(table, row)
    note = notes.NoPublicWeights((item and item.unavailable) or "none are known")
    return CellVerdict(Verdict.UNAVAILABLE, (note,), printed=printed)


def _missing(found: SeedResults) -> Note:
    return notes.MissingResults(tuple(found.missing.values()))


def _measured(found: SeedResults, blank: CellVerdict) -> CellVerdict:
    """Add the numbers, their spread, and the mean of the networks, by which the verdict is made."""
    return replace(
        blank, values=found.values, mean=stats.mean(found.independent), sd=stats.sd(list(found.values.values()))
    )


def _compare_with_failure(found: SeedResults, blank: CellVerdict) -> CellVerdict:
    """Compare with the paper's `fail`: a collapse agrees, a training that converges does not."""
    if found.failed:
        return replace(blank, verdict=Verdict.FAILED, notes=(found.failed[min(found.failed)],))
    if found.missing:
        return blank.with_notes(_missing(found))
    if hasty := [failure for failure in found.collapsed.values() if failure.hasty]:
        early = notes.HastyDetector(hasty[0], notes.MIN_PATIENCE_EPOCHS)
        return replace(blank, verdict=Verdict.INCONCLUSIVE, notes=(early,))
    if not found.values:
        note = notes.CollapsedAsPrinted(found.collapsed[min(found.collapsed)])
        return replace(blank, verdict=Verdict.EXPECTED_FAILURE, notes=(note,))
    ours = _measured(found, blank)
    if found.collapsed:
        some = notes.SomeSeedsCollapsed(len(found.collapsed), len(found.collapsed) + len(found.values))
        return replace(ours, verdict=Verdict.INCONCLUSIVE, notes=(some,))
    return replace(ours, verdict=Verdict.BETTER, notes=(notes.ConvergedUnlikePaper(),))


def _other_dataset(plan: Plan, cell: Cell) -> Note | None:
    """Return a note if a run of the cell reads images that the paper's number was not measured on."""
    evaluations = [plan.runs[name] for name in cell.run_ids]
    parents = [plan.runs[name] for each in evaluations for name in each.parents if name in plan.runs]
    for run in (*parents, *evaluations):
        if dataset := run.workload.dataset:
            theirs = paper_data_sources().get(dataset["name"], "others")
            if dataset["source"] != theirs:
                return notes.OtherDataset(run.label, dataset["source"], theirs)
    return None


def _compare_with_printed(
    inputs: VerdictInputs, table: Table, row: Row, key: str, cell: Cell, found: SeedResults, ours: CellVerdict
) -> CellVerdict:
    column = table.columns[key]
    expected = row.errata[key].value if key in row.errata else tables.parse_printed(row.cells.get(key))
    present = inputs.plan.margin(cell)
    assert expected is not None and present is not None
    margin, before, margin_notes = _margin(inputs, cell, present)
    if column.relative_to:
        compared = _compare_shares(inputs, table, row, key, found, expected, margin, ours)
    else:
        unit = "points" if column.unit.endswith("%") else column.unit
        compared = _compare_with_margin(found, expected, margin, unit, ours)
    if column.lower_is_better:
        compared = replace(compared, verdict=FLIPPED.get(compared.verdict, compared.verdict))
    if not compared.margin:
        return compared
    mean_of = (notes.MeanOfRuns(column.num_runs, len(compared.values)),) if column.num_runs > 1 else ()
    return replace(compared, margin_before=before).with_notes(*margin_notes, *mean_of)


def _compare_shares(
    inputs: VerdictInputs,
    table: Table,
    row: Row,
    key: str,
    found: SeedResults,
    expected: float,
    margin: Margin,
    ours: CellVerdict,
) -> CellVerdict:
    """Compare a number as a share of another row's, ours of ours and theirs of theirs: hardware cancels out."""
    name = table.columns[key].relative_to
    if row.label == name:
        return replace(ours, verdict=Verdict.NO_BASELINE, notes=(notes.ShareReference(),), share_of=name)
    cell = inputs.cell(table, name, key)
    reference = inputs.seed_results(cell) if cell else SeedResults()
    (whole,) = [tables.parse_printed(other.cells[key]) for other in table.rows if other.label == name]
    if not reference.values or not whole:
        return replace(ours, verdict=Verdict.NOT_RUN, notes=(notes.NoShareReference(name),), share_of=name)
    mean = stats.mean(reference.independent)
    values = {seed: value / reference.values.get(seed, mean) for seed, value in found.values.items()}
    shares = SeedResults(values, pretrainings=found.pretrainings)
    compared = _compare_with_margin(
        shares, expected / whole, margin, "", replace(_measured(shares, ours), share_of=name)
    )
    assert ours.mean is not None
    return compared.with_notes(notes.ComparedAsShare(name, table.columns[key].unit, ours.mean, mean))


def _compare_with_margin(
    found: SeedResults, expected: float, margin: Margin, unit: str, ours: CellVerdict
) -> CellVerdict:
    seeds = found.independent
    compared = stats.compare_with_printed(seeds, expected, margin.points, found.test_set_error)
    several = len(seeds) > 1
    note = notes.MarginTest(
        compared.verdict,
        num_seeds=len(seeds),
        num_runs=len(found.values),
        pretrained=bool(found.pretrainings),
        margin=margin.points,
        expected=expected,
        unit=unit,
    )
    interval = compared.interval if several or found.test_set_error else None
    assert ours.mean is not None
    return replace(
        ours,
        verdict=compared.verdict,
        notes=(note,),
        expected=expected,
        difference=ours.mean - expected,
        interval=(interval.low, interval.high) if interval else None,
        interval_kind=("seeds" if several else "test set") if interval else None,
        p_value=compared.p_value,
        margin=margin,
    )


def _margin(inputs: VerdictInputs, cell: Cell, margin: Margin) -> tuple[Margin, float | None, tuple[Note, ...]]:
    """Return the margin to judge by: the narrowest of the table's, those recorded before the results existed, and the
    table's at the commits of the results.

    Beside it, return the points that were recorded, if they differ, and a note about that. So a margin that was
    widened after a result helps nobody.
    """
    before = _margins_before(inputs, cell)
    if any(not points for points in before.values()):
        return margin, None, (notes.NoMarginBefore(),)
    recorded = min(min(points) for points in before.values())
    if recorded == margin.points:
        return margin, None, ()
    if recorded > margin.points:
        return margin, recorded, (notes.MarginNarrowed(recorded),)
    return replace(margin, points=recorded), recorded, (notes.MarginWidened(margin.points, recorded),)


def _margins_before(inputs: VerdictInputs, cell: Cell) -> dict[str, list[float]]:
    """Return the points that are known from before each run's result."""
    found: dict[str, list[float]] = {}
    for run in (inputs.plan.runs[name] for name in cell.run_ids):
        recorded = margins.read(margins.path(run.folder)).get(run.run_id, {}).get(cell.table_key)
        found[run.run_id] = [] if recorded is None else [recorded]
    for run_id, points in inputs.earlier.margins(cell):
        found[run_id].append(points)
    return found


def _compare_with_recorded(inputs: VerdictInputs, cell: Cell, ours: CellVerdict) -> CellVerdict:
    plan = inputs.plan
    if not plan.uses_reference_data:
        return replace(ours, verdict=Verdict.NO_BASELINE, notes=(notes.OtherImages(),))
    recorded, edited = inputs.earlier.recorded(cell, inputs.recorded)
    known = recorded.cells.get(cell.metric_key)
    if known is None:
        return replace(ours, verdict=Verdict.NO_BASELINE, notes=(notes.NothingRecorded(),))
    values = list(ours.values.values())
    seeds = recorded.header["seeds"]
    repeated = _repetition(known, seeds, cell, ours, plan)
    if isinstance(repeated, notes.ConfigChanged):  # the recorded seed means another run now
        known = replace(known, same_seed=())
    falls = unchanged(known, ours.values, seeds, inputs.family.tail)
    verdict = stats.compare_with_recorded(values, falls.interval)
    welch = stats.difference(values, known.values) if falls.kind == "new seeds" else None
    return replace(
        ours,
        verdict=verdict,
        notes=(
            notes.RecordedInterval(verdict, falls.kind, falls.num_recorded),
            notes.NoticeableFall(falls.noticeable_fall),
            *(() if not welch or welch.p_value is None else (notes.WelchTest(welch.p_value),)),
            *((repeated,) if repeated else ()),
            *((edited,) if edited else ()),
        ),
        expected=falls.expected,
        difference=stats.mean(values) - falls.expected,
        interval=(falls.interval.low, falls.interval.high),
        interval_kind=falls.kind,
        noticeable_fall=falls.noticeable_fall,
        p_value=welch.p_value if welch else None,
        recorded_match={notes.RecordedMatch: True, notes.RecordedMismatch: False}.get(type(repeated)),
    )


def _repetition(known: RecordedCell, seeds: list[int], cell: Cell, ours: CellVerdict, plan: Plan) -> Note | None:
    """Return whether the seeds that both have gave the same number, which is recorded with four decimals."""
    if seeds[0] in plan.request.seeds and known.run_id not in cell.run_ids:
        return notes.ConfigChanged()
    before = dict(zip(seeds, known.values, strict=False))
    common = sorted(before.keys() & ours.values.keys())
    if not common:
        return None
    changed = [seed for seed in common if round(ours.values[seed], 4) != before[seed]]
    return notes.RecordedMismatch(changed[0], before[changed[0]]) if changed else notes.RecordedMatch()
