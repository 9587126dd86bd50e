"""The recorded first steps of recipes and of tables' runs, `tables/golden/`, and the comparison with them.

`<scale>.json` has each recipe's rehearsals, `<scale>_runs.json` has runs of the scale's tables by run_id.
`preflight.record` writes the files, with tolerances that it measures. A quantity that rounding alone changes by so much
that it says nothing has no tolerance from that step on.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reproduce.errors import UserError
from reproduce.files import NOT_FINITE
from reproduce.harness.spec import tables
from reproduce.parsing import parse_json
from reproduce.rehearsal import LEARNING_RATE, MEAN_LEARNING_RATE, NUM_STEPS, PROTOTYPES_FROZEN, QUEUE_STARTS

Values = Mapping[str, Sequence[float]]
"""By quantity: one number for each step, or one alone."""

CAUSES = (
    ("number of values of", "the number of steps, or code that records other quantities"),
    ("initial", "the initial weights: seed, initialization, layers, width"),
    (NUM_STEPS, "batch size, epochs, or the size of the training set"),
    (PROTOTYPES_FROZEN, "how long prototypes are frozen, batch size"),
    (QUEUE_STARTS, "when the queue starts, batch size"),
    ("indices", "which images a step reads: seed, shuffling per epoch, batch size"),
    (LEARNING_RATE, "the schedule: rate, warm-up, milestones, cosine, rates per group"),
    (MEAN_LEARNING_RATE, "the schedule: rate, warm-up, milestones, cosine"),
    ("labels and boxes", "labels or boxes: classes' order, subset, matching with images, crops of boxes"),
    ("pixels", "the input: crops, their scale, resizing, color, blur, flips, normalization"),
    ("squared pixels", "the input: crops, their scale, resizing, color, blur, flips, normalization"),
    ("projection of view", "the input: flips, the order of images or jitter, crops, interpolation"),
    ("mean of features", "features: weights, center crop, normalization, BatchNorm's mode"),
    ("mean square of features", "features: weights, center crop, normalization, BatchNorm's mode"),
    ("projection of features", "features: weights, center crop, normalization, BatchNorm's mode"),
    ("assignment_entropy", "assignments: epsilon, Sinkhorn's iterations, the queue, the prototypes' normalization"),
    ("prototypes_used", "assignments: epsilon, Sinkhorn's iterations, the queue, the prototypes' normalization"),
    ("loss", "the loss: temperature, pairs of crops, assignments, labels, queue, momentum encoder, BatchNorm's group"),
    ("gradient norm", "gradients: what is frozen, terms of the loss, loss scaling"),
    ("movement of", "the optimizer: rates, momentum, weight decay, LARC, what is frozen, when it runs"),
    ("norm of", "the optimizer: rates, momentum, weight decay, LARC, what is frozen; prototypes' normalization"),
    ("state of", "what the method keeps: queue, memory, cluster assignments"),
    ("mean of first det", "detections: test transforms, weights, the conversion of boxes and scores"),
    ("mean square of first det", "detections: test transforms, weights, the conversion of boxes and scores"),
    ("projection of first det", "detections: test transforms, weights, the conversion of boxes and scores"),
    ("winning share", "the vote: temperature, neighbors, cosine"),
    ("average precision", "the SVMs: costs, folds, weights of classes, normalization of features"),
    ("metric", "the protocol's last step: see the differences above it"),
)
"""What usually moves a quantity, by the beginning of its name: causes before effects."""
FREE_OF_ARITHMETIC = (
    *("indices", LEARNING_RATE, "labels and boxes", "pixels", "squared pixels", "projection of view"),
)
"""Beginnings of the quantities that are the same whichever trunk is evaluated, on whichever processor."""
BEFORE_STEPS = ("initial", NUM_STEPS, PROTOTYPES_FROZEN, QUEUE_STARTS)
"""Beginnings of the quantities that are settled before the first step; others without steps come after the last."""


@dataclass(frozen=True)
class Golden:
    """The recorded first steps of one rehearsal, or of one run of a table."""

    recipes: list[str]
    overrides: list[str]
    values: dict[str, list[float]]
    tolerances: dict[str, list[float | None]]
    """None: rounding alone moves the number by too much."""

    def restricted_to(self, quantities: Iterable[str]) -> "Golden":
        """Return some of the quantities."""
        kept = list(quantities)
        values = {name: self.values[name] for name in kept}
        return replace(self, values=values, tolerances={name: self.tolerances[name] for name in kept})


@dataclass(frozen=True)
class GoldenFile:
    """The first steps of a scale's recipes, by rehearsal, and how they were recorded."""

    recorded: dict[str, Any]
    rehearsals: dict[str, Golden]


@dataclass(frozen=True)
class Difference:
    """A number outside its tolerance."""

    quantity: str
    step: int | None
    """From 0; None if the quantity is no series, or its length is wrong."""
    found: float
    expected: float
    tolerance: float

    @property
    def cause(self) -> str:
        """What usually moves this quantity."""
        return next((cause for start, cause in CAUSES if self.quantity.startswith(start)), "a term of the loss")

    def __str__(self) -> str:
        where = "" if self.step is None else f" at step {self.step}"
        return (
            f"{self.quantity}{where} is {number_text(self.found)}, not {number_text(self.expected)} "
            f"(tolerance {self.tolerance:.2g}); usually {self.cause}"
        )


@dataclass(frozen=True)
class Comparison:
    """A rehearsal's numbers against the recorded ones."""

    differences: list[Difference]
    """Earlier steps first, and at one step causes before effects; what has no steps before or after all of them."""
    worst: tuple[str, int, float, float] | None
    """Of the numbers within their tolerances, the one that comes closest: quantity, step, relative difference, share of
    its tolerance."""
    num_compared: int


def path(scale: str) -> Path:
    """Return the file of a scale's first steps."""
    return tables.TABLES_DIR / "golden" / f"{scale}.json"


def runs_path(scale: str) -> Path:
    """Return the file with the first steps of the runs of a scale's tables, by run_id."""
    return tables.TABLES_DIR / "golden" / f"{scale}_runs.json"


def load(scale: str) -> GoldenFile:
    """Load a scale's first steps. Raises `UserError` if there are none, or if the file is damaged."""
    file = path(scale)
    if not file.exists():
        scales = sorted(each.stem for each in file.parent.glob("*.json") if not each.stem.endswith("_runs"))
        recorded = ", ".join(scales) or "none"
        raise UserError(f"no first steps are recorded at scale {scale} (recorded: {recorded}); see make record-golden")
    return _read(file)


def load_runs(scale: str) -> dict[str, Golden]:
    """Load the first steps of the runs of a scale's tables, by run_id; none without a file.

    Raises `UserError` if the file is damaged.
    """
    file = runs_path(scale)
    return _read(file).rehearsals if file.exists() else {}


def is_of_gpu(arithmetic: Mapping[str, Any]) -> bool:
    """Return whether numbers were computed on a GPU, given the arithmetic that their provenance describes."""
    return "cudnn" in arithmetic


def free_of_arithmetic(golden: Golden) -> Golden:
    """Return what does not depend on how a processor adds and draws: the input and the schedule.

    A GPU differs from the CPU that recorded by more than a tolerance says, and it draws other random numbers.
    """
    return golden.restricted_to(name for name in golden.values if name.startswith(FREE_OF_ARITHMETIC))


def compare_recorded(values: Values, golden: Golden) -> Comparison:
    """Compare only what is recorded: these quantities, and of a series these steps. A missing one is a difference.

    Of an evaluation, only what does not depend on its trunk may be recorded.
    """
    return compare({name: values[name][: len(each)] for name, each in golden.values.items() if name in values}, golden)


def compare(values: Values, golden: Golden) -> Comparison:
    """Compare the first steps of a rehearsal with the recorded ones, number by number."""
    differences: list[Difference] = []
    worst: tuple[str, int, float, float] | None = None
    num_compared = 0
    for quantity in sorted({*values, *golden.values}, key=lambda name: (_rank(name), name)):
        found, expected = values.get(quantity, ()), golden.values.get(quantity, ())
        if len(found) != len(expected):
            differences.append(Difference(f"number of values of {quantity}", None, len(found), len(expected), 0))
        for step, value, wanted, tolerance in _compared(found, expected, golden.tolerances.get(quantity, ())):
            num_compared += 1
            error = abs(value - wanted)
            if not error <= tolerance:
                place = step if len(expected) > 1 else None
                differences.append(Difference(quantity, place, value, wanted, tolerance))
            elif tolerance and (worst is None or error / tolerance > worst[3]):
                worst = (quantity, step, error / abs(wanted) if wanted else error, error / tolerance)
    differences.sort(key=_order)
    return Comparison(differences, worst, num_compared)


def number_text(value: float) -> str:
    """Return a number of a first step in seven digits, or "infinite" for one that is not finite."""
    return f"{value:.7g}" if abs(value) < NOT_FINITE else "infinite"


def kind_of(quantity: str) -> str:
    """Return a quantity's name without numbers and parts: those of one kind have like tolerances."""
    return re.sub(
        r"\d+", "", re.sub(r"^(initial )?(norm|movement|projection|state) of .*?(statistics)?$", r"\1\2 \3", quantity)
    )


def _read(file: Path) -> GoldenFile:
    try:
        content = parse_json(file.read_text())
        return GoldenFile(content["recorded"], {name: _golden(each) for name, each in content["rehearsals"].items()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged ({error}); restore it from git, or record it again") from error


def _golden(content: Mapping[str, Any]) -> Golden:
    """Return one entry of a file. Raises an error if a value has no tolerance, or is no number."""
    if unknown := content.keys() - {"recipes", "overrides", "steps"}:
        raise ValueError(f"it has {min(unknown)!r}")
    steps = content["steps"]
    for quantity, (values, tolerances) in steps.items():
        if len(values) != len(tolerances):
            raise ValueError(f"{quantity} has {len(values)} values and {len(tolerances)} tolerances")
        for number in (*values, *(each for each in tolerances if each is not None)):
            math.isnan(number)  # a TypeError if it is no number
    values_of, tolerances_of = ({name: pair[part] for name, pair in steps.items()} for part in (0, 1))
    return Golden(content["recipes"], content["overrides"], values_of, tolerances_of)


def _compared(
    found: Sequence[float], expected: Sequence[float], tolerances: Sequence[float | None]
) -> Iterator[tuple[int, float, float, float]]:
    for step, (value, wanted, tolerance) in enumerate(zip(found, expected, tolerances, strict=False)):
        if tolerance is not None:
            yield step, value, wanted, tolerance


def _rank(quantity: str) -> int:
    """Return the place of a quantity among causes and effects; a term of a loss counts as the loss."""
    found = [number for number, (start, _) in enumerate(CAUSES) if quantity.startswith(start)]
    return found[0] if found else [start for start, _ in CAUSES].index("loss")


def _order(difference: Difference) -> tuple[float, int]:
    """Return what differences are sorted by: their step, then their place among causes and effects."""
    if difference.step is not None:
        step: float = difference.step
    else:
        step = -1 if difference.quantity.startswith(BEFORE_STEPS) else math.inf
    return step, _rank(difference.quantity)
