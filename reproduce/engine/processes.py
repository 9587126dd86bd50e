"""Work for several processes of one rank."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from reproduce.engine.preemption import SIGNALS
from reproduce.errors import Crashed

Key = TypeVar("Key")
Answer = TypeVar("Answer")
POLL_SECONDS = 0.2


def in_processes(
    function: Callable[..., Answer],
    arguments: Mapping[Key, tuple[Any, ...]],
    num_processes: int,
    often: Callable[[], None],
) -> Iterator[tuple[Key, Answer]]:
    """Call `function` with each of the arguments in processes of its own; the answers come as they are made.

    Meanwhile `often` is called a few times a second; what it raises ends the processes. Raises `Crashed` where one
    dies.
    """
    others = multiprocessing.active_children()
    pool = ProcessPoolExecutor(num_processes, multiprocessing.get_context("fork"), _die_when_told)
    waiting = {pool.submit(function, *given): key for key, given in arguments.items()}
    try:
        while waiting:
            often()
            done, _ = wait(waiting, POLL_SECONDS, FIRST_COMPLETED)
            for future in done:
                yield waiting.pop(future), future.result()
    except BrokenProcessPool as error:
        often()  # who signals all processes of a job may reach these first
        raise Crashed(f"a process of {function.__name__} died; the same command goes on from what was done") from error
    finally:
        if waiting:
            for child in multiprocessing.active_children():
                if child not in others:
                    child.kill()
        pool.shutdown(cancel_futures=True)


def _die_when_told() -> None:
    """Not remember it, as the process does that this one was forked from."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
