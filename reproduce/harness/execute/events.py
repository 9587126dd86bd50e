"""events.jsonl: one line for every run that starts or ends, which the harness follows to print progress."""

import json
import time
from pathlib import Path
from typing import Any

EVENTS = "events.jsonl"
"""The file's name, next to plan.json."""


def append_event(events: Path, run_id: str, **fields: Any) -> None:
    """Append one event. Processes may append at the same time, because short appends are atomic."""
    line = json.dumps({"time": time.time(), "run_id": run_id, **fields}) + "\n"
    with open(events, "ab", buffering=0) as file:
        file.write(line.encode())
