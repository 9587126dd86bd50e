"""Read the files that a run leaves in its folder: result.json, failure.json and metrics.jsonl."""

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from reproduce.errors import UserError
from reproduce.files import read_json
from reproduce.parsing import is_finite_number, parse_json


def load(path: Path, run_id: str) -> dict[str, Any]:
    """Return the result in a file.

    Raises `UserError` if the file is truncated, belongs to another run, or is not of the form that runs write.
    """
    result = read_json(path)
    if not isinstance(result, dict) or result.get("run_id") != run_id:
        raise UserError(f"{path} is not the result of {run_id}; delete it and run the same command again")
    if foreign := next(_foreign_entries(result, run_id), None):
        raise UserError(
            f"{path} is called the result of {run_id}, but {foreign}; delete it and run the same command again"
        )
    if wrong := next(_schema_errors(result), None):
        raise UserError(f"{path} is damaged ({wrong}); delete it and run the same command again")
    return result


def _foreign_entries(result: dict[str, Any], run_id: str) -> Iterator[str]:
    """Yield a phrase for each entry that the run of this name can't have written: a copy of another run's has them."""
    if not (parts := re.fullmatch(r"(.+)-s(\d+)-([0-9a-f]+)", run_id)):
        yield "no run has such a name"
        return
    name, seed, digits = parts.groups()
    provenance = result.get("provenance")
    config_hash = str(provenance.get("config_hash", digits)) if isinstance(provenance, dict) else digits
    for key, wanted in (("name", name), ("seed", int(seed)), ("status", "done")):
        if result.get(key, wanted) != wanted:
            yield f"its {key} is {result[key]}"
    if not config_hash.startswith(digits):
        yield f"its config has the hash {config_hash[: len(digits)]}"


def _schema_errors(result: dict[str, Any]) -> Iterator[str]:
    """Yield a phrase for each entry of a result that is not of the form that runs write."""
    whole = {"metrics": None, "counts": {}, "provenance": {}, "wall_seconds": None, **result}
    numbers: dict[str, Any] = {
        key: whole[key] for key in ("wall_seconds", "device_hours", "peak_memory_gb") if key in whole
    }
    for section in ("metrics", "counts", "provenance"):
        if not isinstance(whole[section], dict):
            yield f"{section} has no keys"
        elif section != "provenance":
            numbers |= {f"{section}.{name}": value for name, value in whole[section].items()}
    for key, value in numbers.items():
        if not is_finite_number(value):
            yield f"{key} is {json.dumps(value)}, not a number"
        elif key.startswith("counts.") and (value < 0 or value != int(value)):
            yield f"{key} is {json.dumps(value)}, not a count"
    if isinstance(whole["provenance"], dict):
        yield from _provenance_errors(whole["provenance"])
    if not _is_texts(result.get("parents", [])):
        yield "parents is no list of texts"
    first_steps = result.get("first_steps", {})
    if not isinstance(first_steps, dict):
        yield "first_steps has no keys"
    else:
        for quantity, series in first_steps.items():
            if not isinstance(series, list) or not all(map(is_finite_number, series)):
                yield f"first_steps.{quantity} is no list of numbers"


def _provenance_errors(provenance: dict[str, Any]) -> Iterator[str]:
    for key, (fits, words) in FORMS.items():
        if provenance.get(key) is not None and not fits(provenance[key]):
            yield f"provenance.{key} is {json.dumps(provenance[key])[:60]}, not {words}"


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and value == value.strip().lower()


FORMS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "git_commit": (lambda value: isinstance(value, str) and value.isprintable() and len(value) < 100, "a commit"),
    "arithmetic": (lambda value: isinstance(value, dict), "settings by name"),
    "checkpoint_sha256": (_is_digest, "a SHA-256 in lower case"),
    "code_changed": (_is_texts, "a list of files"),
    "data_changed": (_is_texts, "a list of splits"),
    "hardware": (lambda value: isinstance(value, str), "a text"),
}
"""Forms of entries of a result's provenance, where they are there."""


def load_failure(path: Path) -> dict[str, Any] | None:
    """Return the failure in a file, or None without the file. If it cannot be read, the message says so."""
    unknown = {"status": "failed", "exit_status": 1, "message": "it did not say why"}
    try:
        found = unknown | parse_json(path.read_text())
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        return unknown | {"message": f"{path} cannot be read"}
    if not isinstance(found["status"], str) or not isinstance(found["message"], str):
        return unknown | {"message": f"{path} is damaged: status and message are no texts"}
    return found


def last_progress(run_folder: Path) -> tuple[int, int] | None:
    """Return `(step, num_steps)` from the end of a run's metrics.jsonl, or None if it has no such line."""
    try:
        with open(run_folder / "metrics.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, 2) - 4096))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            entry = parse_json(line.decode())
            return int(entry["step"]), int(entry["num_steps"])
        except (ValueError, KeyError, TypeError):
            continue
    return None


def curves(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Return the `(step, value)` pairs of each metric in a metrics.jsonl, by name, without non-finite values."""
    found: dict[str, list[tuple[float, float]]] = {}
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    for line in lines:
        try:
            entry = parse_json(line)
            step = float(entry["step"])
        except (ValueError, KeyError, TypeError):
            continue
        for name, value in entry.items():
            if name not in ("step", "num_steps") and isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(name, []).append((step, float(value)))
    return found


def losses(path: Path) -> list[tuple[float, float]]:
    """Return the `(step, loss)` pairs of a metrics.jsonl, without lines that have no finite loss."""
    return curves(path).get("loss", [])
