"""The last benchmarks of this checkout (`make bench`)."""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(".benchmarks")
RATIOS = {
    "times_as_fast": "times as fast as a plain implementation",
    "share_of_matrix_product_peak": "of the speed of a plain matrix product",
    "share_if_products_were_all": "of it if everything except products and convolutions took no time",
    "share_of_matrix_product_speed": "of the speed of a plain matrix product",
}


def latest() -> dict[str, Any] | None:
    """Return date, commit, CPU and a line for each benchmark: its name, median in seconds, and ratios in words.

    Return None if no readable benchmarks were saved.
    """
    for path in sorted(FOLDER.glob("*/*.json"), key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            saved = json.loads(path.read_text())
            lines = [_line(benchmark) for benchmark in saved["benchmarks"]]
            commit = saved["commit_info"]
            return {
                "date": saved["datetime"][:10],
                "commit": str(commit.get("id") or "")[:12],
                "dirty": bool(commit.get("dirty")),
                "cpu": saved["machine_info"].get("cpu", {}).get("brand_raw", ""),
                "lines": lines,
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # damaged, or another tool's
    return None


def _line(benchmark: dict[str, Any]) -> dict[str, Any]:
    extra = benchmark["extra_info"]
    ratios = [_ratio_in_words(extra[key], key) for key in RATIOS if key in extra]
    seconds = float(extra.get("ours_seconds", benchmark["stats"]["median"]))
    return {"name": benchmark["name"].removeprefix("test_").replace("_", " "), "seconds": seconds, "ratios": ratios}


def _ratio_in_words(value: float, key: str) -> str:
    number = f"{value:.2f}" if key == "times_as_fast" else f"{value:.0%}"
    return f"{number} {RATIOS[key]}"
