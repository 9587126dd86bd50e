"""The verdict on one checkpoint: the mean of its cells, compared with the mean that recorded seeds gave."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from reproduce.harness.plan.model import Cell
from reproduce.harness.verdict import notes, stats
from reproduce.harness.verdict.family import Checkpoint, resolution
from reproduce.harness.verdict.labels import Verdict
from reproduce.harness.verdict.notes import Note
from reproduce.harness.verdict.seed_results import VerdictInputs
from reproduce.harness.verdict.wording import sentences


@dataclass(frozen=True)
class CheckpointVerdict:
    """The verdict on the mean of a checkpoint's cells. Numbers are in the cells' unit."""

    checkpoint: Checkpoint
    verdict: Verdict
    notes: tuple[Note, ...] = ()
    values: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    """The mean of our cells by seed."""
    mean: float | None = None
    sd: float | None = None
    expected: float | None = None
    difference: float | None = None
    interval: tuple[float, float] | None = None
    noticeable_fall: float | None = None

    @property
    def reason(self) -> str:
        """Return the notes in words."""
        return sentences(self.notes)


def verdict_for_checkpoint(inputs: VerdictInputs, checkpoint: Checkpoint) -> CheckpointVerdict:
    """Return the verdict on a checkpoint; `not run` as long as one of its cells has no number.

    The cells of one pretraining share its luck, so their mean spreads less than a single cell, but not as little as
    that of independent numbers. The recorded seeds' means show how much: one value per seed, over all cells.
    """
    ours = {cell.metric_key: inputs.seed_results(cell) for cell in checkpoint.cells}
    incomplete = [key for key, found in ours.items() if found.collapsed or found.failed or found.missing]
    if incomplete:
        note = notes.CellsWithoutNumber(tuple(incomplete), len(checkpoint.cells))
        return CheckpointVerdict(checkpoint, Verdict.NOT_RUN, (note,))
    seeds = next(iter(ours.values())).values
    values = {seed: stats.mean([found.values[seed] for found in ours.values()]) for seed in seeds}
    recorded = [stats.mean(each) for each in zip(*inputs.recorded.seed_by_seed(*checkpoint.metric_keys), strict=True)]
    # Cells may share test images, so the errors of their test sets may not average out.
    error = stats.mean([resolution(inputs.recorded.cells[key]) for key in checkpoint.metric_keys])
    unchanged = stats.prediction_interval(recorded, len(values), error, inputs.family.tail)
    fall = stats.noticeable_fall(recorded, len(values), error, inputs.family.tail)
    position = stats.compare_with_recorded(list(values.values()), unchanged)
    run_ids = [name for cell in checkpoint.cells for name in cell.run_ids]
    changed = inputs.first_steps.differences(run_ids)
    expected, mean = stats.mean(recorded), stats.mean(list(values.values()))
    return CheckpointVerdict(
        checkpoint,
        Verdict.CHANGED if changed else position,
        (
            notes.CheckpointMean(len(checkpoint.cells), len(recorded)),
            notes.RecordedInterval(position, "new seeds", len(recorded)),
            notes.NoticeableFall(fall),
            *(_config_note(inputs, checkpoint.cells)),
            *changed,
        ),
        values=values,
        mean=mean,
        sd=stats.sd(list(values.values())),
        expected=expected,
        difference=mean - expected,
        interval=(unchanged.low, unchanged.high),
        noticeable_fall=fall,
    )


def _config_note(inputs: VerdictInputs, cells: tuple[Cell, ...]) -> tuple[Note, ...]:
    """Return a note if the first recorded seed was requested and a run behind the mean has another config now."""
    if inputs.recorded.header["seeds"][0] not in inputs.plan.request.seeds:
        return ()
    known = inputs.recorded.cells
    return (notes.ConfigChanged(),) if any(known[cell.metric_key].run_id not in cell.run_ids for cell in cells) else ()
