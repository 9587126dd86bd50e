"""Weights & Biases: the only place that knows it. Never in the way of a run, never a key in a file.

Offline unless a key is given (WANDB_API_KEY, or a netrc that `wandb login` wrote); then online, and offline again
where the service does not answer. An offline run lies below its run's folder and can be sent later: `wandb sync`.
WANDB_MODE=offline keeps it so whatever the key; WANDB_MODE=disabled tracks nothing.
"""

import netrc
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PROJECT = "swav-reproduction"
PATIENCE_SECONDS = 20.0
NO_KEY = "WANDB_MODE=online needs a key (WANDB_API_KEY, or wandb login); this run is kept offline"


class Tracker:
    """One tracked run. A failure of the service costs at most `PATIENCE_SECONDS` at the start and at the end."""

    def __init__(
        self, folder: Path, name: str, group: str, kind: str, config: Mapping[str, Any], tracker_id: str | None = None
    ) -> None:
        """`tracker_id` is that of an earlier attempt, whose curves this one goes on with; None starts a new run."""
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        arguments: dict[str, Any] = {
            "project": os.environ.get("WANDB_PROJECT", PROJECT),
            "dir": str(folder),
            "name": name,
            "group": group or None,
            "job_type": kind,
            "config": dict(config),
            "id": tracker_id,
            "settings": wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                save_code=False,
                x_disable_meta=True,
                x_disable_stats=True,
                init_timeout=PATIENCE_SECONDS,
            ),
        }
        asked_for = os.environ.get("WANDB_MODE") == "online"
        self.problem = NO_KEY if asked_for and not has_key() else None
        try:
            if has_key():
                self._run = wandb.init(mode="online", resume="allow", **arguments)
            else:
                self._run = wandb.init(mode="offline", **arguments)
        except Exception as error:  # noqa: BLE001 - whatever the service does, the run goes on
            self.problem = f"W&B did not answer ({type(error).__name__}); this run is kept offline"
            arguments["id"] = f"{tracker_id}-offline" if tracker_id else None  # its service still holds the other
            self._run = wandb.init(mode="offline", **arguments)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add one point to the curves."""
        self._run.log(dict(values), step=step)

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table, e.g. a check's verdicts."""
        import wandb

        self._run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary and close; give up waiting for a service that is down, the files are on disk."""
        self._run.summary.update(dict(summary))
        closing = threading.Thread(target=self._run.finish, daemon=True)
        closing.start()
        closing.join(PATIENCE_SECONDS)
        if closing.is_alive():
            self.problem = f"W&B took more than {PATIENCE_SECONDS:.0f} s to close; send it later: wandb sync"


class NoTracker:
    """Tracking switched off (`logging.wandb=false`, WANDB_MODE=disabled, or another rank's process)."""

    problem: str | None = None

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Keep nothing."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Keep nothing."""


def log_table(name: str, scale: str, folder: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Log one check's verdicts as a run of its own, in the group of its table and scale."""
    if disabled():
        return
    tracker = Tracker(folder, f"check-{name}-{scale}", f"{name}-{scale}", "check", {"table": name, "scale": scale})
    tracker.log_table(name, columns, rows)
    tracker.finish({})


def disabled() -> bool:
    """Whether nothing is to be tracked, by the variable that W&B itself reads."""
    return os.environ.get("WANDB_MODE") == "disabled"


def has_key() -> bool:
    """Whether runs are tracked online: a key is at hand, and WANDB_MODE does not forbid it."""
    if os.environ.get("WANDB_MODE") == "offline":
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return any("wandb" in host for host in netrc.netrc().hosts)
    except (OSError, netrc.NetrcParseError):
        return False
