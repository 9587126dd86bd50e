"""The verdicts on checkpoints as data (JSON), as Markdown and as text for a terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

from reproduce.harness.plan.model import Plan
from reproduce.harness.report.render_tables import notices
from reproduce.harness.report.rendering import markdown_row
from reproduce.harness.verdict import notes
from reproduce.harness.verdict.checkpoints import CheckpointVerdict
from reproduce.harness.verdict.labels import SYMBOLS, Verdict

FILE = "checkpoints.json"
CHECKPOINT_KEYS = {
    *("name", "pretrain", "unit", "cells", "verdict", "reason", "values", "mean", "sd", "expected", "difference"),
    *("interval", "noticeable_fall"),
}
"""What a checkpoint in `checkpoints.json` has."""


def checkpoints_as_data(plan: Plan, verdicts: Sequence[CheckpointVerdict]) -> dict[str, Any]:
    """Return the verdicts on checkpoints as plain data, with the tables that were checked together."""
    return {
        "scale": plan.request.scale,
        "tables": list(plan.tables),
        "seeds": list(plan.request.seeds),
        "checked": datetime.now(UTC).isoformat(timespec="seconds"),
        "checkpoints": [_as_data(verdict) for verdict in verdicts],
    }


def _as_data(verdict: CheckpointVerdict) -> dict[str, Any]:
    checkpoint = verdict.checkpoint
    data = {field.name: getattr(verdict, field.name) for field in fields(verdict) if field.name != "checkpoint"}
    return data | {
        "name": checkpoint.name,
        "pretrain": checkpoint.pretrain,
        "unit": checkpoint.unit,
        "cells": [cell.table_key for cell in checkpoint.cells],
        "values": dict(verdict.values),
        "notes": [notes.as_data(note) for note in verdict.notes],
        "reason": verdict.reason,
    }


def checkpoints_as_text(verdicts: Sequence[CheckpointVerdict]) -> str:
    """Return a line for each checkpoint."""
    lines = ["\nCheckpoints: the mean of each one's cells"]
    names = [f"{each.checkpoint.name}, {len(each.checkpoint.cells)} cells" for each in verdicts]
    for name, each in zip(names, verdicts, strict=True):
        line = f"  {SYMBOLS[each.verdict]} {each.verdict:<12} {name:<{max(map(len, names))}}"
        if each.mean is None or each.expected is None or each.difference is None or each.interval is None:
            lines.append(f"{line}  {each.reason}")
            continue
        line += f"  {each.mean:7.2f}  expected {each.expected:.2f} ({each.difference:+.2f})"
        line += f"  [{each.interval[0]:.1f}, {each.interval[1]:.1f}]  {notices(each.noticeable_fall)}"
        lines.append(line)
    return "\n".join(lines)


def checkpoints_as_markdown(checkpoints: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of a table of checkpoints, each as `checkpoints_as_data` gives it; none without checkpoints."""
    if not checkpoints:
        return []
    lines = ["", "| Mean of a checkpoint's cells | Expected | Ours | Would notice a fall of | Verdict |"]
    lines.append("|---|--:|--:|--:|---|")
    for each in checkpoints:
        expected, ours = ("–" if each[key] is None else f"{each[key]:.1f}" for key in ("expected", "mean"))
        fall = "–" if each["mean"] is None else fall_in_words(each["noticeable_fall"])
        symbol = SYMBOLS[Verdict(each["verdict"])]
        name = f"{each['name']}, {len(each['cells'])} cells"
        lines.append(markdown_row((name, expected, ours, fall, f"{symbol} {each['verdict']}")))
    return lines


def fall_in_words(fall: float | None) -> str:
    """Return a noticeable fall for a column of such."""
    return "none" if fall is None else f"{fall:.1f}"
