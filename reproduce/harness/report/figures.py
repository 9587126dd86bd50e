"""The paper's figures, redrawn with our numbers on top, and charts of tables."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from reproduce.harness.report.svg import Chart, Series, downsample, draw_chart
from reproduce.harness.spec import tables
from reproduce.harness.verdict import stats


@dataclass(frozen=True)
class Figure:
    """A chart with the labels of its axes. `notes` say what it cannot show."""

    table: str
    title: str
    x: str
    y: str
    chart: Chart | None
    notes: list[str] = field(default_factory=list)


def draw(checked: list[dict[str, Any]], runs: dict[str, dict[str, Any]]) -> Iterator[Figure]:
    """Yield a figure for each table that is a figure in the paper, or has a chart."""
    for table in checked:
        if table["plots"] == "loss":
            yield _losses(table, runs)
        elif table["table"].startswith("figure") and {"hours", "top1"} <= set(table["columns"]):
            yield _top1_against_hours(table, runs)
        elif table["chart"]:
            yield _rows(table)


def _losses(table: dict[str, Any], runs: dict[str, dict[str, Any]]) -> Figure:
    """Draw each row's loss against the share of its training, one line for each seed."""
    series, notes = [], [f"No result yet: {label}." for label in table["undrawn"]]
    for number, row in enumerate(table["rows"]):
        own = [runs[run["run_id"]] for run in table["runs"]]
        for run in (run for run in own if run["result"] and run["result"]["name"] == row["pretrain"]):
            losses = run["curves"].get("loss", [])
            shares = [(100 * step / (losses[-1][0] or 1.0), loss) for step, loss in losses]
            series.append(Series(row["label"], downsample(shares), style=("ours", "other")[number % 2]))
    notes.append("The paper prints this figure as curves without numbers; its claim is judged in the section Claims.")
    title = f"{table['heading']}: {table['title']}"
    drawn = draw_chart(series) if any(each.points for each in series) else None
    return Figure(table["table"], title, "training, %", "loss", drawn, notes)


def _top1_against_hours(table: dict[str, Any], runs: dict[str, dict[str, Any]]) -> Figure:
    """Draw a line for each method of the paper, and our numbers at the hours that our pretrainings took."""
    rows, notes = table["rows"], []
    series: list[Series] = []
    for method in dict.fromkeys(row["method"] for row in rows):
        points = {}
        for row in (row for row in rows if row["method"] == method):
            hours, top1 = (_printed(row["cells"][key]) for key in ("hours", "top1"))
            if hours is not None and top1 is not None:
                points[row["variant"]] = (hours, top1)
            elif hours is not None:
                notes.append(f"{row['label']}, took {hours:g} hours; its top-1 cannot be read from the paper's plot.")
        if points:
            series.append(Series(f"{method}, paper", list(points.values()), "paper", marked=True, labels=list(points)))
    ours = [(row, row["cells"]["top1"]) for row in rows if row["cells"]["top1"]]
    measured = [(row, cell, hours) for row, cell in ours if (hours := _our_hours(row, cell, runs)) is not None]
    if measured:
        our_points = [(hours, cell["mean"]) for _, cell, hours in measured]
        intervals = [tuple(cell["interval"]) if cell["interval"] else None for _, cell, _ in measured]
        series.append(Series("ours", our_points, marked=True, intervals=intervals))
    else:
        notes.append("Our numbers will be drawn at the hours that our pretrainings took; none has a result yet.")
    title = f"{table['heading']}: {table['title']}"
    x = "hours of training (paper: 64 V100 16 GB; ours: wall time)"
    return Figure(table["table"], title, x, "top-1, %", draw_chart(series) if series else None, notes)


def _rows(table: dict[str, Any]) -> Figure:
    """Draw a column: each row's seeds and their mean in a place of its own, and the row to beat as a line."""
    column = table["columns"][table["chart"]]
    cells = {row["label"]: row["cells"][table["chart"]] for row in table["rows"]}
    values_of = {label: list(cell["values"].values()) if cell else [] for label, cell in cells.items()}
    controls = {row["control"] for row in table["rows"]} - {""}
    rows = [row for row in table["rows"] if row["label"] not in controls]
    names, unit = _without_common_word([row["variant"] or row["method"] for row in rows])
    found = [(x, values_of[row["label"]]) for x, row in enumerate(rows)]
    measured = [(x, values) for x, values in found if values]
    means = [(float(x), stats.mean(values)) for x, values in measured]
    reaches = [stats.mean_interval(values) if len(values) > 1 else None for _, values in measured]
    ends = [(reach.low, reach.high) if reach else None for reach in reaches]
    series = [
        Series(
            "a seed", [(x, value) for x, values in measured for value in values], "seeds", marked=True, joined=False
        ),
        Series(
            f"mean, with its {stats.CONFIDENCE:.0%} interval over seeds",
            means,
            marked=True,
            joined=bool(unit),
            intervals=ends,
        ),
    ]
    for label in sorted(controls):
        if values := values_of[label]:
            line = [(x, stats.mean(values)) for x in (-0.4, len(rows) - 0.6)]
            series.append(Series(label.lower(), line, "other"))
    drawn = draw_chart(series, places=names) if measured else None
    missing = [f"No result yet: {rows[x]['label']}." for x, values in found if not values]
    heading = f"{table['heading']}: {table['title']}"
    return Figure(table["table"], heading, unit, f"{column['title']}, {column['unit']}", drawn, missing)


def _without_common_word(names: list[str]) -> tuple[list[str], str]:
    """Split what all names end in from them: "3 iterations" and "1 iteration" are 3 and 1 of "iterations"."""
    words = [name.split(" ") for name in names]
    units = {each[-1].removesuffix("s") for each in words if len(each) == 2}
    if len(units) == 1 and all(len(each) == 2 for each in words):
        return [each[0] for each in words], max((each[-1] for each in words), key=len)
    return names, ""


def _printed(cell: dict[str, Any] | None) -> float | None:
    return tables.parse_printed(cell["printed"]) if cell else None


def _our_hours(row: dict[str, Any], cell: dict[str, Any], runs: dict[str, dict[str, Any]]) -> float | None:
    """Return the mean wall time, in hours, of the pretrainings behind a number; None if there is no number."""
    parents = {parent for run_id in cell["run_ids"] if run_id in runs for parent in runs[run_id]["parents"]}
    seconds = [runs[name]["result"]["wall_seconds"] for name in parents if name in runs and runs[name]["result"]]
    if cell["mean"] is None or not seconds:
        return None
    measured = row["cells"]["hours"] and row["cells"]["hours"]["mean"]
    return measured if measured is not None else sum(seconds) / len(seconds) / 3600
