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


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`, both included."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low - ROUNDING <= value <= self.high + ROUNDING


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return statistics.fmean(values)


def sd(values: Sequence[float]) -> float | None:
    """Sample standard deviation; None for fewer than two values, where nothing is known of the spread."""
    return statistics.stdev(values) if len(values) > 1 else None


def t_quantile(probability: float, degrees_of_freedom: int) -> float:
    """Quantile of Student's t."""
    from scipy.special import stdtrit  # a third of the time that importing scipy.stats takes

    return float(stdtrit(degrees_of_freedom, probability))


def binomial_se(percent: float, num_images: int) -> float:
    """Standard error, in points, of a share of `num_images` independent hits: 100 sqrt(p (1 - p) / N)."""
    share = min(max(percent / 100, 0.0), 1.0)
    return 100 * math.sqrt(share * (1 - share) / num_images)


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Student's interval of the mean of two or more seeds: mean +- t(n-1) sd / sqrt(n)."""
    spread = sd(values)
    if spread is None:
        raise ValueError("one value has no interval")
    half = t_quantile((1 + confidence) / 2, len(values) - 1) * spread / math.sqrt(len(values))
    return Interval(mean(values) - half, mean(values) + half)


def against_printed(values: Sequence[float], printed: float, margin: float) -> Verdict:
    """Judge our seeds against a printed number and a margin in points.

    One seed: inside the margin or not; nothing is known of its spread, so it is never `reproduced`. Several seeds:
    `reproduced` where the 90% interval of the mean lies inside the margin (equivalence by two one-sided tests:
    Schuirmann 1987, J. Pharmacokinet. Biopharm. 15:657), `better` or `worse` where it lies outside, `inconclusive`
    where it straddles an edge.
    """
    same = Interval(printed - margin, printed + margin)
    if len(values) == 1:
        return _place(values[0], same)
    ours = mean_interval(values)
    if ours.low in same and ours.high in same:
        return Verdict.REPRODUCED
    if ours.low > same.high:
        return Verdict.BETTER
    return Verdict.WORSE if ours.high < same.low else Verdict.INCONCLUSIVE


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
