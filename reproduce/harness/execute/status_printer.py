"""Lines and a status line on a terminal or in a log."""

import shutil
import sys
import time
from dataclasses import dataclass, field
from typing import TextIO

LOG_INTERVAL_SECONDS = 15
"""Seconds between status lines if the output is no terminal."""


@dataclass
class StatusPrinter:
    """Prints lines, and below them a status line: in place on a terminal, periodically elsewhere."""

    out: TextIO = field(default_factory=lambda: sys.stdout)
    _shown: str = ""
    _at: float = field(default_factory=time.monotonic)

    def line(self, text: str) -> None:
        """Print a line that stays."""
        self._clear()
        print(text, file=self.out, flush=True)

    def status(self, text: str) -> None:
        """Print or replace the status line."""
        if self.out.isatty():
            width = shutil.get_terminal_size().columns
            cut = text if len(text) < width else text[: width - 2] + "…"
            if cut != self._shown:
                self._clear()
                print(cut, end="", file=self.out, flush=True)
                self._shown = cut
        elif text != self._shown and time.monotonic() - self._at >= LOG_INTERVAL_SECONDS:
            print(text, file=self.out, flush=True)
            self._shown, self._at = text, time.monotonic()

    def close(self) -> None:
        """Clear the status line."""
        self._clear()

    def _clear(self) -> None:
        if self._shown and self.out.isatty():
            print("\r\x1b[2K", end="", file=self.out, flush=True)
            self._shown = ""
