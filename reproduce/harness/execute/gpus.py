"""Share this machine's GPUs among concurrent runs: every process of a run has a GPU of its own."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from reproduce.errors import UserError
from reproduce.files import lock_file
from reproduce.harness import machine
from reproduce.system import POLL_SECONDS, SHARED_GPUS

VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"


def visible_gpus() -> list[str]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES allows, or all, by the names that it takes; [] without GPUs."""
    found = machine.list_gpus()
    if isinstance(found, str):
        return []
    allowed = os.environ.get(VISIBLE_GPUS)
    names = map(str, range(len(found))) if allowed is None else (name.strip() for name in allowed.split(","))
    return [name for name in names if name not in ("", "-1")]


def shared_gpus() -> list[str]:
    """Return the GPUs that the harness above this process shares; [] without a harness or GPUs."""
    return [name for name in os.environ.get(SHARED_GPUS, "").split(",") if name]


@contextmanager
def acquire(names: Sequence[str], number: int, should_continue: Callable[[], bool]) -> Iterator[list[str] | None]:
    """Wait until `number` of the GPUs `names` (or all, if there are fewer) are free, and yield their names.

    Yields None if `should_continue` turns false before. This user's harnesses in other checkouts lock the same files;
    the kernel releases them with the process. A file is named after the GPU itself: in two jobs of a cluster, "0" may
    be two GPUs.
    """
    wanted = min(number, len(names))
    identities = _identities(names)
    while True:
        with ExitStack() as files:
            mine: list[str] = []
            for name in names:
                if len(mine) < wanted and _try_lock(identities[name], files):
                    mine.append(name)
            if len(mine) == wanted or not should_continue():
                yield mine if len(mine) == wanted else None
                return
        time.sleep(POLL_SECONDS)


def _identities(names: Sequence[str]) -> dict[str, str]:
    """Return what nvidia-smi calls each of the GPUs for good; where it doesn't say, the name."""
    found = machine.list_gpus() if names else []
    known = {str(number): gpu.uuid for number, gpu in enumerate(found)} if isinstance(found, list) else {}
    return {name: known.get(name) or name for name in names}


def _try_lock(name: str, files: ExitStack) -> bool:
    folder = Path(tempfile.gettempdir()) / f"reproduce-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder}, which locks this user's GPUs, is another's: remove it, or set TMPDIR")
    file = files.enter_context(open(folder / f"{name.replace('/', '_')}.lock", "a"))  # noqa: SIM115
    return lock_file(file, Path(file.name))
