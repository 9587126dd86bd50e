"""How long a person waits for an answer: goals are half a second for --help, a second for plan and check."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from reproduce.system import REPO_ROOT

COMMANDS = {
    "help": ["--help"],
    "plan": ["plan", "table3", "--scale", "paper"],
    "check": ["check", "table3", "--scale", "smoke"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.benchmark(timer=time.perf_counter)
def test_start_up(seconds: Callable[..., float], tell: Callable[..., None], tmp_path: Path, command: str) -> None:
    def answer() -> None:
        done = subprocess.run(
            [sys.executable, "-m", "reproduce", *COMMANDS[command]], cwd=tmp_path, capture_output=True, check=False,
            env=os.environ | {"PYTHONPATH": str(REPO_ROOT), "WANDB_MODE": "disabled"},
        )  # fmt: skip
        assert done.returncode in (0, 3), done.stderr  # nothing has run yet

    (tmp_path / "tables").symlink_to(REPO_ROOT / "tables")
    tell(seconds=seconds(answer, rounds=3))  # the first, which composes configs, is not counted
