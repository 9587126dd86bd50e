"""Weights & Biases tracking, used only here. It never stops a run and never writes a key to a file.

Runs are tracked offline unless there is a key (WANDB_API_KEY, or a netrc written by `wandb login`); then online, and
offline again if the service does not answer. Offline runs are below the run's folder; `wandb sync` uploads them.
WANDB_MODE=offline ignores the key; WANDB_MODE=disabled tracks nothing.
"""

import netrc
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reproduce.engine.runs.picture_files import ATLAS, MAP, NEIGHBORS, jpeg_path, read_pictures, svg_path
from reproduce.errors import UserError, did_you_mean

PROJECT = "swav-reproduction"
TIMEOUT_SECONDS = 20.0
MODES = ("online", "offline", "disabled")
NO_KEY = "WANDB_MODE=online needs a key: set WANDB_API_KEY, or run `wandb login`; this run is tracked offline"


class Tracker:
    """One tracked run. A failing service delays it by at most `TIMEOUT_SECONDS` at the start and at the end."""

    def __init__(
        self, folder: Path, name: str, group: str, kind: str, config: Mapping[str, Any], wandb_id: str | None = None
    ) -> None:
        """Start a new run, or continue the curves of an earlier attempt with the same `wandb_id`."""
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        arguments: dict[str, Any] = {
            "project": os.environ.get("WANDB_PROJECT", PROJECT),
            "dir": str(folder),
            "name": name,
            "group": group or None,
            "job_type": kind,
            "config": dict(config),
            "id": wandb_id,
            "settings": wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                save_code=False,
                x_disable_meta=True,
                x_disable_stats=True,
                init_timeout=TIMEOUT_SECONDS,
            ),
        }
        online_requested = os.environ.get("WANDB_MODE") == "online"
        self.problem = NO_KEY if online_requested and not is_online() else None
        """What went wrong, for the user to read; None if nothing did."""
        try:
            if is_online():
                self._run = wandb.init(mode="online", resume="allow", **arguments)
            else:
                self._run = wandb.init(mode="offline", **arguments)
        except Exception as error:  # noqa: BLE001 - whatever the service does, the run continues
            self.problem = f"W&B did not answer ({type(error).__name__}); this run is tracked offline"
            arguments["id"] = f"{wandb_id}-offline" if wandb_id else None  # wandb's process still uses the other id
            self._run = wandb.init(mode="offline", **arguments)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the metrics of one step."""
        self._run.log(dict(metrics), step=step)

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table, such as the verdicts of a check."""
        import wandb

        self._run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def log_pictures(self, run_folder: Path, names: Sequence[str], step: int | None = None, prefix: str = "") -> None:
        """Log pictures in a run's folder with their captions; maps as SVG, if the report has drawn them."""
        import wandb

        media: dict[str, Any] = {}
        for each in read_pictures(run_folder, None):
            if each.name in names and each.jpeg:
                path = str(jpeg_path(run_folder, each.name))
                media[f"pictures/{prefix}{each.name}"] = wandb.Image(path, caption=each.caption)
            elif each.name in names and svg_path(run_folder, each.name).exists():
                drawn = svg_path(run_folder, each.name).read_text()
                media[f"pictures/{prefix}{each.name}"] = wandb.Html(drawn, inject=False)
        self._run.log(media, step=step)

    def add_config(self, values: Mapping[str, Any]) -> None:
        """Add facts that are known only after the start to the run's config."""
        self._run.config.update(dict(values), allow_val_change=True)  # type: ignore[no-untyped-call]

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary and close. Stops waiting for a service that is down; the files are on disk."""
        self._run.summary.update(dict(summary))
        closing = threading.Thread(target=self._run.finish, daemon=True)
        closing.start()
        closing.join(TIMEOUT_SECONDS)
        if closing.is_alive():
            self.problem = f"W&B took more than {TIMEOUT_SECONDS:.0f} s to close; upload the run later: wandb sync"


class NoTracker:
    """Replaces `Tracker` if tracking is off (`logging.wandb=false`, WANDB_MODE=disabled), and on ranks above 0."""

    problem: str | None = None

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Do nothing."""

    def log_pictures(self, run_folder: Path, names: Sequence[str], step: int | None = None, prefix: str = "") -> None:
        """Do nothing."""

    def add_config(self, values: Mapping[str, Any]) -> None:
        """Do nothing."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Do nothing."""


def log_table(
    name: str,
    scale: str,
    folder: Path,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    summary: Mapping[str, Any] | None = None,
) -> None:
    """Log the verdicts of one check, or a preflight, as a run of its own, in the group of its table and scale."""
    if is_disabled():
        return
    tracker = Tracker(folder, f"check-{name}-{scale}", f"{name}-{scale}", "check", {"table": name, "scale": scale})
    tracker.log_table(name, columns, rows)
    tracker.finish(summary or {})


def log_pictures(scale: str, folder: Path, run_folders: Sequence[Path]) -> None:
    """Log the pictures of trained networks, in these runs' folders, as a run of its own in the scale's group.

    They come after the trainings: added to a training's own run, its curves would have to be written again.
    """
    if is_disabled() or not run_folders:
        return
    tracker = Tracker(folder, f"pictures-{scale}", scale, "pictures", {"runs": [each.name for each in run_folders]})
    for each in run_folders:
        tracker.log_pictures(each, (NEIGHBORS, ATLAS, MAP), prefix=f"{each.name}/")
    tracker.finish({})


def check_mode() -> None:
    """Raise `UserError` if WANDB_MODE is none of the modes: a misspelt one would decide where a run's data goes."""
    mode = os.environ.get("WANDB_MODE", "")
    if mode and mode not in MODES:
        raise UserError(f"there is no WANDB_MODE {mode!r}: {did_you_mean(mode, MODES)}")


def is_disabled() -> bool:
    """Return whether WANDB_MODE=disabled switches tracking off."""
    return os.environ.get("WANDB_MODE") == "disabled"


def is_online() -> bool:
    """Return whether runs are tracked online: there is a key, and WANDB_MODE is not offline."""
    if os.environ.get("WANDB_MODE") == "offline":
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return any("wandb" in host for host in netrc.netrc().hosts)
    except (OSError, netrc.NetrcParseError):
        return False
