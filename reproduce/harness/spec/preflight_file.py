"""The result of the last preflight, which the report and `doctor` show: reports/<scale>/preflight.json."""

from pathlib import Path
from typing import Any

from reproduce.files import read_json


def preflight_path(scale: str) -> Path:
    """Return the file of a scale's last preflight."""
    return Path("reports", scale, "preflight.json")


def last_preflight(scale: str) -> dict[str, Any] | None:
    """Return the result of a scale's last preflight, or None if there was none."""
    file = preflight_path(scale)
    return read_json(file) if file.exists() else None
