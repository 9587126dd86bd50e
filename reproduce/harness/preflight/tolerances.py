"""Tolerances of first steps, measured: how far the same steps differ under other arithmetic on one machine.

A tolerance is `MULTIPLE` times the largest of three: the spread of this quantity so far, the spread that most
quantities of its kind have at this step (a few settings can agree by chance), and the precision's resolution.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from reproduce.harness.spec.golden import Values, kind_of
from reproduce.rehearsal import LEARNING_RATE, MEAN_LEARNING_RATE, NUM_STEPS, PROTOTYPES_FROZEN, QUEUE_STARTS

MULTIPLE = 30.0
POOLED_PERCENTILES = {"fp64": 75, "fp32": 90, "bf16": 90, "fp16": 90}
"""The share of a kind's quantities whose spread is no larger than what counts as usual. In fp64, only the quantities of
a few recipes become chaotic, and they have tolerances of their own. In fp32 and less, which ReLUs switch is a matter of
chance: a few settings do not show how far a gradient can jump."""
RESOLUTIONS = {"fp64": 2.0**-52, "fp32": 2.0**-23, "bf16": 2.0**-8, "fp16": 2.0**-11}
STORED_DIGITS = 8
USELESS = 0.3
"""A tolerance that is a larger share of the number says nothing: the number is not compared."""


Series = dict[str, list[float]]
Tolerances = dict[str, list[float | None]]


def measured(
    observed: Mapping[str, Sequence[Values]], precisions: Mapping[str, str]
) -> dict[str, tuple[Series, Tolerances]]:
    """Return the median numbers of each rehearsal and their tolerances, given its numbers under each setting."""
    medians = {name: {key: _median(runs, key) for key in runs[0]} for name, runs in observed.items()}
    spreads: dict[tuple[str, str], np.ndarray] = {}
    pool: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    for name, runs in observed.items():
        for key, median in medians[name].items():
            largest = np.max([np.abs(np.array(run[key]) - median) for run in runs], axis=0)
            spreads[name, key] = np.maximum.accumulate(largest)
            scale = _scale(medians[name], key, precisions[name])
            for step, (spread, unit) in enumerate(zip(spreads[name, key], scale, strict=True)):
                pool[precisions[name], kind_of(key), step].append(spread / unit if unit else 0.0)
    usual = {at: float(np.percentile(shares, POOLED_PERCENTILES[at[0]])) for at, shares in pool.items()}
    found = {}
    for name, values in medians.items():
        tolerances: Tolerances = {
            key: [
                _tolerance(
                    spread,
                    max(usual[precisions[name], kind_of(key), step], _resolution(key, precisions[name])),
                    unit,
                    is_exact=_is_exact(key),
                )
                for step, (spread, unit) in enumerate(
                    zip(spreads[name, key], _scale(values, key, precisions[name]), strict=True)
                )
            ]
            for key in values
        }
        found[name] = ({key: [_rounded(each) for each in series] for key, series in values.items()}, tolerances)
    return found


def _tolerance(spread: float, usual: float, unit: float, *, is_exact: bool) -> float | None:
    stored = 10.0 ** (1 - STORED_DIGITS) * unit
    if is_exact:
        return float(f"{max(MULTIPLE * spread, stored):.2g}")
    tolerance = max(MULTIPLE * max(spread, usual * unit), stored)
    return None if not math.isfinite(tolerance) or tolerance > USELESS * unit else float(f"{tolerance:.2g}")


def _is_exact(quantity: str) -> bool:
    """Return whether a quantity is counted, or computed in double precision, so that rounding can't change it."""
    counted = ("indices", "labels and boxes", NUM_STEPS, PROTOTYPES_FROZEN, QUEUE_STARTS)
    return quantity.startswith((*counted, LEARNING_RATE, MEAN_LEARNING_RATE))


def _resolution(quantity: str, precision: str) -> float:
    """Return the relative resolution of a quantity: inputs and initial weights are fp32 where products are bf16."""
    is_input = quantity.startswith(("initial", "pixels", "squared pixels", "projection of view"))
    return RESOLUTIONS["fp32" if is_input and precision in ("bf16", "fp16") else precision]


def _median(runs: Sequence[Values], key: str) -> list[float]:
    return [float(value) for value in np.median([run[key] for run in runs], axis=0)]


def _scale(values: Values, key: str, precision: str) -> list[float]:
    """Return what a spread is compared with, per step: the number.

    A projection or a movement may be near zero by chance; it is compared with the largest of its series, and a movement
    with the resolution of what moves, if that is more. An error of unit lengths is compared with 1.
    """
    series = [abs(value) for value in values[key]]
    if key.startswith("movement of"):
        norms = values[key.replace("movement of", "norm of")]
        return [max(*series, RESOLUTIONS[precision] * norm) for norm in norms]
    if key == "unit_length_error":
        return [1.0] * len(series)
    return [max(series)] * len(series) if "projection" in key else series


def _rounded(value: float) -> float:
    return float(f"{value:.{STORED_DIGITS}g}")
