"""The check of a plan: the verdicts on the cells of its tables and on their checkpoints, and the exit status."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from reproduce.harness.plan.model import Plan
from reproduce.harness.plan.run_state import valid_result
from reproduce.harness.spec.tables import Row, Table
from reproduce.harness.verdict import adjustments, doubts
from reproduce.harness.verdict.adjustments import CellKey, VerdictRows
from reproduce.harness.verdict.canary import check_canaries
from reproduce.harness.verdict.cells import CellVerdict, verdict_for
from reproduce.harness.verdict.checkpoints import CheckpointVerdict, verdict_for_checkpoint
from reproduce.harness.verdict.claims import ClaimVerdict
from reproduce.harness.verdict.family import lowest_difference
from reproduce.harness.verdict.labels import AGREEING, DISAGREEING, ClaimStatus, Verdict
from reproduce.harness.verdict.notes import CanaryResult, ControlComparison, Note, OtherSeeds
from reproduce.harness.verdict.seed_results import VerdictInputs
from reproduce.harness.verdict.seeds_needed import num_margin_cells

AGREES, DISAGREES, INCOMPLETE, NOTHING_COMPARED = 0, 1, 3, 4
"""Exit statuses of a check; 2 stands for a wrong request."""

STATUS_MEANINGS = {
    AGREES: "every cell that ran agrees",
    DISAGREES: "some cells or checkpoints disagree, are inconclusive or changed, or claims are contradicted",
    INCOMPLETE: "a needed run failed or is missing",
    NOTHING_COMPARED: "no number was compared: there is nothing to compare it with, or it is unavailable",
}


@dataclass(frozen=True)
class TableVerdict:
    """One table with the verdicts on its cells, row by row."""

    table: Table
    rows: VerdictRows
    undrawn: tuple[str, ...] = ()
    """Runs whose curves a figure needs and that have no result."""
    changed_curves: tuple[Note, ...] = ()
    """That runs whose curves a figure needs took other first steps than recorded."""
    doubts: tuple[str, ...] = ()
    """What a reader should know of the results behind the table before believing it, without full stops."""

    def cells(self) -> Iterator[tuple[Row, str, CellVerdict]]:
        """Return every cell that is not a dash as row, column key and verdict."""
        return _cells(self.table, self.rows)

    def score(self) -> Counter[str]:
        """Count the cells by verdict."""
        return Counter(str(cell.verdict) for _, _, cell in self.cells())


def _cells(table: Table, rows: VerdictRows) -> Iterator[tuple[Row, str, CellVerdict]]:
    for row, cells in zip(table.rows, rows, strict=True):
        for key, cell in cells.items():
            if cell:
                yield row, key, cell


def check_tables(plan: Plan) -> list[TableVerdict]:
    """Judge every cell of a plan's tables. Raises `UserError` for a damaged result or one without its metric."""
    inputs = VerdictInputs.load(plan)
    return [_check_table(inputs, table) for table in plan.tables.values()]


def check_checkpoints(plan: Plan) -> list[CheckpointVerdict]:
    """Judge the mean of every checkpoint that has enough cells compared with recorded numbers."""
    inputs = VerdictInputs.load(plan)
    return [verdict_for_checkpoint(inputs, checkpoint) for checkpoint in inputs.family.checkpoints]


def _check_table(inputs: VerdictInputs, table: Table) -> TableVerdict:
    plan = inputs.plan
    table, edited = inputs.earlier.as_judged(table)
    rows: VerdictRows = [
        {key: verdict_for(inputs, table, row, key) if table.has_cell(row, key) else None for key in table.columns}
        for row in table.rows
    ]
    rows = adjustments.apply_errata(table, rows)
    rows = adjustments.apply_controls(table, rows, _lowest_differences(inputs, table, rows))
    rows = adjustments.apply_holm(table, rows, num_margin_cells(plan, table))
    rows = adjustments.apply_canaries(table, rows, _canaries(plan, table, rows))
    rows = adjustments.apply_first_steps(table, rows, _first_steps(inputs, table))
    rows = adjustments.apply_edits(table, rows, edited)
    curves = [name for cell in plan.cells if cell.table == table.table and not cell.column for name in cell.run_ids]
    undrawn = tuple(plan.runs[name].label for name in curves if valid_result(plan, plan.runs[name]) is None)
    found = [*doubts.doubts(plan, plan.runs_of(table.table)), *_of_seeds_left_out(rows)]
    if table.expected == "recorded":
        found += [*doubts.of_recording(inputs.recorded.header), *dict.fromkeys(_of_test_sets(inputs, table))]
    return TableVerdict(table, rows, undrawn, inputs.first_steps.differences(curves), tuple(found))


def _lowest_differences(inputs: VerdictInputs, table: Table, rows: VerdictRows) -> dict[CellKey, float]:
    """Return the lowest difference from its control that as many new seeds give, of each number with a recorded one."""
    lowest: dict[CellKey, float] = {}
    for row, key, cell in _cells(table, rows):
        places = (inputs.cell(table, label, key) for label in (row.label, row.control))
        ours, control = (place.metric_key if place else "" for place in places)
        if cell.values and (ours, control) in inputs.family.controls:
            lowest[row.label, key] = lowest_difference(
                inputs.recorded, (ours, control), len(cell.values), inputs.family.tail
            )
    return lowest


def _canaries(plan: Plan, table: Table, rows: VerdictRows) -> dict[CellKey, CanaryResult]:
    """Return the canaries' result for the evaluation behind each number that needs one."""
    runs = {
        (row.label, key): plan.runs[cell.run_ids[0]]
        for row, key, cell in _cells(table, rows)
        if adjustments.needs_canary(table, key, cell)
    }
    by_evaluation: dict[str, CanaryResult] = {}
    for run in runs.values():
        if run.name not in by_evaluation:
            by_evaluation[run.name] = check_canaries(run)
    return {key: by_evaluation[run.name] for key, run in runs.items()}


def _first_steps(inputs: VerdictInputs, table: Table) -> dict[CellKey, tuple[Note, ...]]:
    """Return what is known of the first steps of each number's runs."""
    return {
        (row.label, key): inputs.first_steps.notes(cell.run_ids)
        for row in table.rows
        for key in table.columns
        if (cell := inputs.cell(table, row.label, key))
    }


def _of_test_sets(inputs: VerdictInputs, table: Table) -> Iterator[str]:
    """Yield which numbers were measured on another number of images than the recorded ones."""
    for cell in inputs.plan.cells:
        known = inputs.recorded.cells.get(cell.metric_key)
        if cell.table != table.table or not cell.column or not known or not inputs.plan.uses_reference_data:
            continue
        for run in (inputs.plan.runs[name] for name in cell.run_ids):
            number = (valid_result(inputs.plan, run) or {}).get("counts", {}).get("num_test_images")
            if number not in (None, known.num_test_images):
                yield f"{run.name} was measured on {number:,} images, the recorded numbers on {known.num_test_images:,}"


def _of_seeds_left_out(rows: VerdictRows) -> Iterator[str]:
    """Yield which seeds gave numbers that are not judged, because nobody requested them."""
    every = [note for cells in rows for cell in cells.values() if cell for note in cell.notes]
    left_out = {seed for note in every if isinstance(note, OtherSeeds) and not note.judged for seed, _ in note.values}
    if left_out:
        seeds = ", ".join(map(str, sorted(left_out)))
        yield f"seeds that were not requested have results, which are not judged: {seeds}"


def recorded_matches(checked: Sequence[TableVerdict]) -> str:
    """Return how many cells give their recorded seeds' numbers again, in words; "" if none can be compared."""
    matches = [
        cell.recorded_match for table in checked for _, _, cell in table.cells() if cell.recorded_match is not None
    ]
    if not matches:
        return ""
    return f"{sum(matches)} of {len(matches)} cells give their recorded seeds' numbers again, to the digit"


def exit_status(
    checked: Sequence[TableVerdict],
    claims: Sequence[ClaimVerdict] = (),
    claims_requested: bool = False,
    checkpoints: Sequence[CheckpointVerdict] = (),
) -> int:
    """Return 0 if every cell that ran agrees, 1 if one disagrees or is changed, 3 if a run is missing.

    1 stands also for a checkpoint that disagrees, for a claim that is contradicted or changed, and for a figure's curve
    that is changed; 4 for numbers none of which was compared with anything, a control included.

    Runs that only a claim needs count as missing only if the claims were requested.
    """
    cells = [cell for table in checked for _, _, cell in table.cells()]
    missing = any(cell.needed and cell.verdict in (Verdict.FAILED, Verdict.NOT_RUN) for cell in cells)
    missing = missing or (claims_requested and any(claim.incomplete for claim in claims))
    if missing or any(table.undrawn for table in checked):
        return INCOMPLETE
    if any(claim.status in (ClaimStatus.CONTRADICTED, ClaimStatus.CHANGED) for claim in claims):
        return DISAGREES
    if any(table.changed_curves for table in checked):
        return DISAGREES
    verdicts = {*(cell.verdict for cell in cells), *(each.verdict for each in checkpoints)}
    if verdicts & DISAGREEING:
        return DISAGREES
    decided = any(claim.status == ClaimStatus.HOLDS for claim in claims)
    tried = any(cell.mean is not None or (cell.needed and cell.verdict == Verdict.UNAVAILABLE) for cell in cells)
    uncompared = tried and not any(map(_is_compared, cells))
    return NOTHING_COMPARED if uncompared and not decided else AGREES


def _is_compared(cell: CellVerdict) -> bool:
    """Return whether a cell's number was held against another: a printed or recorded one, or its control's."""
    beaten = any(isinstance(note, ControlComparison) and note.result == "beaten" for note in cell.notes)
    return cell.verdict in AGREEING | DISAGREEING or beaten
