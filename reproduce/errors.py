"""Errors that a person can mend: one clear sentence and an exit status, never a traceback."""

import difflib
import errno
import sys
from collections.abc import Callable, Iterable

REQUEST_IS_WRONG = 2
"""Exit status of a wrong request, config or input (DESIGN.md, Contracts)."""


DISK_IS_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}


class UserError(Exception):
    """What happened, where, and what to do about it, in one sentence."""


class TrainingFailed(Exception):
    """The run can't go on (a loss that is not finite, a collapse): one sentence; `status` goes to failure.json."""

    def __init__(self, sentence: str, status: str = "failed") -> None:
        super().__init__(sentence)
        self.status = status


def nearest(word: str, valid: Iterable[str]) -> str:
    """How to go on after an unknown `word`: the closest valid ones, or all of them where none is close."""
    valid = sorted(valid)
    close = difflib.get_close_matches(word, valid, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(match) for match in close) + "?"
    return "valid are: " + ", ".join(valid) if valid else "there is none to choose from"


def exit_status(main: Callable[[], int | None]) -> int:
    """Run an entry point; what a person can mend becomes a sentence on stderr: status 2, or 1 where training failed."""
    status = REQUEST_IS_WRONG
    try:
        return main() or 0
    except UserError as error:
        sentence = str(error)
    except TrainingFailed as error:
        sentence, status = str(error), 1
    except OSError as error:
        if error.errno not in DISK_IS_FULL:
            raise
        where = f" at {error.filename}" if error.filename else ""
        sentence = f"{DISK_IS_FULL[error.errno]}{where}; make room and run the same command again"
    print(f"error: {sentence}", file=sys.stderr)
    return status
