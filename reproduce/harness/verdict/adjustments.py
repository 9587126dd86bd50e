"""Adjustments of a table's verdicts that need more than a cell's numbers: errata, controls, Holm, canaries, steps.

Each is a pure function from rows of verdicts to new rows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from reproduce.harness.spec.tables import Row, Table
from reproduce.harness.verdict import notes, stats
from reproduce.harness.verdict.cells import CellVerdict
from reproduce.harness.verdict.labels import Verdict
from reproduce.harness.verdict.notes import CanaryResult, Note

VerdictRow = Mapping[str, CellVerdict | None]
"""A row's verdicts by column; None for a dash in the paper."""

VerdictRows = Sequence[VerdictRow]

CellKey = tuple[str, str]
"""A row's label and a column's key."""


def apply_errata(table: Table, rows: VerdictRows) -> VerdictRows:
    """Let the correction of a misprint stand beside the verdict: it is the paper's error, not ours."""

    def adjust(row: Row, key: str, cell: CellVerdict) -> CellVerdict:
        if key not in row.errata:
            return cell
        erratum, printed = row.errata[key], row.cells[key]
        assert isinstance(printed, float)
        return replace(cell, expected=erratum.value).with_notes(notes.Misprint(printed, erratum.source))

    return _each_cell(table, rows, adjust)


def apply_controls(table: Table, rows: VerdictRows, lowest: Mapping[CellKey, float]) -> VerdictRows:
    """Call a number `worse` if it does not clearly beat its row's control.

    `lowest` has the lowest difference from the control that as many new seeds of unchanged code give, where one is
    recorded. The difference must be no lower, and above zero in any case: seed variance is fine, learning nothing is
    not. Without a recorded difference it must exceed the row's `min_points_above_control`, which were set
    for the scale's own images; for other images the difference is only noted. Only tables of recorded numbers have
    controls.
    """
    if table.expected != "recorded":
        return rows
    by_label = {row.label: cells for row, cells in zip(table.rows, rows, strict=True)}

    def adjust(row: Row, key: str, cell: CellVerdict) -> CellVerdict:
        control = by_label[row.control][key] if row.control and table.columns[key].has_control else None
        return _compare_with_control(row, cell, control, lowest.get((row.label, key)))

    return _each_cell(table, rows, adjust)


def apply_holm(table: Table, rows: VerdictRows, num_planned: int) -> VerdictRows:
    """Apply Holm's correction over a table: each cell of several seeds that has a margin makes one claim.

    The family is the table's `num_planned` cells that are to be compared with a margin, whatever they claim and whether
    or not they have a number yet. A cell whose adjusted p-value exceeds 5% is `inconclusive`, and the interval of every
    cell is that of its adjusted level, so that it says what the verdict says. Cells compared with recorded numbers have
    a family level of their own (`prediction_interval`).
    """
    p_values = {
        (row.label, key): cell.p_value
        for row, cells in zip(table.rows, rows, strict=True)
        for key, cell in cells.items()
        if cell and cell.margin and cell.p_value is not None
    }
    adjusted = dict(zip(p_values, stats.holm(list(p_values.values()), num_planned), strict=True))
    family_size = max(num_planned, len(p_values))

    def adjust(row: Row, key: str, cell: CellVerdict) -> CellVerdict:
        p_value = adjusted.get((row.label, key))
        if p_value is None:
            return cell
        cell = _with_corrected_interval(cell, p_value, family_size)
        if p_value <= stats.SIGNIFICANCE or cell.verdict == Verdict.INCONCLUSIVE:
            return cell
        assert cell.interval
        note = notes.HolmCorrection(family_size, p_value, cell.interval)
        return replace(cell, verdict=Verdict.INCONCLUSIVE).with_notes(note)

    return _each_cell(table, rows, adjust)


def _with_corrected_interval(cell: CellVerdict, p_value: float, family_size: int) -> CellVerdict:
    """Return a cell with its adjusted p-value, and with the interval of the level that this stands for."""
    (num_seeds,) = [note.num_seeds for note in cell.notes if isinstance(note, notes.MarginTest)]
    if cell.p_value is None or cell.interval is None or num_seeds < 2:
        return cell
    factor = p_value / cell.p_value if cell.p_value else family_size
    if factor == 1:
        return replace(cell, p_value=p_value)
    interval = stats.corrected_interval(stats.Interval(*cell.interval), num_seeds, factor)
    return replace(cell, p_value=p_value, interval=(interval.low, interval.high), interval_kind="seeds, corrected")


def needs_canary(table: Table, key: str, cell: CellVerdict) -> bool:
    """Return whether a number must be preceded by its evaluation's canary to count as reproduced."""
    return bool(cell.margin and table.columns[key].eval and not cell.share_of)


def apply_canaries(table: Table, rows: VerdictRows, canaries: Mapping[CellKey, CanaryResult]) -> VerdictRows:
    """Let no number count as reproduced before the authors' checkpoint gave theirs under the same evaluation.

    `canaries` has the canaries' result for the evaluation behind each cell that needs one.
    """

    def adjust(row: Row, key: str, cell: CellVerdict) -> CellVerdict:
        if (canary := canaries.get((row.label, key))) is None:
            return cell
        verdict = cell.verdict
        if canary.state in notes.DOUBTFUL_CANARIES and verdict == Verdict.REPRODUCED:
            verdict = Verdict.WITHIN
        elif canary.state == "disagreed":
            verdict = Verdict.INCONCLUSIVE
        return replace(cell, verdict=verdict, canary=canary.state).with_notes(canary)

    return _each_cell(table, rows, adjust)


def apply_first_steps(table: Table, rows: VerdictRows, known: Mapping[CellKey, tuple[Note, ...]]) -> VerdictRows:
    """Call a number `changed` if a run behind it took other first steps than recorded, whatever the number is.

    `known` has what is known of the first steps of each cell's runs. A cell without a number keeps its verdict.
    """

    def adjust(row: Row, key: str, cell: CellVerdict) -> CellVerdict:
        found = known.get((row.label, key), ())
        changed = tuple(note for note in found if isinstance(note, notes.OtherFirstSteps))
        if cell.mean is None or cell.verdict == Verdict.NOT_RUN:
            return cell.with_notes(*changed)
        return (replace(cell, verdict=Verdict.CHANGED) if changed else cell).with_notes(*found)

    return _each_cell(table, rows, adjust)


def apply_edits(table: Table, rows: VerdictRows, edited: Mapping[CellKey, Note]) -> VerdictRows:
    """Name what was edited in the table after a number existed."""

    def adjust(row: Row, key: str, cell: CellVerdict) -> CellVerdict:
        note = edited.get((row.label, key))
        return cell.with_notes(note) if note and cell.mean is not None else cell

    return _each_cell(table, rows, adjust)


def _each_cell(
    table: Table, rows: VerdictRows, adjust: Callable[[Row, str, CellVerdict], CellVerdict]
) -> list[VerdictRow]:
    return [
        {key: adjust(row, key, cell) if cell else None for key, cell in cells.items()}
        for row, cells in zip(table.rows, rows, strict=True)
    ]


def _compare_with_control(
    row: Row, ours: CellVerdict, control: CellVerdict | None, lowest: float | None
) -> CellVerdict:
    if ours.mean is None or ours.verdict not in (Verdict.WITHIN, Verdict.BETTER, Verdict.NO_BASELINE):
        return ours
    excludes_nothing = ours.interval is not None and ours.interval[0] <= 0 and ours.interval[1] >= 100
    if control is None or control.mean is None:
        return ours.with_notes(notes.EmptyInterval(row.control if control else "")) if excludes_nothing else ours
    points = ours.mean - control.mean
    bar = row.min_points_above_control if lowest is None else max(lowest, 0.0)
    if any(isinstance(note, notes.OtherImages) for note in ours.notes):
        return ours.with_notes(notes.ControlComparison(row.control, points, bar, "other images"))
    beaten = points > bar if lowest is None else points > 0 and points >= bar - stats.ROUNDING
    if not beaten:
        worse = replace(ours, verdict=Verdict.WORSE)
        return worse.with_notes(notes.ControlComparison(row.control, points, bar, "not beaten", lowest))
    if excludes_nothing:
        return ours.with_notes(notes.EmptyInterval(row.control, points))
    if ours.verdict == Verdict.NO_BASELINE:
        return ours.with_notes(notes.ControlComparison(row.control, points, bar, "beaten"))
    return ours
