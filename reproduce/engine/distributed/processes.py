"""Worker processes of one rank."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits

from reproduce.errors import RetryableError
from reproduce.system import POLL_SECONDS, STOP_SIGNALS

Key = TypeVar("Key")
Result = TypeVar("Result")


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
