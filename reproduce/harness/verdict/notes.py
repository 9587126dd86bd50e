"""Notes: what a verdict rests on and what qualifies it, as data. `wording` turns notes into sentences."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from reproduce.harness.spec.golden import Difference
from reproduce.harness.verdict.labels import ClaimStatus, IntervalKind, Tendency, Verdict

MIN_PATIENCE_EPOCHS = 2.0
"""Epochs before a training may count as collapsed, at scale paper. The loss of healthy ones stays at ln K for a while,
too, so with less patience any training "fails to converge"."""


@dataclass(frozen=True)
class Note:
    """One fact about a verdict."""


@dataclass(frozen=True)
class StatedReason(Note):
    """A reason that a table or the list of public weights states in a sentence of its own."""

    text: str


@dataclass(frozen=True)
class PublicWeights(Note):
    """A network of this row is public at `address`, although nothing here evaluates it."""

    address: str


@dataclass(frozen=True)
class NoPublicWeights(Note):
    """No public weights exist for a row, and why."""

    reason: str


@dataclass(frozen=True)
class RunFailure(Note):
    """A run failed. `requested` is false for a seed that the request leaves out: its failure counts too."""

    run: str
    status: str
    message: str
    requested: bool = True
    patience_epochs: float | None = None
    """Of a pretraining that collapsed: the epochs that its config gives it before it may count as collapsed."""

    @property
    def hasty(self) -> bool:
        """Whether the run was stopped before it could show that it fails as the paper means."""
        return self.patience_epochs is not None and self.patience_epochs < MIN_PATIENCE_EPOCHS


@dataclass(frozen=True)
class MissingResults(Note):
    """Runs without a valid result, each with the reason if there is one."""

    runs: tuple[str, ...]


@dataclass(frozen=True)
class CollapsedAsPrinted(Note):
    """The paper prints that the training fails, and every seed of ours collapsed."""

    failure: RunFailure


@dataclass(frozen=True)
class HastyDetector(Note):
    """A training collapsed by a detector with less patience than the paper's failure asks for."""

    failure: RunFailure
    min_patience_epochs: float


@dataclass(frozen=True)
class SomeSeedsCollapsed(Note):
    """The paper prints that the training fails; only some of our seeds did."""

    num_collapsed: int
    num_seeds: int


@dataclass(frozen=True)
class ConvergedUnlikePaper(Note):
    """The paper prints that the training fails; ours converged."""


@dataclass(frozen=True)
class OtherDataset(Note):
    """A run read images that the paper's number was not measured on."""

    run: str
    source: str
    paper_source: str


@dataclass(frozen=True)
class OtherImages(Note):
    """The runs did not read the images that this scale's recorded numbers were measured on."""


@dataclass(frozen=True)
class NothingRecorded(Note):
    """No number is recorded for this cell."""


@dataclass(frozen=True)
class RecordedInterval(Note):
    """Where our mean lies relative to the prediction interval of `num_recorded` recorded numbers."""

    verdict: Verdict
    kind: IntervalKind
    num_recorded: int


@dataclass(frozen=True)
class NoticeableFall(Note):
    """The smallest fall that the interval would almost surely notice; None if it would notice none."""

    points: float | None


@dataclass(frozen=True)
class CheckpointMean(Note):
    """A verdict is about the mean of `num_cells` cells of one checkpoint, over `num_recorded` recorded seeds."""

    num_cells: int
    num_recorded: int


@dataclass(frozen=True)
class CellsWithoutNumber(Note):
    """Cells of a checkpoint that have no number yet, so that their mean has none."""

    cells: tuple[str, ...]
    num_cells: int


@dataclass(frozen=True)
class WelchTest(Note):
    """Welch's test of equal means between our seeds and the recorded ones."""

    p_value: float


@dataclass(frozen=True)
class ConfigChanged(Note):
    """The runs that were recorded had another config than ours."""


@dataclass(frozen=True)
class RecordedMatch(Note):
    """Our runs of recorded seeds gave the recorded numbers to the digit."""


@dataclass(frozen=True)
class RecordedMismatch(Note):
    """A recorded seed gave another number this time."""

    seed: int
    recorded: float


@dataclass(frozen=True)
class MarginTest(Note):
    """Our seeds compared with the printed number and its margin.

    `num_runs` runs make `num_seeds` independent numbers, with or without a pretraining of ours behind them.
    """

    verdict: Verdict
    num_seeds: int
    num_runs: int
    pretrained: bool
    margin: float
    expected: float
    unit: str
    """Of the margin: points for percentages, the column's own unit for other numbers, "" for shares."""


@dataclass(frozen=True)
class ShareReference(Note):
    """This cell is the reference that the column's other numbers are divided by."""


@dataclass(frozen=True)
class NoShareReference(Note):
    """The row that this number is to be divided by has no number yet."""

    row: str


@dataclass(frozen=True)
class ComparedAsShare(Note):
    """Compared is `ours / reference`, where `reference` is our number of `row`; both in the column's unit."""

    row: str
    unit: str
    ours: float
    reference: float


@dataclass(frozen=True)
class NoMarginBefore(Note):
    """No margin was recorded before the result existed."""


@dataclass(frozen=True)
class MarginNarrowed(Note):
    """The table's margin was narrowed after the result existed; it was `before`."""

    before: float


@dataclass(frozen=True)
class MarginWidened(Note):
    """The table's margin was widened to `now` after the result existed; `before` is used."""

    now: float
    before: float


@dataclass(frozen=True)
class EditedSince(Note):
    """What of a cell was edited in its table after the result existed; it is judged as it was at the commit."""

    commit: str
    edits: tuple[str, ...]


@dataclass(frozen=True)
class MeanOfRuns(Note):
    """The printed number is a mean of several runs."""

    num_printed: int
    num_ours: int


@dataclass(frozen=True)
class BestVariant(Note):
    """The best of several variants of an evaluation, chosen by `metric` as the authors did."""

    means: tuple[tuple[str, float], ...]
    metric: str
    best: str


@dataclass(frozen=True)
class OtherSeeds(Note):
    """Results of seeds that were not requested: `(seed, value)`, and whether they are judged with the others."""

    values: tuple[tuple[int, float], ...]
    judged: bool


@dataclass(frozen=True)
class NoSpread(Note):
    """Several pretrainings gave one number to the last digit."""

    num_seeds: int


@dataclass(frozen=True)
class Misprint(Note):
    """The paper prints a wrong number: an erratum of the paper."""

    printed: float
    source: str


@dataclass(frozen=True)
class HolmCorrection(Note):
    """The cell's own claim does not survive Holm's correction over the table's cells; the corrected interval."""

    num_cells: int
    p_value: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class ControlComparison(Note):
    """Our number less that of the row's control, against the `bar` that learning must clear, in points.

    `other images`: the bar was set for the scale's own images and does not apply. `lowest` is the lowest difference
    that recorded seeds allow, None if nothing is recorded; below zero, it leaves a bar of zero.
    """

    control: str
    points: float
    bar: float
    result: Literal["beaten", "not beaten", "other images"]
    lowest: float | None = None


@dataclass(frozen=True)
class EmptyInterval(Note):
    """The recorded seeds spread so widely that the interval excludes nothing; only the control can decide.

    `control` is "" if the row has none; `points` is None if the control has no number yet.
    """

    control: str = ""
    points: float | None = None


@dataclass(frozen=True)
class CanaryMeasurement:
    """What the authors' checkpoint gave under our evaluation, beside what the paper prints."""

    metric: str
    value: float
    printed: float
    margin: float


CanaryState = Literal["agreed", "disagreed", "missing", "unverified"]
"""`unverified`: the numbers agree, but nothing says that the file is the authors': its SHA-256 is not known yet."""
DOUBTFUL_CANARIES: tuple[CanaryState, ...] = ("missing", "unverified")
"""States that keep a number from counting as reproduced."""


@dataclass(frozen=True)
class CanaryResult(Note):
    """Whether the authors' checkpoint gives the authors' numbers under one of our evaluations.

    `checkpoint` is "" if `tables/canaries.yaml` has no canary of the evaluation. `refused` has a phrase for each result
    that is of another file, whatever that is called.
    """

    state: CanaryState
    evaluation: str
    checkpoint: str = ""
    sha256: tuple[str, ...] = ()
    measurements: tuple[CanaryMeasurement, ...] = ()
    refused: tuple[str, ...] = ()


@dataclass(frozen=True)
class DifferenceSign(Note):
    """Where the interval of a claim's difference lies, over several seeds per side."""

    status: ClaimStatus
    num_seeds: int


@dataclass(frozen=True)
class OneSeedDifference(Note):
    """A claim's difference with one seed per side: it points one way and decides nothing."""

    points: float
    tendency: Tendency


@dataclass(frozen=True)
class WidestDifference(Note):
    """The widest difference among several experiments, and the bound that it should stay within.

    `reach` is what no difference exceeds, with the seeds' spread allowed for.
    """

    points: float
    bound: float
    status: ClaimStatus
    one_seed: bool
    reach: float


@dataclass(frozen=True)
class Convergence(Note):
    """How many seeds of `fails` collapsed, while none of `converges` did; `tendency` if there is one seed per side."""

    converges: str
    fails: str
    num_collapsed: int
    num_seeds: int
    tendency: Tendency = ""


@dataclass(frozen=True)
class CollapsedUnexpectedly(Note):
    """An experiment that should converge collapsed; `one_seed` if that rests on one seed per side."""

    failure: RunFailure
    one_seed: bool


@dataclass(frozen=True)
class PublishedNetworks(Note):
    """A claim was judged on the published networks: one training per side."""


@dataclass(frozen=True)
class SameFirstSteps(Note):
    """All runs behind a number took their recorded first steps: `num_numbers` numbers are equal."""

    num_runs: int
    num_numbers: int


@dataclass(frozen=True)
class OtherFirstSteps(Note):
    """A run took other first steps than recorded, and its first difference of `num_differences`."""

    run: str
    difference: Difference
    num_differences: int
    other_runs: tuple[str, ...] = ()
    """More runs behind the number that took other first steps."""


@dataclass(frozen=True)
class FirstStepsNotCompared(Note):
    """Runs behind a number whose first steps are not recorded, or not kept in their results."""

    not_recorded: tuple[str, ...]
    not_kept: tuple[str, ...]
    num_equal: int
    """Runs behind the number that took their recorded first steps."""
    input_only: tuple[str, ...] = ()
    """Runs on a GPU, whose input and rates are the recorded ones."""


@dataclass(frozen=True)
class NoRecordedFirstSteps(Note):
    """No first steps of runs are recorded at this scale."""

    scale: str


def as_data(note: Note) -> dict[str, Any]:
    """Return a note as plain data: its kind and its fields."""
    return {"kind": type(note).__name__, **asdict(note)}
