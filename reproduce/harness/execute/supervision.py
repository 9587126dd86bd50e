"""Whether the harness that started a process still runs: SIGKILL leaves it no time to stop its runs."""

import fcntl
import os
import signal
import threading
import time
from pathlib import Path

from reproduce.system import POLL_SECONDS

SUPERVISOR = "REPRODUCE_SUPERVISOR"
"""Environment variable with the process id of the harness, a colon, and the lock file that it holds."""


def is_supervised() -> bool:
    """Return whether the harness that started this process still runs; true without one.

    It runs as long as it holds its lock, which the kernel releases when it dies.
    """
    supervisor = os.environ.get(SUPERVISOR)
    if supervisor is None:
        return True
    process_id, _, lock_file = supervisor.partition(":")
    return is_locked(Path(lock_file)) and Path(lock_file).read_text().strip() == process_id


def exit_with_supervisor() -> None:
    """Interrupt this process when the harness ends; a thread watches for it."""

    def watch() -> None:
        while is_supervised():
            time.sleep(POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGINT)  # SIGTERM would let Snakemake wait for its jobs

    threading.Thread(target=watch, daemon=True).start()


def is_locked(lock_file: Path) -> bool:
    """Return whether a process holds a lock (`reproduce.files.file_lock`)."""
    try:
        with open(lock_file) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
