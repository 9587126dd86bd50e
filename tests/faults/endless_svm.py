"""An evaluation in which each rank judges one class, and never comes to the end of the next."""

import signal
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from evals import voc07_svm
from reproduce import evaluate
from reproduce.engine.processes import in_processes
from reproduce.errors import exit_status


def judge(endless: bool, *arguments: Any) -> tuple[float, float]:
    """As the real one; or as LIBLINEAR for hours."""
    while endless:
        signal.pause()
    return voc07_svm.judge(*arguments)


def started(_: Any, arguments: Mapping[int, tuple[Any, ...]], *rest: Any) -> Iterator[tuple[int, tuple[float, float]]]:
    """The classes in processes, all but the first endless."""
    first = min(arguments)
    return in_processes(judge, {number: (number != first, *given) for number, given in arguments.items()}, *rest)


if __name__ == "__main__":
    vars(voc07_svm)["in_processes"] = started
    sys.exit(exit_status(evaluate.main))
