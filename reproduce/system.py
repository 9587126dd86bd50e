"""This checkout and this machine, as git and the system tell them. Standard library only: it answers without .venv."""

import platform
import re
import subprocess
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
PATIENCE_SECONDS = 30


def git(*arguments: str) -> str:
    """What git says of the checkout; empty where there is no git or no commit."""
    try:
        done = subprocess.run(
            ["git", "-C", str(CHECKOUT), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def processor(root: Path = Path("/")) -> str:
    """The processor's own name, where the system tells it, else its kind. `root` is where /proc lies."""
    try:
        told = (root / "proc/cpuinfo").read_text()
    except OSError:
        told = ""
    found = re.search(r"^model name\s*:[ \t]*(\S.*)", told, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()
