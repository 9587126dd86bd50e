"""The arithmetic of verdicts: pure functions, each with its formula and where it comes from.

Values are in percent, higher is better. `sd` is the sample standard deviation (divisor n - 1).
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

FAMILY_LEVEL = 0.01
"""Chance that a check of numbers that did not move calls any of its cells `better` or `worse`."""

CONFIDENCE = 0.90
"""Of the interval of a mean over seeds. Inside the margin at 90% is two one-sided t-tests at 5%."""

ROUNDING = 1e-9
"""Percent values pass through binary fractions: 57.5 - 56.7 is a hair more than 0.8."""


SIGNIFICANCE = (1 - CONFIDENCE) / 2
"""Of each one-sided test; Holm's correction keeps it for a table as a whole."""


class Verdict(StrEnum):
    """What the checker says of a cell (DESIGN.md, Contracts)."""

    REPRODUCED = "reproduced"
    WITHIN = "within"
    BETTER = "better"
    WORSE = "worse"
    INCONCLUSIVE = "inconclusive"
    NO_BASELINE = "no baseline"
    NOT_RUN = "not run"
    FAILED = "failed"
    UNAVAILABLE = "unavailable"
    REPORTED = "reported"
    EXPECTED_FAILURE = "expected failure"


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`, both included."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low - ROUNDING <= value <= self.high + ROUNDING


@dataclass(frozen=True)
class Judgement:
    """A verdict with its interval and, for several seeds, the p-value of the claim that it makes."""

    verdict: Verdict
    interval: Interval
    p_value: float | None = None


@dataclass(frozen=True)
class Difference:
    """Between two means, with its interval.

    `p_value` (two-sided) and `effect_size` (Hedges' g: the difference in pooled standard deviations, corrected for few
    seeds) are None where a side has one seed, or where no value differs from its mean.
    """

    points: float
    interval: Interval
    p_value: float | None
    effect_size: float | None


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return statistics.fmean(values)


def sd(values: Sequence[float]) -> float | None:
    """Sample standard deviation; None for fewer than two values, where nothing is known of the spread."""
    return statistics.stdev(values) if len(values) > 1 else None


def t_quantile(probability: float, degrees_of_freedom: float) -> float:
    """Quantile of Student's t; of the normal distribution for infinitely many degrees of freedom."""
    if math.isinf(degrees_of_freedom):
        return statistics.NormalDist().inv_cdf(probability)
    from scipy.special import stdtrit  # a third of the time that importing scipy.stats takes

    return float(stdtrit(degrees_of_freedom, probability))


def t_tail(estimate: float, standard_error: float, degrees_of_freedom: float) -> float:
    """Probability that Student's t exceeds `estimate / standard_error`."""
    if standard_error == 0:
        return 0.0 if estimate > 0 else 1.0
    if math.isinf(degrees_of_freedom):
        return statistics.NormalDist().cdf(-estimate / standard_error)
    from scipy.special import stdtr

    return float(stdtr(degrees_of_freedom, -estimate / standard_error))


def binomial_se(percent: float, num_images: int) -> float:
    """Standard error, in points, of a share of `num_images` independent hits: 100 sqrt(p (1 - p) / N)."""
    share = min(max(percent / 100, 0.0), 1.0)
    return 100 * math.sqrt(share * (1 - share) / num_images)


def standard_error(*samples: Sequence[float], known: float = 0.0) -> tuple[float, float]:
    """Standard error of the mean of one sample, or of the difference of two means, and its degrees of freedom.

    Each sample of two or more adds sd^2 / n; a single value adds nothing, as nothing is known of its spread. `known` is
    an error of known size, as the test sets' binomial one. The degrees of freedom are Welch's and Satterthwaite's,
    where a known error has infinitely many (Welch 1947, Biometrika 34:28).
    """
    estimated = [(spread**2 / len(values), len(values) - 1) for values in samples if (spread := sd(values))]
    variance = sum(part for part, _ in estimated) + known**2
    uncertainty = sum(part**2 / degrees for part, degrees in estimated)
    return math.sqrt(variance), variance**2 / uncertainty if uncertainty else math.inf


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE, known: float = 0.0) -> Interval:
    """Interval of the mean of seeds: mean +- t(df) sqrt(sd^2 / n + known^2). One seed: its `known` error alone."""
    error, degrees = standard_error(values, known=known)
    half = t_quantile((1 + confidence) / 2, degrees) * error
    return Interval(mean(values) - half, mean(values) + half)


def against_printed(values: Sequence[float], printed: float, margin: float, test_set_error: float = 0.0) -> Judgement:
    """Judge our seeds against a printed number and a margin in points; `test_set_error` is the test set's binomial one.

    Theirs and ours are measured on the same test pictures, so what these few pictures leave open about all others is no
    part of the question. Several seeds show by themselves how far trainings of one recipe lie apart on them. One seed
    shows nothing of that, and the test set's error stands in for it.

    One seed: `within` the margin or not, never `reproduced`. Outside the margin it is `better` or `worse` where its 90%
    interval is too, and `inconclusive` where that reaches inside.

    Several seeds make one of three claims, the one with the smallest p-value, if that is at most 5%: `reproduced`, that
    the mean lies inside the margin (two one-sided t-tests: Schuirmann 1987, J. Pharmacokinet. Biopharm. 15:657; the
    same as the 90% interval inside the margin), `better`, that it lies above, or `worse`, that it lies below. Otherwise
    the interval straddles an edge: `inconclusive`.
    """
    same = Interval(printed - margin, printed + margin)
    if len(values) == 1:
        ours = mean_interval(values, known=test_set_error)
        reaches_inside = ours.low in same or ours.high in same
        verdict = _place(values[0], same)
        return Judgement(Verdict.INCONCLUSIVE if verdict != Verdict.WITHIN and reaches_inside else verdict, ours)
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
    return Judgement(verdict, mean_interval(values), p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number m: the k-th smallest times m - k + 1, none smaller than the one before it.

    Keeping only claims whose adjusted p-value is at most 5% keeps the chance that any of them is wrong below 5%,
    however they depend on each other (Holm 1979, Scand. J. Statist. 6:65).
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def difference(
    ours: Sequence[float], theirs: Sequence[float], known: float = 0.0, confidence: float = CONFIDENCE
) -> Difference:
    """The mean of `ours` less that of `theirs`, with Welch's interval; `known` as in `standard_error`.

    Where both sides have one seed the interval holds the known error alone.
    """
    points = mean(ours) - mean(theirs)
    error, degrees = standard_error(ours, theirs, known=known)
    half = t_quantile((1 + confidence) / 2, degrees) * error
    interval = Interval(points - half, points + half)
    if min(len(ours), len(theirs)) < 2:
        return Difference(points, interval, None, None)
    p_value = 2 * t_tail(abs(points), error, degrees) if error else None
    return Difference(points, interval, p_value, hedges_g(ours, theirs))


def hedges_g(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Difference of means in pooled standard deviations, times 1 - 3 / (4 (n + m) - 9) (Hedges 1981)."""
    first, second = sd(ours), sd(theirs)
    if first is None or second is None or first == second == 0:
        return None
    n, m = len(ours), len(theirs)
    pooled = math.sqrt(((n - 1) * first**2 + (m - 1) * second**2) / (n + m - 2))
    return (mean(ours) - mean(theirs)) / pooled * (1 - 3 / (4 * (n + m) - 9))


def prediction_interval(
    recorded: Sequence[float], num_new: int, num_test_images: int, num_cells: int, family_level: float = FAMILY_LEVEL
) -> Interval:
    """Where the mean of `num_new` new seeds falls if nothing has changed since `recorded` was measured.

    The half-width is the larger of

        t(n-1; 1 - a/2) sd(recorded) sqrt(1/n + 1/m)      the spread over n recorded seeds, itself only estimated, and
        z(1 - a/2) se sqrt(1/n + 1/m)                     the binomial standard error se of the test set, known,

    with m new seeds and a = family_level / num_cells. The first is the usual prediction interval for the mean of m
    future observations (Hahn and Meeker, Statistical Intervals, 4.8). The second is a floor: few seeds can agree by
    luck, and no difference below what the test set resolves deserves an alarm. (For mean average precision, which is
    no share of hits, it is a rough stand-in of the right size.) The interval is cut to what a percentage can be.

    All cells of a check are judged at once and share seeds and checkpoints, so their errors hang together. Bonferroni's
    a / num_cells keeps the chance of any false alarm below `family_level` however they do; Sidak's level would gain a
    tenth of a percent of width and need independence.

    Another machine passes too: it runs the same seeds with float sums in another order. Training multiplies such
    rounding differences until, at worst, the run is as different as one with another seed, and that is the spread that
    the interval is made of. So the false alarm rate of a foreign machine is at most that of a new seed.
    """
    level = 1 - family_level / num_cells / 2
    spread = sd(recorded)
    if spread is None:
        raise ValueError("one recorded value has no interval")
    estimated = t_quantile(level, len(recorded) - 1) * spread
    known = statistics.NormalDist().inv_cdf(level) * binomial_se(mean(recorded), num_test_images)
    half = max(estimated, known) * math.sqrt(1 / len(recorded) + 1 / num_new)
    return Interval(max(0.0, mean(recorded) - half), min(100.0, mean(recorded) + half))


def against_recorded(values: Sequence[float], unchanged: Interval) -> Verdict:
    """Judge our seeds against the interval in which numbers that did not move fall."""
    return _place(mean(values), unchanged)


def _place(value: float, same: Interval) -> Verdict:
    if value in same:
        return Verdict.WITHIN
    return Verdict.BETTER if value > same.high else Verdict.WORSE
