"""How often a run was started, and how long all its attempts took."""

import contextlib
import secrets
import time
from pathlib import Path
from typing import Any

from reproduce.engine.distributed.collectives import world_size
from reproduce.errors import UserError
from reproduce.files import read_json, write_json

UNKNOWN_CODE = {"git_commit": None, "git_dirty": True, "code_sha256": None}
"""The code of attempts by a version that did not record it."""


class Attempts:
    """The attempts of a run, recorded in `attempts.json` in its folder.

    An attempt that was killed counts until its last sign of life: the modification time of the last file it wrote.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.file = folder / "attempts.json"
        self.number = 1
        self.wandb_id = secrets.token_hex(8)
        """W&B's id of the run, shared by all attempts so that they continue one curve."""
        self.resumed_code: list[dict[str, Any]] = []
        """The code of the earlier attempts that this one resumes (`CodeState.summary`), each once."""
        self._started = self.first_started = time.time()
        self._earlier_wall_seconds = self._earlier_device_seconds = 0.0
        self._result_written = False
        """Whether the earlier attempts, or this one, have ended with a result."""

    def begin(self, code: dict[str, Any] | None = None) -> None:
        """Add up the earlier attempts and record this one, which executes `code`."""
        with contextlib.suppress(UserError, KeyError, TypeError, AttributeError):  # no earlier attempt, or damaged
            before = read_json(self.file)
            seconds = max(self._last_sign_of_life() - before["started"], 0.0)
            self._earlier_wall_seconds = before["earlier_wall_seconds"] + seconds
            self._earlier_device_seconds = before["earlier_device_seconds"] + seconds * before["world_size"]
            self.first_started = before["first_started"]
            self.number = before["num_attempts"] + 1
            self.wandb_id = before["wandb_id"]
            self.resumed_code = list(before.get("code", [UNKNOWN_CODE]))
            self._result_written = before.get("result_written", (self._folder / "result.json").exists())
        self._record(code)

    def start_over(self, code: dict[str, Any]) -> None:
        """Record that nothing is left of the earlier attempts: this one found no checkpoint of theirs.

        If they ended with a result, this is the first attempt at another one: their time is part of that result.
        """
        self.resumed_code = []
        if self._result_written:
            self.number, self.first_started = 1, self._started
            self._earlier_wall_seconds = self._earlier_device_seconds = 0.0
            self._result_written = False
        self._record(code)

    def end_with_result(self, code: dict[str, Any]) -> None:
        """Record that the run's result is written."""
        self._result_written = True
        self._record(code)

    def _record(self, code: dict[str, Any] | None) -> None:
        record = {
            "num_attempts": self.number,
            "wandb_id": self.wandb_id,
            "first_started": self.first_started,
            "started": self._started,
            "world_size": world_size(),
            "earlier_wall_seconds": self._earlier_wall_seconds,
            "earlier_device_seconds": self._earlier_device_seconds,
            "result_written": self._result_written,
            "code": [*(each for each in self.resumed_code if each != code), *([code] if code else [])],
        }
        write_json(self.file, record)

    def totals(self, now: float) -> tuple[float, float]:
        """Return the wall-clock seconds and device seconds of all attempts until `now`."""
        seconds = now - self._started
        return self._earlier_wall_seconds + seconds, self._earlier_device_seconds + seconds * world_size()

    def _last_sign_of_life(self) -> float:
        files = [self.file, self._folder / "metrics.jsonl", *self._folder.glob("checkpoint*.pt")]
        return max((path.stat().st_mtime for path in files if path.exists()), default=0.0)
