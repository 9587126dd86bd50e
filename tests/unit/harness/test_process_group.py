"""One run as a process, and what of it reaches its log."""

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from reproduce.harness.execute import process_group

TALKS = "print('line\\n' * 3000 + 'error: the pictures are gone'); raise SystemExit(2)"


class HeldBack:
    """A terminal that takes nothing before the run has ended."""

    def __init__(self, ended: threading.Event) -> None:
        self.buffer, self.ended = self, ended

    def write(self, line: bytes) -> None:
        assert self.ended.wait(timeout=30), line

    def flush(self) -> None:
        pass


def test_an_echoed_run_logs_its_last_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended, wait = threading.Event(), subprocess.Popen.wait

    def tell(process: "subprocess.Popen[bytes]", timeout: float | None = None) -> int:
        status = wait(process, timeout)
        ended.set()
        return status

    monkeypatch.setattr(subprocess.Popen, "wait", tell)
    monkeypatch.setattr(sys, "stdout", HeldBack(ended))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert process_group.run_process([sys.executable, "-c", TALKS], tmp_path, echo=True) == 2
    assert (tmp_path / "log.txt").read_text().count("line\n") == 3000
    assert json.loads((tmp_path / "failure.json").read_text())["message"] == "the pictures are gone"
