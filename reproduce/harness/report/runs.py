"""What each run left behind, as the page shows it: result or failure, curves, config, provenance, end of the log."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from reproduce.engine.runs import detection_examples
from reproduce.harness import results
from reproduce.harness.report.drawing import Chart, Series, averaged, chart

FILES = ("config.yaml", "log.txt", "metrics.jsonl", "result.json")
LOG_BYTES = 6000
CONFIG_BYTES = 20_000
"""A page of a hundred runs should still open at once: of longer files it shows the end (log) or the start (config)."""


def collect(checked: list[dict[str, Any]], claims: list[dict[str, Any]], scale: str, page: Path) -> dict[str, Any]:
    """Every run behind the tables and claims, by run_id; links are relative to the folder `page`."""
    planned = {run["run_id"]: run for table in checked for run in table["runs"]}
    for run_id in (name for claim in claims for finding in claim["findings"] for name in finding["run_ids"]):
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
        "charts": dict(_charts(curves)),
        "detections": [_without_guesses(picture) for picture in detection_examples.read_examples(at)],
        "config": _text(at / "config.yaml", CONFIG_BYTES),
        "log": _text(at / "log.txt", -LOG_BYTES),
        "provenance": dict(_flat((result or {}).get("provenance", {}))),
    }


def _charts(curves: dict[str, list[tuple[float, float]]]) -> Iterator[tuple[str, Chart]]:
    for name, points in curves.items():
        yield name.replace("_", " "), chart([Series(name, averaged(points))], width=300, height=130)


def _text(path: Path, num_bytes: int) -> str:
    """The first `num_bytes` bytes of a file, or where negative its last ones, in whole lines; "" without a file."""
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
    """Provenance in lines: nested values joined, unknown ones left out."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield key, ", ".join(f"{name} {version}" for name, version in value.items())
        elif value is not None:
            yield key, str(value)


def _without_guesses(picture: dict[str, Any]) -> dict[str, Any]:
    """A picture with the boxes at least half as sure as its surest: all that a detector gives hide the picture."""
    surest = max((box["score"] for box in picture["predicted"]), default=0)
    return picture | {"predicted": [box for box in picture["predicted"] if box["score"] >= surest / 2]}
