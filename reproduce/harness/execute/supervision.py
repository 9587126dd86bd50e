"""Whether the harness that started a process still runs: SIGKILL leaves it no time to stop its runs."""

import os
import signal
import threading
import time
from pathlib import Path

from reproduce.files import try_lock
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


def is_locked(path: Path) -> bool:
    """Return whether a process holds a lock (`reproduce.files.file_lock`).

    On a file system without locks, return whether the process that the file names is alive.
    """
    try:
        with open(path) as file:
            free = try_lock(file, shared=True)
            return not free if free is not None else _is_alive(file.read().strip())
    except FileNotFoundError:
        return False


def _is_alive(process_id: str) -> bool:
    return process_id.isdigit() and Path("/proc", process_id).exists()
