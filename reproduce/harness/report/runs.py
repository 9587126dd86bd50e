"""What the page shows of each run: result or failure, curves, config, provenance, end of the log."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reproduce.engine.runs import detection_examples
from reproduce.engine.runs.picture_files import THRESHOLDS_FILE
from reproduce.errors import UserError
from reproduce.files import read_json
from reproduce.harness import results
from reproduce.harness.report.svg import Band, Chart, Series, downsample, draw_chart, smooth

EXACT = ("lr", "peak_memory_gb", "loss_scale")
"""Metrics without noise, which are not smoothed."""
FILES = ("config.yaml", "log.txt", "metrics.jsonl", "result.json")
LOG_BYTES = 6000
CONFIG_BYTES = 20_000
"""Longer files are cut to their end (log) or start (config), so that a page of a hundred runs still opens at once."""


@dataclass(frozen=True)
class Curve:
    """The chart of a metric, its last value, and where it would mean a collapse."""

    chart: Chart
    last: float
    band: Band | None

    @property
    def danger(self) -> str:
        """Where the collapse detector stops the run, in words; "" if it does not watch this metric."""
        if self.band is None:
            return ""
        low, high = (None if edge is None else f"{edge:.4g}" for edge in (self.band.low, self.band.high))
        where = f"{low} to {high}" if low and high else f"above {low}" if low else f"below {high}"
        return f"{where}: {self.band.words}"


def collect(checked: list[dict[str, Any]], claims: list[dict[str, Any]], scale: str, page: Path) -> dict[str, Any]:
    """Return every run behind the tables and claims by run_id; links are relative to the folder `page`."""
    planned = {run["run_id"]: run for table in checked for run in table["runs"]}
    for run_id in (name for claim in claims for part in claim["parts"] for name in part["run_ids"]):
        folder = f"results/{scale}/{run_id}"
        if run_id not in planned and Path(folder, "result.json").exists():
            planned[run_id] = {"run_id": run_id, "label": run_id, "folder": folder, "parents": [], "kind": "evaluate"}
    return {run_id: _read(run, page) for run_id, run in planned.items()}


def _read(run: dict[str, Any], page: Path) -> dict[str, Any]:
    at = Path(run["folder"])
    result = results.load(at / "result.json", run["run_id"]) if (at / "result.json").exists() else None
    failure = results.load_failure(at / "failure.json") if result is None else None
    curves = results.curves(at / "metrics.jsonl") if run["kind"] == "pretrain" else {}
    return run | {
        "result": result,
        "failure": failure,
        "links": {name: os.path.relpath(at / name, page) for name in FILES if (at / name).exists()},
        "curves": curves,
        "charts": dict(_charts(curves, _bands(at))),
        "detections": [_most_confident(image) for image in detection_examples.read_examples(at)],
        "config": _text(at / "config.yaml", CONFIG_BYTES),
        "log": _text(at / "log.txt", -LOG_BYTES),
        "provenance": dict(_flat((result or {}).get("provenance", {}))),
    }


def _charts(curves: dict[str, list[tuple[float, float]]], bands: Mapping[str, Band]) -> Iterator[tuple[str, Curve]]:
    """Yield a chart of each metric by its name: the logged values and their running mean, or only the former."""
    for name, points in curves.items():
        raw, mean = downsample(points), downsample(smooth(points))
        noisy = name not in EXACT and mean != raw
        series = [Series("logged", raw, "raw"), Series("mean", mean)] if noisy else [Series("logged", raw)]
        band = bands.get(name)
        yield name.replace("_", " "), Curve(draw_chart(series, width=300, height=130, band=band), points[-1][1], band)


def _bands(folder: Path) -> dict[str, Band]:
    """Return where the collapse detector of a pretraining stops it, by metric; {} if the run did not record it."""
    try:
        found = read_json(folder / THRESHOLDS_FILE)
        first = float(found["first_step"])
        return {
            name: Band(each["low"], each["high"], first, str(each["words"])) for name, each in found["ranges"].items()
        }
    except (UserError, OSError, KeyError, TypeError, ValueError, AttributeError):
        return {}


def _text(path: Path, num_bytes: int) -> str:
    """Return the first `num_bytes` bytes of a file, or the last ones if negative, in whole lines; "" without a file."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size + num_bytes) if num_bytes < 0 else 0)
            text = file.read(abs(num_bytes)).decode(errors="replace")
    except OSError:
        return ""
    if size <= abs(num_bytes):
        return text
    return "…\n" + text.partition("\n")[2] if num_bytes < 0 else text.rpartition("\n")[0] + "\n…"


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield provenance as name and text; join nested values and leave out unknown ones."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield key, ", ".join(f"{name} {version}" for name, version in value.items())
        elif value is not None:
            yield key, str(value)


def _most_confident(image: dict[str, Any]) -> dict[str, Any]:
    """Keep the boxes with at least half of the highest score: all of a detector's boxes would hide the image."""
    highest = max((box["score"] for box in image["predicted"]), default=0)
    return image | {"predicted": [box for box in image["predicted"] if box["score"] >= highest / 2]}
