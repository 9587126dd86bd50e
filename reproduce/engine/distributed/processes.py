"""Worker processes of one rank."""

import multiprocessing
import multiprocessing.util
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits

from reproduce.errors import RetryableError, UserError
from reproduce.system import LAUNCHER, LAUNCHER_VARIABLES, POLL_SECONDS, STOP_SIGNALS, TORCHRUN_PREFIX

Key = TypeVar("Key")
Result = TypeVar("Result")
MAX_SOCKET_FOLDER = 70
"""Longest path of a folder, in bytes, in which workers can open sockets: the kernel allows 107 with their names."""
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - a folder of our own is made in them
"""Folders for sockets if TMPDIR is too long a path."""


def prepare_process() -> None:
    """Make this process independent of what others left in its environment, before it starts any of its own."""
    ignore_other_launchers()
    use_short_socket_folder()


def ignore_other_launchers() -> None:
    """Forget rank and world size, unless our launcher or torchrun started this process: it would wait for nobody."""
    if os.environ.get(LAUNCHER) == str(os.getppid()) or any(name.startswith(TORCHRUN_PREFIX) for name in os.environ):
        return
    left = {name: os.environ.pop(name) for name in LAUNCHER_VARIABLES if name in os.environ}
    if left.get("WORLD_SIZE", "1") != "1" or left.get("RANK", "0") != "0" or left.get("LOCAL_RANK", "0") != "0":
        found = ", ".join(f"{name}={value}" for name, value in left.items())
        print(
            f"{found} in the environment is ignored, because no launcher started this process: several processes are "
            "started by python -m reproduce.engine.distributed.launch, or torchrun",
            file=sys.stderr,
        )


def use_short_socket_folder() -> None:
    """Let workers open their sockets in a folder with a short path if TMPDIR's is too long for the kernel.

    Raises `UserError` if there is none.
    """
    if len(os.fsencode(tempfile.gettempdir())) <= MAX_SOCKET_FOLDER:
        return
    given = tempfile.tempdir
    for folder in SHORT_FOLDERS:
        if os.access(folder, os.W_OK | os.X_OK):
            tempfile.tempdir = folder
            try:
                multiprocessing.util.get_temp_dir()  # makes one, and deletes it at the end
            finally:
                tempfile.tempdir = given
            return
    raise UserError(
        f"the path of TMPDIR, {given}, is too long for the sockets of data-loader workers, and none of "
        f"{', '.join(SHORT_FOLDERS)} is writable: set TMPDIR to a folder of at most {MAX_SOCKET_FOLDER} characters"
    )


def process_map(
    function: Callable[..., Result],
    arguments: Mapping[Key, tuple[Any, ...]],
    num_processes: int,
    poll: Callable[[], None],
) -> Iterator[tuple[Key, Result]]:
    """Call `function` on each of `arguments` in worker processes; yield (key, result) pairs as they complete.

    The workers are forked and share what `function` holds (a `partial`'s arrays); the arguments are pickled. `poll` is
    called several times a second and may raise, which kills the workers. Raises `RetryableError` if a worker dies.
    """
    others = multiprocessing.active_children()
    pool = ProcessPoolExecutor(num_processes, multiprocessing.get_context("fork"), _initialize_worker, (function,))
    waiting = {pool.submit(_call_function, each): key for key, each in arguments.items()}
    try:
        while waiting:
            poll()
            done, _ = wait(waiting, POLL_SECONDS, FIRST_COMPLETED)
            for future in done:
                yield waiting.pop(future), future.result()
    except BrokenProcessPool as error:
        poll()  # a signal to the whole job may reach the workers first; then this raises Preempted instead
        raise RetryableError("a worker process died; the same command resumes from the finished ones") from error
    finally:
        if waiting:
            for child in multiprocessing.active_children():
                if child not in others:
                    child.kill()
        pool.shutdown(cancel_futures=True)


_functions: list[Callable[..., Any]] = []
"""The function that this worker calls. It arrives by fork, so its arrays are shared and never pickled."""


def _initialize_worker(function: Callable[..., Any]) -> None:
    _functions[:] = [function]
    threadpool_limits(1)  # BLAS would use all cores in each worker: contention made the SVMs twice as slow
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)  # die of it; the parent's handler only sets a flag


def _call_function(arguments: tuple[Any, ...]) -> Any:
    return _functions[0](*arguments)
