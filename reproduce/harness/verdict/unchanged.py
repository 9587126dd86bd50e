"""Where a number falls if nothing has changed since it was recorded: with new seeds, or with the recorded one again."""

from collections.abc import Iterable
from dataclasses import dataclass

from reproduce.harness.spec.baseline import RecordedCell
from reproduce.harness.verdict import stats
from reproduce.harness.verdict.family import resolution
from reproduce.harness.verdict.labels import IntervalKind
from reproduce.harness.verdict.stats import Interval


@dataclass(frozen=True)
class Unchanged:
    """Where a check's number falls if nothing has changed."""

    kind: IntervalKind
    num_recorded: int
    """Recorded numbers that the interval rests on."""
    expected: float
    interval: Interval
    noticeable_fall: float | None
    """See `stats.noticeable_fall`."""


def unchanged(known: RecordedCell, seeds: Iterable[int], recorded_seeds: Iterable[int], tail: float) -> Unchanged:
    """Return where the mean over `seeds` falls: the narrower of two intervals, of which the recording alone decides.

    One is that of new seeds. The other needs the first recorded seed, by itself, and its numbers under other arithmetic
    (`RecordedCell.same_seed`). Training amplifies rounding until a seed on another machine is as good as another seed.
    What does not train its trunk hardly depends on the machine, and so need not be given the room of all seeds.
    """
    seeds, first = list(seeds), next(iter(recorded_seeds))
    candidates = [_of_new_seeds(known, len(seeds), tail)]
    if known.same_seed and seeds == [first]:
        candidates.append(_of_the_same_seed(known, tail))
    return min(candidates, key=lambda each: each.interval.high - each.interval.low)


def _of_new_seeds(known: RecordedCell, num_new: int, tail: float) -> Unchanged:
    error = resolution(known)
    return Unchanged(
        "new seeds",
        len(known.values),
        stats.mean(known.values),
        stats.prediction_interval(known.values, num_new, error, tail),
        stats.noticeable_fall(known.values, num_new, error, tail),
    )


def _of_the_same_seed(known: RecordedCell, tail: float) -> Unchanged:
    """Return where the recorded seed falls on a machine whose arithmetic is one more draw from the recorded kinds."""
    values = [known.values[0], *known.same_seed]
    one_image = 100 / known.num_test_images
    return Unchanged(
        "same seed",
        len(values),
        stats.mean(values),
        stats.prediction_interval(values, 1, 0.0, tail, one_image),
        stats.noticeable_fall(values, 1, 0.0, tail, one_image),
    )
