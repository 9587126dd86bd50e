"""How often a run was started, and how long all its attempts took."""

import contextlib
import secrets
import time
from pathlib import Path

from reproduce.engine.distributed.collectives import world_size
from reproduce.errors import UserError
from reproduce.files import read_json, write_json


class Attempts:
    """How often a run was started, and how long all its attempts took: `attempts.json` in its folder.

    An attempt that was killed counts up to its last sign of life, the last file that it wrote.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.file = folder / "attempts.json"
        self.number = 1
        self.tracker_id = secrets.token_hex(8)
        """W&B's name for the run, so that all attempts draw one curve."""
        self._started = self.first_started = time.time()
        self._wall_seconds = self._device_seconds = 0.0
        """Of earlier attempts."""

    def begin(self) -> None:
        """Add up what came before, and write down that another attempt begins."""
        with contextlib.suppress(UserError, KeyError, TypeError, AttributeError):  # the first, or the file is damaged
            before = read_json(self.file)
            seconds = max(self._last_sign() - before["started"], 0.0)
            self._wall_seconds = before["earlier_wall_seconds"] + seconds
            self._device_seconds = before["earlier_device_seconds"] + seconds * before["world_size"]
            self.first_started = before["first_started"]
            self.number = before["num_attempts"] + 1
            self.tracker_id = before["tracker_id"]
        record = {
            "num_attempts": self.number,
            "tracker_id": self.tracker_id,
            "first_started": self.first_started,
            "started": self._started,
            "world_size": world_size(),
            "earlier_wall_seconds": self._wall_seconds,
            "earlier_device_seconds": self._device_seconds,
        }
        write_json(self.file, record)

    def totals(self, now: float) -> tuple[float, float]:
        """Seconds of all attempts up to now, by the clock and by device."""
        seconds = now - self._started
        return self._wall_seconds + seconds, self._device_seconds + seconds * world_size()

    def _last_sign(self) -> float:
        signs = [self.file, self._folder / "metrics.jsonl", *self._folder.glob("checkpoint*.pt")]
        return max((path.stat().st_mtime for path in signs if path.exists()), default=0.0)
