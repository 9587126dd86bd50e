"""The last benchmarks of this checkout (`make bench`), where there are any."""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(".benchmarks")
RATIOS = {
    "times_as_fast": "times as fast as the plain way",
    "share_of_matrix_product_peak": "of the speed of a plain matrix product",
    "share_if_products_were_all": "of it if all but products and convolutions took no time",
    "share_of_matrix_product_speed": "of the speed of a plain matrix product",
}


def latest() -> dict[str, Any] | None:
    """When, of which commit, and a line for each benchmark: its name, its median in seconds, and its ratios in words.

    None where nothing was saved that can be read.
    """
    for path in sorted(FOLDER.glob("*/*.json"), key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            saved = json.loads(path.read_text())
            lines = [_line(one) for one in saved["benchmarks"]]
            commit = saved["commit_info"]
            return {
                "date": saved["datetime"][:10],
                "commit": str(commit.get("id") or "")[:12],
                "dirty": bool(commit.get("dirty")),
                "processor": saved["machine_info"].get("cpu", {}).get("brand_raw", ""),
                "lines": lines,
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # cut short, or another tool's
    return None


def _line(one: dict[str, Any]) -> dict[str, Any]:
    extra = one["extra_info"]
    ratios = [_words(extra[key], key) for key in RATIOS if key in extra]
    seconds = float(extra.get("ours_seconds", one["stats"]["median"]))
    return {"name": one["name"].removeprefix("test_").replace("_", " "), "seconds": seconds, "ratios": ratios}


def _words(value: float, key: str) -> str:
    number = f"{value:.2f}" if key == "times_as_fast" else f"{value:.0%}"
    return f"{number} {RATIOS[key]}"
