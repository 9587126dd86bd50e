"""Facts about this checkout and this machine. Uses only the standard library, so that it works without .venv."""

import platform
import re
import signal
import subprocess
from pathlib import Path

REPO_ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_SECONDS = 30
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""Sent by a scheduler some time before it kills a run."""


def git(*arguments: str) -> str:
    """Run git in the checkout and return its output, or an empty string if git fails or there is no commit."""
    try:
        done = subprocess.run(
            ["git", "-C", str(REPO_ROOT), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=TIMEOUT_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def cpu_name(root: Path = Path("/")) -> str:
    """Return the CPU's model name from `root`/proc/cpuinfo, or its architecture if that gives none."""
    try:
        cpuinfo = (root / "proc/cpuinfo").read_text()
    except OSError:
        cpuinfo = ""
    model = re.search(r"^model name\s*:[ \t]*(\S.*)", cpuinfo, re.MULTILINE)
    return model[1].strip() if model else platform.processor() or platform.machine()
