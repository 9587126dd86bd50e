"""This machine's GPUs among the runs that go side by side: each process of a run has one of its own."""

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from reproduce.errors import UserError
from reproduce.harness import machine

SHARED = "REPRODUCE_GPUS"
"""Environment variable with the GPUs that a harness hands out, as `visible` gives them."""
ALLOWED = "CUDA_VISIBLE_DEVICES"
POLL_SECONDS = 0.5


def visible() -> list[str]:
    """The GPUs by the names that CUDA_VISIBLE_DEVICES takes: those that it allows, or all. [] where there is none."""
    found = machine.gpus()
    if isinstance(found, str):
        return []
    allowed = os.environ.get(ALLOWED)
    names = map(str, range(len(found))) if allowed is None else (name.strip() for name in allowed.split(","))
    return [name for name in names if name not in ("", "-1")]


def shared() -> list[str]:
    """The GPUs that the harness above this process hands out; [] where there is none."""
    return [name for name in os.environ.get(SHARED, "").split(",") if name]


@contextmanager
def held(names: Sequence[str], number: int, keep_on: Callable[[], bool]) -> Iterator[list[str] | None]:
    """Hold `number` of the GPUs `names`, or all where there are fewer, once so many are free at the same time.

    This user's harnesses in other checkouts hold theirs by the same files; the kernel lets go of them with the process.
    None where `keep_on` turns false before.
    """
    wanted = min(number, len(names))
    while True:
        with ExitStack() as files:
            mine: list[str] = []
            for name in names:
                if len(mine) < wanted and _take(name, files):
                    mine.append(name)
            if len(mine) == wanted or not keep_on():
                yield mine if len(mine) == wanted else None
                return
        time.sleep(POLL_SECONDS)


def _take(name: str, files: ExitStack) -> bool:
    folder = Path(tempfile.gettempdir()) / f"reproduce-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder}, where this user's runs hold their GPUs, is another's: remove it, or set TMPDIR")
    file = files.enter_context(open(folder / f"{name.replace('/', '_')}.lock", "a"))  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
