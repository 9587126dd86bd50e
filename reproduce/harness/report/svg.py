"""The layout of the page's charts in SVG user units; the templates only write the elements."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

Point = tuple[float, float]

REACH = 2.0
"""How many margins a strip shows on either side of the expected number; what lies beyond is drawn at its edge."""
NEAR = 0.05
"""A band is drawn if the series then take at least this share of the y axis."""
MIN_BAND_HEIGHT = 2.0
MARGIN_LEFT, MARGIN_BOTTOM, MARGIN_TOP, MARGIN_RIGHT = 42.0, 24.0, 8.0, 10.0


@dataclass(frozen=True)
class Series:
    """One line or scatter of a chart, in data units."""

    name: str
    points: Sequence[Point]
    style: str = "ours"
    """CSS class, which gives colour and shape."""
    marked: bool = False
    """Whether each point has a mark, in addition to the line through all points."""
    joined: bool = True
    """Whether a line goes through all points."""
    labels: Sequence[str] = ()
    """Labels of the points; "" for none."""
    intervals: Sequence[tuple[float, float] | None] = ()
    """Vertical intervals `(low, high)`, one for each point."""


@dataclass(frozen=True)
class Band:
    """A range of y, from `first_x` on, that a series should keep out of; None is open."""

    low: float | None
    high: float | None
    first_x: float
    words: str
    """What it means to be in it."""


@dataclass(frozen=True)
class DrawnSeries:
    """A series in SVG units: `line` is the `points` of a polyline, a mark is `(x, y, label, top, bottom)`."""

    name: str
    style: str
    line: str
    marks: list[tuple[float, float, str, float, float]]


@dataclass(frozen=True)
class Chart:
    """Series in a box of `width` x `height`, with ticks `(position, label)` at round numbers."""

    width: float
    height: float
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    series: list[DrawnSeries]
    band: tuple[float, float, float, float] | None = None
    """x, y, width and height of a band's part on the chart; None if there is no band, or it is far away."""
    left: float = MARGIN_LEFT
    top: float = MARGIN_TOP

    @property
    def right(self) -> float:
        """Return the right end of the x axis."""
        return self.width - MARGIN_RIGHT

    @property
    def bottom(self) -> float:
        """Return the y position of the x axis."""
        return self.height - MARGIN_BOTTOM


@dataclass(frozen=True)
class IntervalStrip:
    """One comparison on a horizontal line `width` long; every field is a position on it."""

    width: float
    centre: float
    """The expected number; for a claim, zero."""
    ours: float
    band: tuple[float, float] | None = None
    """What counts as the same."""
    interval: tuple[float, float] | None = None
    printed: float | None = None
    seeds: list[float] = field(default_factory=list)


def draw_chart(
    series: Sequence[Series],
    width: float = 400,
    height: float = 250,
    band: Band | None = None,
    places: Sequence[str] = (),
) -> Chart:
    """Lay out series in one box whose axes cover them all, and the edges of `band` unless these are far away.

    `places` are names of x = 0, 1, 2..., which the x axis then has in place of round numbers. At least one series needs
    a point.
    """
    xs = [x for each in series for x, _ in each.points]
    ys = [y for each in series for _, y in each.points]
    ys += [end for each in series for interval in each.intervals if interval for end in interval]
    edges = [edge for edge in (band.low, band.high) if edge is not None] if band else []
    near = bool(edges) and max(ys) - min(ys) >= NEAR * (max(*ys, *edges) - min(*ys, *edges))
    ys += edges if near else []
    x_low, x_high = _padded(min(xs), max(xs), 0.03)
    y_low, y_high = _padded(min(ys), max(ys), 0.05)

    def to_x(x: float) -> float:
        return round(MARGIN_LEFT + (x - x_low) / (x_high - x_low) * (width - MARGIN_LEFT - MARGIN_RIGHT), 1)

    def to_y(y: float) -> float:
        return round(MARGIN_TOP + (y_high - y) / (y_high - y_low) * (height - MARGIN_TOP - MARGIN_BOTTOM), 1)

    drawn_band = None
    if band and near:
        left, right = max(MARGIN_LEFT, to_x(band.first_x)), width - MARGIN_RIGHT
        top = MARGIN_TOP if band.high is None else to_y(band.high)
        bottom = height - MARGIN_BOTTOM if band.low is None else to_y(band.low)
        thickness = max(MIN_BAND_HEIGHT, bottom - top)
        drawn_band = (left, round((top + bottom - thickness) / 2, 1), round(right - left, 1), round(thickness, 1))
    drawn = []
    for each in series:
        at = [(to_x(x), to_y(y)) for x, y in each.points]
        labels = [*each.labels, *[""] * (len(at) - len(each.labels))]
        intervals = [*each.intervals, *[None] * (len(at) - len(each.intervals))]
        marks = [
            (x, y, label, *((to_y(interval[1]), to_y(interval[0])) if interval else (y, y)))
            for (x, y), label, interval in zip(at, labels, intervals, strict=True)
        ]
        line = " ".join(f"{x},{y}" for x, y in at) if each.joined else ""
        drawn.append(DrawnSeries(each.name, each.style, line, marks if each.marked else []))
    return Chart(
        width,
        height,
        [(to_x(x), name) for x, name in enumerate(places)]
        if places
        else [(to_x(tick), f"{tick:.12g}") for tick in ticks(x_low, x_high)],
        [(to_y(tick), f"{tick:.12g}") for tick in ticks(y_low, y_high)],
        drawn,
        drawn_band if drawn_band and drawn_band[2] > 0 else None,
    )


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
    """Return a range extended by a share of itself at both ends; equal values get room too."""
    edge = (high - low) * share if high > low else abs(low) / 10 or 1.0
    return low - edge, high + edge


def ticks(low: float, high: float, at_most: int = 5) -> list[float]:
    """Return one to `at_most` round numbers in a range, spaced by 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10((high - low) / at_most))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if (high - low) / step <= at_most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def downsample(points: Sequence[Point], num_points: int = 160) -> list[Point]:
    """Return at most `num_points` points, each the mean of equally many neighbours, to keep the page small."""
    size = math.ceil(len(points) / num_points) or 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def smooth(points: Sequence[Point], share: float = 0.02) -> list[Point]:
    """Return the points with each y the mean over `share` of all points on either side of it, as far as there are any.

    The window is symmetric, so that a trend is not delayed.
    """
    sums = [0.0, *itertools.accumulate(y for _, y in points)]
    reach = round(share * len(points))
    found = []
    for number, (x, _) in enumerate(points):
        start, end = max(0, number - reach), min(len(points), number + reach + 1)
        found.append((x, (sums[end] - sums[start]) / (end - start)))
    return found


def reach_in_points(cells: Iterable[dict[str, Any]]) -> float:
    """Return how far the strips of cells compared with recorded numbers have to reach to show all of them; 0 for none.

    A strip covers so many points on either side of the recorded number, so strips with one reach can be compared.
    """
    compared = [
        cell for cell in cells if cell["difference"] is not None and cell["interval"] and cell["margin"] is None
    ]
    shown = [value - cell["expected"] for cell in compared for value in (*cell["interval"], *cell["values"].values())]
    return math.ceil(max(map(abs, shown), default=0.0))


def cell_strip(cell: dict[str, Any], reach: float, width: float = 150) -> IntervalStrip | None:
    """Return a cell's difference and its seeds on a line; None if there is nothing to compare with.

    The line reaches `REACH` margins to either side or, for recorded numbers, `reach` points. There the interval where
    unchanged code falls takes the margin's place.
    """
    if cell["difference"] is None or cell["expected"] is None:
        return None
    interval, margin = cell["interval"], cell["margin"]
    unit = margin["points"] if margin else reach / REACH
    unit = unit or abs(cell["difference"]) or 1.0

    def position(difference: float) -> float:
        return _position(difference / unit, REACH, width)

    ends = (position(interval[0] - cell["expected"]), position(interval[1] - cell["expected"])) if interval else None
    several = list(cell["values"].values()) if len(cell["values"]) > 1 else []
    # If the difference has another unit than the values (shares of a row), seeds cannot be placed.
    off = cell["mean"] - cell["expected"] - cell["difference"]
    seeds = [position(value - cell["expected"]) for value in several] if abs(off) < 1e-6 else []
    ours = position(cell["difference"])
    if margin:
        return IntervalStrip(
            width, position(0), ours, band=(position(-unit), position(unit)), interval=ends, seeds=seeds
        )
    return IntervalStrip(width, position(0), ours, band=ends, seeds=seeds)


def claim_strip(part: dict[str, Any], width: float = 180) -> IntervalStrip | None:
    """Return the difference of a claim's part on a line around zero; None if none was measured."""
    if part["difference"] is None:
        return None
    ends = part["interval"]
    finite = [end for end in ends or () if math.isfinite(end)]
    shown = [part["difference"], part["printed"] or 0.0, *finite]
    reach = max(map(abs, shown)) * 1.05 or 1.0
    printed = None if part["printed"] is None else _position(part["printed"], reach, width)
    interval = (_position(ends[0], reach, width), _position(ends[1], reach, width)) if ends else None
    ours = _position(part["difference"], reach, width)
    return IntervalStrip(width, _position(0, reach, width), ours, interval=interval, printed=printed)


def _position(value: float, reach: float, width: float) -> float:
    """Return the position of a value between -reach and reach; what lies beyond is put at the edge."""
    edge = 6.0
    share = (max(-reach, min(reach, value)) + reach) / (2 * reach)
    return round(edge + share * (width - 2 * edge), 1)
