"""The statistics of verdicts: pure functions, each with its formula and source.

Values are in percent, higher is better. `sd` is the sample standard deviation (divisor n - 1).
"""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from reproduce.harness.verdict.labels import Verdict

FAMILY_LEVEL = 0.01
"""Probability that a check of unchanged code calls any number `better` or `worse` than recorded."""

POWER = 0.90
"""Probability with which a fall that a cell "would notice" is called `worse`."""

MAX_SEEDS = 50
"""More seeds than anybody trains."""

CONFIDENCE = 0.90
"""Confidence of the interval of a mean over seeds. At 90%, inside the margin equals two one-sided t-tests at 5%."""

ROUNDING = 1e-9
"""Tolerance for percentages as binary fractions: 57.5 - 56.7 is slightly more than 0.8."""


SIGNIFICANCE = (1 - CONFIDENCE) / 2
"""Level of each one-sided test; Holm's correction keeps it for a table as a whole."""


@dataclass(frozen=True)
class Interval:
    """The closed interval from `low` to `high`."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low - ROUNDING <= value <= self.high + ROUNDING

    def overlaps(self, other: "Interval") -> bool:
        """Return whether the intervals share a value. One may lie within the other."""
        return self.low <= other.high + ROUNDING and self.high >= other.low - ROUNDING


@dataclass(frozen=True)
class PrintedComparison:
    """Our seeds compared with a printed number: verdict, interval and, for several seeds, its p-value."""

    verdict: Verdict
    interval: Interval
    p_value: float | None = None


@dataclass(frozen=True)
class Difference:
    """The difference of two means, with its interval.

    `p_value` (two-sided) and `effect_size` (Hedges' g: the difference in pooled standard deviations, corrected for few
    seeds) are None if a side has one seed, or if no value differs from its mean.
    """

    points: float
    interval: Interval
    p_value: float | None
    effect_size: float | None


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean."""
    return statistics.fmean(values)


def sd(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation; None for fewer than two values, which say nothing about the spread."""
    return statistics.stdev(values) if len(values) > 1 else None


def t_quantile(probability: float, degrees_of_freedom: float) -> float:
    """Return the quantile of Student's t; of the normal distribution for infinitely many degrees of freedom."""
    if math.isinf(degrees_of_freedom):
        return statistics.NormalDist().inv_cdf(probability)
    from scipy.special import stdtrit  # a third of the time that importing scipy.stats takes

    return float(stdtrit(degrees_of_freedom, probability))


def t_tail(estimate: float, standard_error: float, degrees_of_freedom: float) -> float:
    """Return the probability that Student's t exceeds `estimate / standard_error`."""
    if standard_error == 0:
        return 0.0 if estimate > 0 else 1.0
    if math.isinf(degrees_of_freedom):
        return statistics.NormalDist().cdf(-estimate / standard_error)
    from scipy.special import stdtr

    return float(stdtr(degrees_of_freedom, -estimate / standard_error))


def binomial_se(percent: float, num_images: int) -> float:
    """Return the standard error, in points, of a share of `num_images` independent hits: 100 sqrt(p (1 - p) / N)."""
    share = min(max(percent / 100, 0.0), 1.0)
    return 100 * math.sqrt(share * (1 - share) / num_images)


def standard_error(*samples: Sequence[float], known: float = 0.0) -> tuple[float, float]:
    """Return the standard error of one sample's mean, or of the difference of two means, and its degrees of freedom.

    Each sample of two or more adds sd^2 / n; a single value adds nothing, since its spread is unknown. `known` is an
    error of known size, such as the test sets' binomial one. The degrees of freedom are Welch's and Satterthwaite's; a
    known error has infinitely many (Welch 1947, Biometrika 34:28).
    """
    estimated = [(spread**2 / len(values), len(values) - 1) for values in samples if (spread := sd(values))]
    variance = sum(part for part, _ in estimated) + known**2
    uncertainty = sum(part**2 / degrees for part, degrees in estimated)
    return math.sqrt(variance), variance**2 / uncertainty if uncertainty else math.inf


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE, known: float = 0.0) -> Interval:
    """Return the interval of a mean: mean +- t(df) sqrt(sd^2 / n + known^2). One seed has its `known` error alone."""
    error, degrees = standard_error(values, known=known)
    half = t_quantile((1 + confidence) / 2, degrees) * error
    return Interval(mean(values) - half, mean(values) + half)


def compare_with_printed(
    values: Sequence[float], printed: float, margin: float, test_set_error: float = 0.0
) -> PrintedComparison:
    """Compare our seeds with a printed number, given its margin and the test set's binomial error, both in points.

    Theirs and ours are measured on the same test images, so the sampling error of those images does not matter.
    Several seeds show how far trainings of one recipe lie apart on them. One seed does not show it, so the test set's
    error stands in for it.

    One seed is `within` the margin or not, never `reproduced`. Outside the margin it is `better` or `worse` if its 90%
    interval is outside too, and `inconclusive` if the interval reaches inside.

    Several seeds make one of three claims, the one with the smallest p-value, if that is at most 5%: `reproduced`, that
    the mean lies inside the margin (two one-sided t-tests: Schuirmann 1987, J. Pharmacokinet. Biopharm. 15:657; the
    same as the 90% interval inside the margin), `better`, that it lies above, or `worse`, that it lies below. Otherwise
    the interval straddles an edge: `inconclusive`.
    """
    same = Interval(printed - margin, printed + margin)
    if len(values) == 1:
        ours = mean_interval(values, known=test_set_error)
        verdict = _position(values[0], same)
        if verdict != Verdict.WITHIN and ours.overlaps(same):
            verdict = Verdict.INCONCLUSIVE
        return PrintedComparison(verdict, ours)
    difference = mean(values) - printed
    error, degrees = standard_error(values)
    above, below = (t_tail(sign * difference + margin, error, degrees) for sign in (1, -1))
    p_values = {
        Verdict.REPRODUCED: max(above, below),
        Verdict.BETTER: t_tail(difference - margin, error, degrees),
        Verdict.WORSE: t_tail(-difference - margin, error, degrees),
    }
    verdict = min(p_values, key=lambda claim: p_values[claim])
    p_value = p_values[verdict]
    if p_value > SIGNIFICANCE:
        verdict = Verdict.INCONCLUSIVE
    return PrintedComparison(verdict, mean_interval(values), p_value)


def holm(p_values: Sequence[float], family_size: int = 0) -> list[float]:
    """Adjust m p-values by Holm's method: the k-th smallest times m - k + 1, none smaller than the one before it.

    m is `family_size` if that is more: claims that are planned and have no p-value yet count as the largest ones, so
    that a table does not look better while it is incomplete.

    Keeping only claims whose adjusted p-value is at most 5% keeps the chance that any of them is wrong below 5%,
    however they depend on each other (Holm 1979, Scand. J. Statist. 6:65).
    """
    family_size = max(family_size, len(p_values))
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (family_size - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def corrected_interval(interval: Interval, num_seeds: int, factor: float) -> Interval:
    """Return the interval of a mean over seeds at the level of a test that a correction made `factor` times stricter.

    It lies inside the margin if, and only if, the corrected p-value is at most 5%: for two one-sided tests at level a
    the interval is that of confidence 1 - 2a.
    """
    plain, strict = (t_quantile(1 - SIGNIFICANCE / each, num_seeds - 1) for each in (1.0, factor))
    middle, half = (interval.low + interval.high) / 2, (interval.high - interval.low) / 2 * strict / plain
    return Interval(middle - half, middle + half)


def reproduction_probability(spread: float, num_seeds: int, margin: float, family_size: int) -> float:
    """Return how probable `reproduced` is if our mean is the printed number and seeds have this standard deviation.

    The claim holds if |mean| + t(n-1) S / sqrt(n) is below the margin, at Holm's strictest level for the family. S^2 is
    chi-square with n - 1 degrees of freedom and independent of the mean, so the probability is averaged over S.
    """
    if spread == 0:
        return 1.0
    from scipy.special import chdtri

    degrees, root = num_seeds - 1, math.sqrt(num_seeds)
    reach = t_quantile(1 - SIGNIFICANCE / family_size, degrees)
    cdf, steps = statistics.NormalDist().cdf, 200
    spreads = (math.sqrt(float(chdtri(degrees, (step + 0.5) / steps)) / degrees) for step in range(steps))
    return mean([max(0.0, 2 * cdf(root * margin / spread - reach * each) - 1) for each in spreads])


def seeds_for(spread: float, margin: float, family_size: int) -> int | None:
    """Return how many seeds make `reproduced` as probable as `POWER` if it is true; None if `MAX_SEEDS` do not."""
    numbers = range(2, MAX_SEEDS + 1)
    enough = (each for each in numbers if reproduction_probability(spread, each, margin, family_size) >= POWER)
    return next(enough, None)


def largest_spread(num_seeds: int, margin: float, family_size: int) -> float:
    """Return the largest standard deviation over seeds at which so many of them suffice (`seeds_for`), in points."""
    low, high = 0.0, margin * math.sqrt(num_seeds)
    for _ in range(30):
        middle = (low + high) / 2
        enough = reproduction_probability(middle, num_seeds, margin, family_size) >= POWER
        low, high = (middle, high) if enough else (low, middle)
    return low


def difference(
    ours: Sequence[float], theirs: Sequence[float], known: float = 0.0, confidence: float = CONFIDENCE
) -> Difference:
    """Return the mean of `ours` less that of `theirs`, with Welch's interval; `known` as in `standard_error`.

    If both sides have one seed, the interval holds the known error alone.
    """
    points = mean(ours) - mean(theirs)
    error, degrees = standard_error(ours, theirs, known=known)
    half = t_quantile((1 + confidence) / 2, degrees) * error
    interval = Interval(points - half, points + half)
    if min(len(ours), len(theirs)) < 2:
        return Difference(points, interval, None, None)
    p_value = 2 * t_tail(abs(points), error, degrees) if error else None
    return Difference(points, interval, p_value, hedges_g(ours, theirs))


def widest_possible_difference(samples: Sequence[Sequence[float]]) -> float:
    """Return how far the means of any two samples may lie apart: the highest end of all pairs' 90% intervals.

    If it is at most d, every pair is equivalent within d by two one-sided Welch tests at 5%, and so the claim that the
    spread is at most d is wrong with 5% probability at most: all pairs must pass, so no correction is needed (an
    intersection-union test: Berger 1982, Technometrics 24:295).
    """
    return max(difference(*pair).interval.high for pair in itertools.permutations(samples, 2))


def hedges_g(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Return the difference of means in pooled standard deviations, times 1 - 3 / (4 (n + m) - 9) (Hedges 1981)."""
    first, second = sd(ours), sd(theirs)
    if first is None or second is None or first == second == 0:
        return None
    n, m = len(ours), len(theirs)
    pooled = math.sqrt(((n - 1) * first**2 + (m - 1) * second**2) / (n + m - 2))
    return (mean(ours) - mean(theirs)) / pooled * (1 - 3 / (4 * (n + m) - 9))


def reach_of_new_seeds(
    recorded: Sequence[float], num_new: int, test_set_error: float, tail: float, smallest_spread: float = 0.0
) -> float:
    """Return how far the mean of `num_new` new seeds of unchanged code strays from the recorded mean to one side.

    It strays further with probability `tail`. The distance is the larger of

        t(n-1; 1 - tail) sd(recorded) sqrt(1/n + 1/m)     the spread over n recorded seeds, itself estimated, and
        z(1 - tail) se sqrt(1/n + 1/m)                    the binomial standard error se of the test set, known,

    with m new seeds. `smallest_spread` replaces a smaller sd, since numbers that move in steps can all agree by luck.
    The first is the usual prediction bound for the mean of m future observations (Hahn and Meeker, Statistical
    Intervals, 4.8). The second is a floor: few seeds can agree by luck, and no difference below the test set's
    resolution deserves an alarm. (Mean average precision is no share of hits; there it is a rough stand-in of the right
    size.)
    """
    spread = sd(recorded)
    if spread is None:
        raise ValueError("one recorded value has no interval")
    estimated = t_quantile(1 - tail, len(recorded) - 1) * max(spread, smallest_spread)
    known = statistics.NormalDist().inv_cdf(1 - tail) * test_set_error
    return max(estimated, known) * math.sqrt(1 / len(recorded) + 1 / num_new)


def prediction_interval(
    recorded: Sequence[float], num_new: int, test_set_error: float, tail: float, smallest_spread: float = 0.0
) -> Interval:
    """Return where the mean of `num_new` new seeds falls if nothing has changed since `recorded` was measured.

    It falls beyond each end with probability `tail` (`reach_of_new_seeds`). The interval is clipped to [0, 100].

    All cells of a check share seeds and checkpoints, so their errors are correlated. Bonferroni's share of the family's
    level (`Family.tail`) keeps the chance of any false alarm below that level whatever the correlation; Sidak's level
    would narrow the interval by a tenth of a percent and needs independence.

    Another machine passes too. It runs the same seeds with float sums in another order; training amplifies such
    rounding differences until, at worst, the run is as different as one with another seed, and the interval covers
    that spread. So the false alarm rate of another machine is at most that of a new seed.
    """
    reach = reach_of_new_seeds(recorded, num_new, test_set_error, tail, smallest_spread)
    return Interval(max(0.0, mean(recorded) - reach), min(100.0, mean(recorded) + reach))


def noticeable_fall(
    recorded: Sequence[float], num_new: int, test_set_error: float, tail: float, smallest_spread: float = 0.0
) -> float | None:
    """Return the smallest fall, in points, that `prediction_interval` calls `worse` with a probability of `POWER`.

    None if the recorded mean is too small to fall so far.

    A fall d is called if the new mean, less d, lies below the interval. The recorded mean is given and the new one
    strays above it by more than `reach_of_new_seeds(1 - POWER)` with probability 1 - POWER, so

        d = reach_of_new_seeds(tail) + reach_of_new_seeds(1 - POWER).

    The second part is the new seeds' own spread. It is a quantile of t, as the interval's, because the spread is
    estimated: over repeated recordings, the d that each of them states is called with a probability of exactly POWER
    (above it where the test set's floor is the wider one). A noncentral t would give the power of recordings yet to be
    made, for a spread that somebody knows.
    """
    fall = sum(
        reach_of_new_seeds(recorded, num_new, test_set_error, each, smallest_spread) for each in (tail, 1 - POWER)
    )
    return fall if fall <= mean(recorded) + ROUNDING else None


def compare_with_recorded(values: Sequence[float], unchanged: Interval) -> Verdict:
    """Compare the mean of our seeds with the interval in which unchanged code falls."""
    return _position(mean(values), unchanged)


def _position(value: float, same: Interval) -> Verdict:
    if value in same:
        return Verdict.WITHIN
    return Verdict.BETTER if value > same.high else Verdict.WORSE
