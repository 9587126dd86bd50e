"""The arithmetic of verdicts against closed forms and scipy.stats, and the promised false alarm rate."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from reproduce.harness.verdict import stats
from reproduce.harness.verdict.labels import Verdict
from reproduce.harness.verdict.stats import FAMILY_LEVEL, Interval


def test_mean_and_sd() -> None:
    assert stats.mean([1.0, 2.0, 6.0]) == 3.0
    assert stats.sd([1.0, 2.0, 6.0]) == pytest.approx(math.sqrt(7))
    assert stats.sd([1.0]) is None


@pytest.mark.parametrize(("probability", "degrees"), [(0.95, 2), (0.9995, 4), (0.5, 1), (0.1, 30)])
def test_t_quantile_is_that_of_scipy_stats(probability: float, degrees: int) -> None:
    assert stats.t_quantile(probability, degrees) == pytest.approx(scipy_stats.t.ppf(probability, degrees))


def test_t_quantile_with_one_degree_of_freedom_is_a_tangent() -> None:
    assert stats.t_quantile(0.95, 1) == pytest.approx(math.tan(math.pi * 0.45))


def test_binomial_se() -> None:
    assert stats.binomial_se(50.0, 10_000) == 0.5
    assert stats.binomial_se(100.0, 10) == 0.0


def test_mean_interval_is_that_of_scipy_stats() -> None:
    values = [56.1, 56.9, 56.4, 57.0]
    ours = stats.mean_interval(values, 0.90)
    low, high = scipy_stats.t.interval(0.90, 3, loc=np.mean(values), scale=scipy_stats.sem(values))
    assert (ours.low, ours.high) == pytest.approx((low, high))


@pytest.mark.parametrize(
    ("value", "verdict"),
    [(56.7, "within"), (57.5, "within"), (55.9, "within"), (57.51, "better"), (55.89, "worse")],
)
def test_one_seed_is_never_reproduced(value: float, verdict: str) -> None:
    assert stats.compare_with_printed([value], 56.7, 0.8).verdict == verdict


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([56.6, 56.7, 56.8], "reproduced"),
        ([57.4, 57.5, 57.6], "inconclusive"),
        ([56.0, 57.0, 58.0], "inconclusive"),
        ([58.0, 58.1, 58.2], "better"),
        ([54.0, 54.1, 54.2], "worse"),
        ([56.7, 56.7], "reproduced"),
    ],
)
def test_several_seeds(values: list[float], verdict: str) -> None:
    assert stats.compare_with_printed(values, 56.7, 0.8).verdict == verdict


def test_reproduced_is_two_one_sided_tests_at_five_percent() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        values = list(rng.normal(50, 0.5, size=4) + rng.normal(0, 0.5))
        above = scipy_stats.ttest_1samp(values, 49.2, alternative="greater").pvalue
        below = scipy_stats.ttest_1samp(values, 50.8, alternative="less").pvalue
        equivalent = max(above, below) < 0.05
        compared = stats.compare_with_printed(values, 50.0, 0.8)
        assert (compared.verdict == Verdict.REPRODUCED) == equivalent
        assert not equivalent or compared.p_value == pytest.approx(max(above, below))


def test_prediction_interval_follows_the_spread_of_the_seeds() -> None:
    recorded = [40.0, 50.0, 60.0, 45.0, 55.0]
    interval = stats.prediction_interval(recorded, 2, test_set_error=0.001, tail=0.0025)
    half = scipy_stats.t.ppf(1 - 0.0025, 4) * np.std(recorded, ddof=1) * math.sqrt(1 / 5 + 1 / 2)
    assert (interval.low, interval.high) == pytest.approx((50 - half, 50 + half))


def test_prediction_interval_is_no_narrower_than_the_test_set_resolves() -> None:
    interval = stats.prediction_interval([50.0] * 5, 1, stats.binomial_se(50.0, 100), tail=0.025)
    half = scipy_stats.norm.ppf(0.975) * 5.0 * math.sqrt(1 / 5 + 1)
    assert (interval.low, interval.high) == pytest.approx((50 - half, 50 + half))


@pytest.mark.parametrize(("num_recorded", "num_new"), [(5, 1), (8, 3)])
def test_false_alarm_rate_of_a_whole_check_is_as_promised(num_recorded: int, num_new: int) -> None:
    """Ten cells that share half of their variance, as those of one checkpoint do; a test set too large to matter."""
    rng, num_checks, num_cells, level = np.random.default_rng(1), 4000, 10, 0.05

    def draw(num_seeds: int) -> np.ndarray:
        shared = rng.normal(size=(num_checks, 1, num_seeds))
        return 50 + (shared + rng.normal(size=(num_checks, num_cells, num_seeds))) / math.sqrt(2)

    recorded, new = draw(num_recorded), draw(num_new).mean(axis=2)
    quantile = stats.t_quantile(1 - level / num_cells / 2, num_recorded - 1)
    half = quantile * recorded.std(axis=2, ddof=1) * math.sqrt(1 / num_recorded + 1 / num_new)
    alarms = np.abs(new - recorded.mean(axis=2)) > half
    example = stats.prediction_interval(list(recorded[0, 0]), num_new, 0.0, level / num_cells / 2)
    assert example.high - example.low == pytest.approx(2 * half[0, 0])
    standard_error = math.sqrt(level * (1 - level) / num_checks)
    assert alarms.any(axis=1).mean() < level + 3 * standard_error
    assert alarms.mean() == pytest.approx(level / num_cells, abs=3 * math.sqrt(level / num_cells / num_checks / 2))


def test_noticeable_fall_by_hand() -> None:
    recorded, scale = [40.0, 50.0, 60.0, 45.0, 55.0], math.sqrt(1 / 5 + 1 / 2)
    fall = stats.noticeable_fall(recorded, 2, test_set_error=0.001, tail=0.025)
    quantiles = scipy_stats.t.ppf(0.975, 4) + scipy_stats.t.ppf(0.9, 4)
    assert fall == pytest.approx(quantiles * np.std(recorded, ddof=1) * scale)
    of_floor = stats.noticeable_fall([50.0] * 5, 2, test_set_error=3.0, tail=0.025)
    assert of_floor == pytest.approx((scipy_stats.norm.ppf(0.975) + scipy_stats.norm.ppf(0.9)) * 3 * scale)


def test_a_number_that_cannot_fall_so_far_notices_nothing() -> None:
    recorded = [10.0, 20.0, 30.0, 15.0, 25.0]
    assert stats.noticeable_fall(recorded, 1, 0.0, tail=0.0001) is None
    fall = stats.noticeable_fall(recorded, 1, 0.0, tail=0.25)
    assert fall is not None and fall < 20
    assert stats.prediction_interval(recorded, 1, 0.0, tail=0.25).low > 0


@pytest.mark.parametrize(("num_recorded", "num_new"), [(5, 1), (20, 1), (20, 3)])
def test_a_noticeable_fall_is_noticed_as_often_as_it_says(num_recorded: int, num_new: int) -> None:
    """Each recording states its own fall; new seeds that have fallen so far are called in 90 of 100 recordings."""
    rng, num_recordings, tail, called = np.random.default_rng(4), 1500, 0.001, 0
    for _ in range(num_recordings):
        recorded = list(rng.normal(60, 1.5, size=num_recorded))
        fall = stats.noticeable_fall(recorded, num_new, 0.0, tail)
        assert fall is not None
        new = rng.normal(60, 1.5, size=num_new) - fall
        unchanged = stats.prediction_interval(recorded, num_new, 0.0, tail)
        called += stats.compare_with_recorded(list(new), unchanged) == Verdict.WORSE
    standard_error = math.sqrt(stats.POWER * (1 - stats.POWER) / num_recordings)
    assert called / num_recordings == pytest.approx(stats.POWER, abs=3 * standard_error)


def test_recorded_numbers_have_a_family_level() -> None:
    assert 0 < FAMILY_LEVEL < 0.05
    same = Interval(40.0, 50.0)
    assert stats.compare_with_recorded([50.0], same) == Verdict.WITHIN
    assert stats.compare_with_recorded([49.0, 53.0], same) == Verdict.BETTER
    assert stats.compare_with_recorded([30.0], same) == Verdict.WORSE


def test_a_known_error_adds_to_the_estimated_one() -> None:
    """Welch-Satterthwaite with one part of infinitely many degrees of freedom."""
    values = [56.1, 56.9, 56.4, 57.0]
    part, known = np.var(values, ddof=1) / 4, 0.2
    error, degrees = stats.standard_error(values, known=known)
    assert error == pytest.approx(math.sqrt(part + known**2))
    assert degrees == pytest.approx((part + known**2) ** 2 / (part**2 / 3))
    interval = stats.mean_interval(values, 0.90, known)
    assert interval.high - np.mean(values) == pytest.approx(scipy_stats.t.ppf(0.95, degrees) * error)


def test_one_seed_has_its_test_sets_error_alone() -> None:
    interval = stats.mean_interval([75.3], 0.90, known=stats.binomial_se(75.3, 50_000))
    assert interval.high - 75.3 == pytest.approx(scipy_stats.norm.ppf(0.95) * 100 * math.sqrt(0.753 * 0.247 / 50_000))
    assert stats.mean_interval([75.3]) == Interval(75.3, 75.3)


@pytest.mark.parametrize(("value", "verdict"), [(57.5, "within"), (57.7, "inconclusive"), (57.9, "better")])
def test_one_seed_outside_the_margin_may_be_the_test_sets_doing(value: float, verdict: str) -> None:
    assert stats.compare_with_printed([value], 56.7, 0.8, test_set_error=0.2).verdict == verdict


@pytest.mark.parametrize(("value", "verdict"), [(56.9, "inconclusive"), (56.5, "inconclusive"), (57.2, "better")])
def test_one_seed_whose_interval_contains_the_whole_margin_is_inconclusive(value: float, verdict: str) -> None:
    """As for public weights: a margin of .1 or .2 points, and a test set that resolves .3 to .7."""
    assert stats.compare_with_printed([value], 56.7, 0.1, test_set_error=0.2).verdict == verdict


def test_several_seeds_are_held_by_their_own_spread() -> None:
    """Theirs and ours are of the same test pictures: AP50 on VOC07's 4,952 can be reproduced to .5 points."""
    error = stats.binomial_se(82.6, 4952)
    values = [82.5, 82.6, 82.8]
    compared = stats.compare_with_printed(values, 82.6, 0.5, test_set_error=error)
    assert compared.verdict == Verdict.REPRODUCED and 1.645 * error > 0.5
    low, high = scipy_stats.t.interval(0.90, 2, loc=np.mean(values), scale=scipy_stats.sem(values))
    assert (compared.interval.low, compared.interval.high) == pytest.approx((low, high))


def test_better_and_worse_are_one_sided_tests_at_the_margins_edge() -> None:
    values = [58.0, 57.9, 58.3]
    compared = stats.compare_with_printed(values, 56.7, 0.8)
    assert compared.verdict == Verdict.BETTER
    assert compared.p_value == pytest.approx(scipy_stats.ttest_1samp(values, 57.5, alternative="greater").pvalue)
    mirrored = stats.compare_with_printed([113.4 - value for value in values], 56.7, 0.8)
    assert mirrored.verdict == Verdict.WORSE
    assert mirrored.p_value == pytest.approx(compared.p_value)


def test_holm_by_hand() -> None:
    assert stats.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert stats.holm([0.9, 0.6]) == [1.0, 1.0]
    assert stats.holm([0.02]) == [0.02]
    assert stats.holm([]) == []
    assert stats.holm([0.01, 0.03], 4) == pytest.approx([0.04, 0.09])  # two more are planned


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_rejects_no_more_than_each_alone_and_no_less_than_bonferroni(p_values: list[float]) -> None:
    adjusted = stats.holm(p_values)
    for own, corrected in zip(p_values, adjusted, strict=True):
        assert own <= corrected <= min(1.0, len(p_values) * own)
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    assert [adjusted[index] for index in order] == sorted(adjusted)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=6), st.floats(0, 100), st.floats(0.01, 5))
def test_a_verdict_and_its_mirror_image(values: list[float], printed: float, margin: float) -> None:
    """What lies above is `better` as what lies below is `worse`; a wider margin never undoes `within`."""
    mirrored = [2 * printed - value for value in values]
    ours, theirs = (stats.compare_with_printed(each, printed, margin).verdict for each in (values, mirrored))
    turned = {Verdict.BETTER: Verdict.WORSE, Verdict.WORSE: Verdict.BETTER}
    assert theirs == turned.get(ours, ours)
    if ours in (Verdict.WITHIN, Verdict.REPRODUCED):
        assert stats.compare_with_printed(values, printed, 2 * margin).verdict == ours


def test_holm_keeps_the_chance_of_any_wrong_claim() -> None:
    """Six means that all lie on the margin's edge: every `reproduced` is wrong (Holm at 5%)."""
    rng, num_tables, wrong = np.random.default_rng(2), 1000, 0
    for _ in range(num_tables):
        draws = rng.normal(50.8, 0.3, size=(6, 4))
        p_values = [float(scipy_stats.ttest_1samp(row, 50.8, alternative="less").pvalue) for row in draws]
        wrong += min(stats.holm(p_values)) <= stats.SIGNIFICANCE
    assert wrong / num_tables == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / num_tables))


def test_difference_is_welchs_test() -> None:
    ours, theirs = [73.9, 74.2, 73.7], [73.1, 73.0, 73.4, 72.6]
    welch = scipy_stats.ttest_ind(ours, theirs, equal_var=False)
    found = stats.difference(ours, theirs)
    assert found.points == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert found.p_value == pytest.approx(welch.pvalue)
    low, high = welch.confidence_interval(0.90)
    assert (found.interval.low, found.interval.high) == pytest.approx((low, high))


def test_effect_size_is_hedges() -> None:
    ours, theirs = [2.0, 4.0], [0.0, 2.0, 1.0]
    pooled = math.sqrt((1 * 2.0 + 2 * 1.0) / 3)
    assert stats.difference(ours, theirs).effect_size == pytest.approx(2 / pooled * (1 - 3 / 11))


def test_one_seed_each_has_no_p_value() -> None:
    found = stats.difference([73.9], [73.1], known=0.3)
    assert (found.p_value, found.effect_size) == (None, None)
    assert found.interval.high - found.interval.low == pytest.approx(2 * scipy_stats.norm.ppf(0.95) * 0.3)


@pytest.mark.parametrize(("true_spread", "holds"), [(0.3, (0.0, 0.05)), (0.0, (0.5, 1.0))])
def test_equivalence_of_several_experiments(true_spread: float, holds: tuple[float, float]) -> None:
    """Four experiments of three seeds (sd .1), one of them off by the bound: it passes in 5% of the cases at most."""
    rng = np.random.default_rng(0)
    draws = rng.normal(0.0, 0.1 if true_spread else 0.05, (1000, 4, 3))
    draws[:, 3] += true_spread
    rate = np.mean([stats.widest_possible_difference(each.tolist()) <= 0.3 for each in draws])
    assert holds[0] <= rate <= holds[1]


def test_the_corrected_interval_says_what_the_corrected_test_says() -> None:
    """At the factor that makes p exactly 5%, its end is the margin's edge."""
    values = [73.9, 74.1, 74.3]
    compared = stats.compare_with_printed(values, 73.9, 0.6)
    assert compared.p_value is not None and compared.p_value < 0.05
    interval = stats.corrected_interval(compared.interval, 3, 0.05 / compared.p_value)
    assert interval.high == pytest.approx(74.5)
    assert (interval.low + interval.high) / 2 == pytest.approx(74.1)


@pytest.mark.parametrize(("num_seeds", "spread"), [(3, 0.1), (5, 0.2), (8, 0.36)])
def test_the_probability_of_reproduction_is_that_of_simulated_checks(num_seeds: int, spread: float) -> None:
    """19 cells tested together; 4,000 draws know the probability to 1.6% (two standard errors)."""
    draws = np.random.default_rng(0).normal(0.0, spread, (4000, num_seeds))
    error = draws.std(axis=1, ddof=1) / math.sqrt(num_seeds)
    passed = np.abs(draws.mean(axis=1)) + scipy_stats.t.ppf(1 - 0.05 / 19, num_seeds - 1) * error < 0.8
    assert stats.reproduction_probability(spread, num_seeds, 0.8, 19) == pytest.approx(np.mean(passed), abs=0.02)


def test_the_seeds_that_a_verdict_needs() -> None:
    needed = stats.seeds_for(0.2, 0.6, 4)
    assert needed == 5
    assert (
        stats.reproduction_probability(0.2, 4, 0.6, 4) < stats.POWER <= stats.reproduction_probability(0.2, 5, 0.6, 4)
    )
    assert stats.seeds_for(0.0, 0.6, 4) == 2
    assert stats.seeds_for(50.0, 0.6, 4) is None
    largest = stats.largest_spread(5, 0.8, 19)
    assert stats.seeds_for(largest, 0.8, 19) == 5 and stats.seeds_for(largest * 1.02, 0.8, 19) == 6
