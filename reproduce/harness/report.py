"""One page for a person: each table as the paper prints it, ours beside it, and every run behind it."""

import os
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reproduce.errors import UserError
from reproduce.files import read_json, write_atomic
from reproduce.harness import baseline, results, tables
from reproduce.harness.check import DIFFERENT, SAME, SYMBOLS
from reproduce.harness.plan import REPORTS
from reproduce.harness.statistics import Verdict
from reproduce.harness.workflow.progress import duration

TEMPLATE = "report.html.j2"
RUN_FILES = ("config.yaml", "log.txt", "metrics.jsonl", "result.json")

MEANINGS = {
    Verdict.REPRODUCED: "several seeds; the 90% interval of their mean lies inside the margin",
    Verdict.WITHIN: "inside the margin (one seed), or where new seeds of unchanged code fall",
    Verdict.BETTER: "above that",
    Verdict.WORSE: "below that",
    Verdict.INCONCLUSIVE: "the interval straddles an edge of the margin",
    Verdict.NO_BASELINE: "measured, with nothing to compare with",
    Verdict.NOT_RUN: "no run of ours has made this number",
    Verdict.FAILED: "a run behind it failed or collapsed",
    Verdict.UNAVAILABLE: "data or weights that nobody can get",
    Verdict.REPORTED: "another paper's number",
    Verdict.EXPECTED_FAILURE: "the training collapsed, as the paper says that it does",
}

TONES = {
    **dict.fromkeys(SAME, "good"),
    Verdict.BETTER: "better",
    Verdict.WORSE: "bad",
    Verdict.INCONCLUSIVE: "unsure",
    Verdict.FAILED: "bad",
}
"""Colour of a verdict; all others are quiet."""


def write(scale: str) -> Path:
    """Write `reports/<scale>/index.html` from all tables of the scale that were checked; return its path."""
    folder = REPORTS / scale
    found = [path for name in tables.names(scale) if (path := folder / f"{name}.json").exists()]
    if not found and not (folder / "claims.json").exists():
        raise UserError(f"nothing at scale {scale} was checked yet: run the check first, e.g. make check-table3")
    page = render(scale, [read_json(path) for path in found], folder)
    write_atomic(folder / "index.html", page)
    return folder / "index.html"


def render(scale: str, checked: list[dict[str, Any]], folder: Path) -> str:
    """The page, with links relative to `folder`."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"duration": duration, "slug": _slug, "signed": _signed}
    runs = _runs(checked, folder)
    score = sum((Counter(table["score"]) for table in checked), Counter[str]())
    ordered = {str(verdict): score[verdict] for verdict in Verdict if score[verdict]}
    return environment.get_template(TEMPLATE).render(
        scale=scale,
        tables=checked,
        runs=runs,
        score=ordered,
        disagreeing=sum(score[verdict] for verdict in DIFFERENT),
        failing=score[Verdict.FAILED],
        meanings={str(verdict): MEANINGS[verdict] for verdict in Verdict},
        symbols={str(verdict): symbol for verdict, symbol in SYMBOLS.items()},
        tones={str(verdict): TONES.get(verdict, "quiet") for verdict in Verdict},
        scale_bar=scale_bar,
        curve=curve,
        notes=_notes(checked, runs),
        recorded=next((table["recorded"] for table in checked if table["recorded"]), None),
        written=datetime.now(UTC),
        commit=baseline.git("rev-parse", "--short=12", "HEAD"),
        dirty=bool(baseline.git("status", "--porcelain")),
        machine=f"{baseline.cpu()}, {os.cpu_count()} cores",
    )


def _runs(checked: list[dict[str, Any]], folder: Path) -> dict[str, dict[str, Any]]:
    """Every run behind the tables: its result or failure, its curve, the files that it left."""
    runs: dict[str, dict[str, Any]] = {}
    for planned in (run for table in checked for run in table["runs"]):
        at = Path(planned["folder"])
        result = read_json(at / "result.json") if (at / "result.json").exists() else None
        failure = read_json(at / "failure.json") if result is None and (at / "failure.json").exists() else None
        runs[planned["run_id"]] = planned | {
            "result": result,
            "failure": failure,
            "links": {name: os.path.relpath(at / name, folder) for name in RUN_FILES if (at / name).exists()},
            "losses": thinned(results.losses(at / "metrics.jsonl")) if planned["kind"] == "pretrain" else [],
        }
    return runs


def _notes(checked: list[dict[str, Any]], runs: dict[str, dict[str, Any]]) -> list[str]:
    """What a reader should know before believing the page."""
    done = [run["result"] for run in runs.values() if run["result"]]
    notes = []
    skipped = sum(int(result.get("counts", {}).get("num_skipped_images", 0)) for result in done)
    if skipped:
        notes.append(f"{skipped} pictures could not be read and were skipped, as asked; each run's row says how many.")
    commits = Counter(str(result.get("provenance", {}).get("git_commit"))[:12] for result in done)
    here = baseline.git("rev-parse", "--short=12", "HEAD")
    others = {commit: count for commit, count in commits.items() if commit != here}
    if here and others:
        count = sum(others.values())
        theirs = ", ".join(sorted(others))
        notes.append(
            f"{count} of {len(done)} results were made by other code ({theirs}) than the checkout's"
            f" ({here}). Delete their folders in results to make them again."
        )
    dirty = sum(bool(result.get("provenance", {}).get("git_dirty")) for result in done)
    if dirty:
        notes.append(f"{dirty} of {len(done)} results were made by code with changes that are in no commit.")
    if len({tuple(table["seeds"]) for table in checked}) > 1:
        notes.append("The tables were checked with different seeds.")
    return notes


def thinned(points: Sequence[tuple[float, float]], num_points: int = 240) -> list[tuple[float, float]]:
    """About `num_points` of the points, the last among them."""
    stride = max(1, len(points) // num_points)
    return [*points[::stride], *([points[-1]] if points and (len(points) - 1) % stride else [])]


def curve(points: Sequence[tuple[float, float]], width: int = 320, height: int = 90) -> dict[str, Any]:
    """A line through the points, as the `points` of an SVG polyline in a box of `width` x `height`, and the ranges."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = min(ys), max(ys)
    x_span, y_span = (max(xs) - min(xs)) or 1.0, (high - low) or 1.0
    line = " ".join(f"{(x - min(xs)) / x_span * width:.1f},{(high - y) / y_span * height:.1f}" for x, y in points)
    return {
        "line": line,
        "low": low,
        "high": high,
        "last": ys[-1],
        "steps": int(max(xs)),
        "width": width,
        "height": height,
    }


def scale_bar(cell: dict[str, Any]) -> dict[str, float] | None:
    """A cell's comparison on a line from 0 to 100: the band that counts as the same, our value, our interval."""
    if cell["mean"] is None or cell["expected"] is None:
        return None
    interval = cell["interval"] or [cell["mean"], cell["mean"]]
    band = interval
    if cell["margin"]:
        points = cell["margin"]["points"]
        band = [cell["expected"] - points, cell["expected"] + points]
    low, high = min(band[0], interval[0], cell["mean"]), max(band[1], interval[1], cell["mean"])
    edge = (high - low) * 0.08 or 1.0

    def place(value: float) -> float:
        return round(float(100 * (value - low + edge) / (high - low + 2 * edge)), 2)

    return {
        "band_low": place(band[0]),
        "band_high": place(band[1]),
        "low": place(interval[0]) if cell["margin"] else place(cell["mean"]),
        "high": place(interval[1]) if cell["margin"] else place(cell["mean"]),
        "ours": place(cell["mean"]),
        "expected": place(cell["expected"]),
    }


def _signed(value: float, decimals: int) -> str:
    return f"{value:+.{decimals}f}"


def _slug(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text.lower()).strip("-")
