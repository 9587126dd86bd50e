"""Where the marks of the page's charts go, in SVG user units; the templates only place them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Point = tuple[float, float]

REACH = 2.0
"""How many margins a strip shows to either side of what is expected; what lies beyond sits at its edge."""
MARGIN_LEFT, MARGIN_BOTTOM, MARGIN_TOP, MARGIN_RIGHT = 42.0, 24.0, 8.0, 10.0


@dataclass(frozen=True)
class Series:
    """One line or cloud of a chart."""

    name: str
    points: Sequence[Point]
    style: str = "ours"
    """Its CSS class, which gives colour and shape."""
    marked: bool = False
    """Whether each point has a mark, beside the line through all."""
    labels: Sequence[str] = ()
    """Words for the points; "" for none."""
    reaches: Sequence[tuple[float, float] | None] = ()
    """Vertical intervals, one for each point."""


@dataclass(frozen=True)
class Drawn:
    """A series in place: `line` is the `points` of a polyline, a mark is `(x, y, words, top, bottom)`."""

    name: str
    style: str
    line: str
    marks: list[tuple[float, float, str, float, float]]


@dataclass(frozen=True)
class Chart:
    """Series in a box of `width` x `height`, with round ticks `(position, label)`."""

    width: float
    height: float
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    series: list[Drawn]
    left: float = MARGIN_LEFT
    top: float = MARGIN_TOP

    @property
    def right(self) -> float:
        """The right end of the x axis."""
        return self.width - MARGIN_RIGHT

    @property
    def bottom(self) -> float:
        """Where the x axis lies."""
        return self.height - MARGIN_BOTTOM


@dataclass(frozen=True)
class Strip:
    """One comparison on a horizontal line `width` long: every field is a position on it."""

    width: float
    centre: float
    """What is expected; of a claim, zero."""
    ours: float
    band: tuple[float, float] | None = None
    """What counts as the same."""
    interval: tuple[float, float] | None = None
    printed: float | None = None
    seeds: list[float] = field(default_factory=list)


def chart(series: Sequence[Series], width: float = 400, height: float = 250) -> Chart:
    """Put the series into one box whose axes hold them all. There must be a point."""
    xs = [x for each in series for x, _ in each.points]
    ys = [y for each in series for _, y in each.points]
    ys += [end for each in series for reach in each.reaches if reach for end in reach]
    x_low, x_high = _room(min(xs), max(xs), 0.03)
    y_low, y_high = _room(min(ys), max(ys), 0.05)

    def across(x: float) -> float:
        return round(MARGIN_LEFT + (x - x_low) / (x_high - x_low) * (width - MARGIN_LEFT - MARGIN_RIGHT), 1)

    def up(y: float) -> float:
        return round(MARGIN_TOP + (y_high - y) / (y_high - y_low) * (height - MARGIN_TOP - MARGIN_BOTTOM), 1)

    drawn = []
    for each in series:
        places = [(across(x), up(y)) for x, y in each.points]
        words = [*each.labels, *[""] * (len(places) - len(each.labels))]
        reaches = [*each.reaches, *[None] * (len(places) - len(each.reaches))]
        marks = [
            (x, y, label, *((up(reach[1]), up(reach[0])) if reach else (y, y)))
            for (x, y), label, reach in zip(places, words, reaches, strict=True)
        ]
        line = " ".join(f"{x},{y}" for x, y in places)
        drawn.append(Drawn(each.name, each.style, line, marks if each.marked else []))
    return Chart(
        width,
        height,
        [(across(tick), f"{tick:.12g}") for tick in ticks(x_low, x_high)],
        [(up(tick), f"{tick:.12g}") for tick in ticks(y_low, y_high)],
        drawn,
    )


def _room(low: float, high: float, share: float) -> tuple[float, float]:
    """A range that holds the values, and a share of it more at both ends; equal values get room too."""
    edge = (high - low) * share if high > low else abs(low) / 10 or 1.0
    return low - edge, high + edge


def ticks(low: float, high: float, at_most: int = 5) -> list[float]:
    """Round numbers in a range: one to `at_most` of them, a step of 1, 2 or 5 times a power of ten apart."""
    power = 10.0 ** math.floor(math.log10((high - low) / at_most))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if (high - low) / step <= at_most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def averaged(points: Sequence[Point], num_points: int = 160) -> list[Point]:
    """At most `num_points` points, each the mean of as many neighbours: the page stays small, scatter gets less."""
    size = math.ceil(len(points) / num_points) or 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def strip(cell: dict[str, Any], width: float = 150) -> Strip | None:
    """A cell's difference in margins, and its seeds; None where there is nothing to hold it against.

    Held to recorded numbers, the interval in which new seeds fall takes the margin's place.
    """
    if cell["difference"] is None or cell["expected"] is None:
        return None
    interval, margin = cell["interval"], cell["margin"]
    one = margin["points"] if margin else (interval[1] - interval[0]) / 2 if interval else 0.0
    one = one or abs(cell["difference"]) or 1.0

    def place(difference: float) -> float:
        return _place(difference / one, REACH, width)

    ends = (place(interval[0] - cell["expected"]), place(interval[1] - cell["expected"])) if interval else None
    several = list(cell["values"].values()) if len(cell["values"]) > 1 else []
    # Differences of other units than the values (shares of a row) leave no place for single seeds.
    off = cell["mean"] - cell["expected"] - cell["difference"]
    seeds = [place(value - cell["expected"]) for value in several] if abs(off) < 1e-6 else []
    ours = place(cell["difference"])
    if margin:
        return Strip(width, place(0), ours, band=(place(-one), place(one)), interval=ends, seeds=seeds)
    return Strip(width, place(0), ours, band=ends, seeds=seeds)


def claim_strip(finding: dict[str, Any], width: float = 180) -> Strip | None:
    """The difference that a claim is about, on a line around zero; None where none was measured."""
    if finding["difference"] is None:
        return None
    ends = finding["interval"]
    finite = [end for end in ends or () if math.isfinite(end)]
    shown = [finding["difference"], finding["printed"] or 0.0, *finite]
    reach = max(map(abs, shown)) * 1.05 or 1.0
    printed = None if finding["printed"] is None else _place(finding["printed"], reach, width)
    interval = (_place(ends[0], reach, width), _place(ends[1], reach, width)) if ends else None
    ours = _place(finding["difference"], reach, width)
    return Strip(width, _place(0, reach, width), ours, interval=interval, printed=printed)


def _place(value: float, reach: float, width: float) -> float:
    """Position of a value from -reach to reach; what lies beyond sits at the edge."""
    edge = 6.0
    share = (max(-reach, min(reach, value)) + reach) / (2 * reach)
    return round(edge + share * (width - 2 * edge), 1)
