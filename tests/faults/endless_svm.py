"""An evaluation in which each rank scores one class, and never comes to the end of the next."""

import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from evals import voc07_svm
from reproduce import evaluate
from reproduce.engine.distributed.processes import process_map
from reproduce.errors import run_cli

Judge = Callable[..., tuple[float, float]]


def judge(real: Judge, endless: bool, *arguments: Any) -> tuple[float, float]:
    """As the real one; or as LIBLINEAR for hours."""
    while endless:
        signal.pause()
    return real(*arguments)


def started(
    real: Judge, arguments: Mapping[int, tuple[Any, ...]], *rest: Any
) -> Iterator[tuple[int, tuple[float, float]]]:
    """The classes in processes, all but the first endless."""
    first = min(arguments)
    given = {number: (number != first, *of_class) for number, of_class in arguments.items()}
    return process_map(partial(judge, real), given, *rest)


if __name__ == "__main__":
    vars(voc07_svm)["process_map"] = started
    sys.exit(run_cli(evaluate.main))
