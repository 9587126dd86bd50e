"""Work for several processes of one rank."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits

from reproduce.engine.distributed.preemption import SIGNALS
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

    What `function` holds (a `partial`'s arrays) the processes share with this one; arguments are sent to them.
    Meanwhile `often` is called a few times a second; what it raises ends the processes. Raises `Crashed` where one
    dies.
    """
    others = multiprocessing.active_children()
    pool = ProcessPoolExecutor(num_processes, multiprocessing.get_context("fork"), _begin, (function,))
    waiting = {pool.submit(_call, given): key for key, given in arguments.items()}
    try:
        while waiting:
            often()
            done, _ = wait(waiting, POLL_SECONDS, FIRST_COMPLETED)
            for future in done:
                yield waiting.pop(future), future.result()
    except BrokenProcessPool as error:
        often()  # who signals all processes of a job may reach these first
        raise Crashed("a process died that worked for this one; the same command goes on from what was done") from error
    finally:
        if waiting:
            for child in multiprocessing.active_children():
                if child not in others:
                    child.kill()
        pool.shutdown(cancel_futures=True)


_called: list[Callable[..., Any]] = []
"""In such a process, what it calls: it came with the fork, and was not sent."""


def _begin(function: Callable[..., Any]) -> None:
    """Die when told to, not remember it, as the process does that this one was forked from."""
    _called[:] = [function]
    threadpool_limits(1)  # each BLAS would take all cores, and they wait for each other: the SVMs took twice as long
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def _call(given: tuple[Any, ...]) -> Any:
    return _called[0](*given)
