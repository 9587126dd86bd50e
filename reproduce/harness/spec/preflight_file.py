"""The result of the last preflight, which the report and `doctor` show: reports/<scale>/preflight.json."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from reproduce.errors import UserError, few
from reproduce.files import read_json
from reproduce.harness import machine, revision
from reproduce.harness.spec import golden

SCALES = ("smoke", "paper")
"""The scales whose recipes a preflight rehearses."""
NUM_NAMED = 3
"""Rehearsals that a summary names."""
KEYS = frozenset(
    (
        *("finished", "seconds", "scale", "precisions", "equal", "commit", "dirty", "hardware", "packages"),
        *("arithmetic", "world_size", "recorded", "rehearsals", "not_rehearsed"),
    )
)
"""Keys of the file that its readers need."""


def preflight_path(scale: str) -> Path:
    """Return the file of a scale's last preflight."""
    return Path("reports", scale, "preflight.json")


def command(scale: str) -> str:
    """Return the command that does a scale's preflight."""
    return "make preflight" if scale == SCALES[0] else f"make preflight SCALE={scale}"


def last_preflight(scale: str) -> dict[str, Any] | None:
    """Return the result of a scale's last preflight, or None if there was none.

    Raises `UserError` for a file that is damaged, or that this version's preflight did not write.
    """
    file = preflight_path(scale)
    if not file.exists():
        return None
    found = read_json(file)
    if not isinstance(found, dict) or not found.keys() >= KEYS:
        raise UserError(
            f"{file} is damaged, or another version's. Delete it, and write it again with {command(scale)}."
        )
    return found


def summary(result: Mapping[str, Any]) -> str:
    """Return in a clause how many rehearsals are equal, which are not, and what came closest to its tolerance."""
    rehearsals = result["rehearsals"]
    others = [each["name"] for each in rehearsals if not each["equal"]]
    notes = []
    if others:
        notes.append(f"not {few(others, NUM_NAMED)}")
    elif closest := max((each["worst"][3] for each in rehearsals if each["worst"]), default=0):
        notes.append(f"no number is further from its recorded one than {closest:.0%} of its tolerance")
    if result["not_rehearsed"]:
        notes.append(f"recorded, but of no recipe now: {', '.join(result['not_rehearsed'])}")
    text = f"{len(rehearsals) - len(others)} of {len(rehearsals)} rehearsals take their recorded first steps"
    return f"{text} ({'; '.join(notes)})" if notes else text


def origin(result: Mapping[str, Any]) -> str:
    """Return on which hardware, when, and in which precisions a preflight was done."""
    finished = datetime.fromisoformat(result["finished"])
    precisions = f", in {' and '.join(result['precisions'])}" if result["precisions"] else ""
    return f"on {result['hardware']}, {finished:%Y-%m-%d %H:%M} UTC{precisions}"


def doubts(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield why a preflight may not hold for this machine and this checkout, in sentences."""
    if result["hardware"] != (here := machine.hardware_name()):
        yield f"The preflight was done on another machine ({result['hardware']}) than this one ({here})."
    theirs, ours = result["commit"], revision.commit()
    if theirs and ours and theirs != ours:
        yield f"The preflight was done by another commit ({theirs[:12]}) than the checkout's ({ours[:12]})."
    if result["dirty"]:
        yield "The preflight was done by uncommitted code."
    if golden.path(result["scale"]).exists() and golden.load(result["scale"]).recorded != result["recorded"]:
        yield "The first steps have been recorded again since the preflight."
