"""The metrics of a run by step: metrics.jsonl, W&B and stdout."""

import json
import sys
from pathlib import Path

from reproduce.engine.distributed.collectives import is_main
from reproduce.engine.runs.tracking import NoTracker, Tracker
from reproduce.files import write_atomic


class MetricsLog:
    """Logs the metrics of a run's steps. Every rank may call it; only rank 0 writes."""

    def __init__(self, path: Path, tracker: Tracker | NoTracker) -> None:
        self._path = path
        self._tracker = tracker
        self.last: dict[str, float] = {}
        """The metrics of the last logged step."""

    def log(self, step: int, num_steps: int, **metrics: float) -> None:
        """Log the metrics of one step; the file has six significant digits."""
        self.last = metrics
        if not is_main():
            return
        rounded = {name: float(f"{value:.6g}") for name, value in metrics.items()}
        with open(self._path, "a") as file:
            file.write(json.dumps({"step": step, "num_steps": num_steps, **rounded}) + "\n")
        self._tracker.log(metrics, step)
        words = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        print(f"step {step}/{num_steps}  {words}", flush=True)

    def truncate(self, step: int) -> None:
        """Delete lines after `step`, which a resumed run will write again, and set `last` from the rest."""
        if not is_main() or not self._path.exists():
            return
        lines = [line for line in self._path.read_text(errors="replace").splitlines() if _step_of(line) <= step]
        write_atomic(self._path, "".join(f"{line}\n" for line in lines))
        if lines:
            values = json.loads(lines[-1])
            self.last = {name: value for name, value in values.items() if name not in ("step", "num_steps")}


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return sys.maxsize  # a line that a kill cut short is deleted, too
