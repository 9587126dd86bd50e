"""Errors that a person can mend: one clear sentence and an exit status, never a traceback."""

import contextlib
import difflib
import errno
import signal
import sys
from collections.abc import Callable, Iterable

REQUEST_IS_WRONG = 2
"""Exit status of a wrong request, config or input (DESIGN.md, Contracts)."""
TRAINING_FAILED = 3
"""Exit status of a training that collapsed or diverged. This and the former would come again: never tried again."""
REQUEUE = 75
"""Exit status of a run that saved its state and wants to be started again (EX_TEMPFAIL)."""
ERROR = "error: "
"""How the sentence of an error starts on stderr."""

MAKE_ROOM = "make room there"
RIGHTS = "get the right to use it, or take another place"
OUT_OF_THE_WAY = "move it out of the way"
PLACE_IS_WRONG = {
    errno.ENOSPC: ("the disk is full", MAKE_ROOM),
    errno.EDQUOT: ("the disk quota is used up", MAKE_ROOM),
    errno.EACCES: ("permission is denied", RIGHTS),
    errno.EPERM: ("permission is denied", RIGHTS),
    errno.EROFS: ("its file system is read-only", RIGHTS),
    errno.ENOTDIR: ("there is a file where a folder should be", OUT_OF_THE_WAY),
    errno.EEXIST: ("there is a file where a folder should be", OUT_OF_THE_WAY),
    errno.EISDIR: ("there is a folder where a file should be", OUT_OF_THE_WAY),
}
"""What a person can mend about a file's place: what it is, and how to."""


class UserError(Exception):
    """What happened, where, and what to do about it, in one sentence."""


class Unavailable(UserError):
    """Nobody can get it now: an address that is gone, weights that were never published."""


class TrainingFailed(Exception):
    """The run can't go on (a loss that is not finite, a collapse): one sentence; `status` goes to failure.json."""

    def __init__(self, sentence: str, status: str = "failed") -> None:
        super().__init__(sentence)
        self.status = status


class Crashed(Exception):
    """Something around the run broke, not the run: one sentence. The same command goes on from the last checkpoint."""


def nearest(word: str, valid: Iterable[str]) -> str:
    """How to go on after an unknown `word`: the closest valid ones, or all of them where none is close."""
    valid = sorted(valid)
    close = difflib.get_close_matches(word, valid, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(match) for match in close) + "?"
    return "valid are: " + ", ".join(valid) if valid else "there is none to choose from"


def explained(error: Exception) -> tuple[str, int] | None:
    """The sentence and the exit status of an error that was foreseen; None for any other."""
    if isinstance(error, UserError):
        return str(error), REQUEST_IS_WRONG
    if isinstance(error, TrainingFailed):
        return str(error), TRAINING_FAILED
    if isinstance(error, Crashed):
        return str(error), 1
    if isinstance(error, OSError) and (said := about_place(error)):
        return f"{error.filename} can't be used: {said}" if error.filename else said, REQUEST_IS_WRONG
    return None


def about_place(error: OSError) -> str:
    """What is wrong with the place of a file, and how to go on; empty where nothing is that a person can mend."""
    if error.errno not in PLACE_IS_WRONG:
        return ""
    return "{}; {}, and run the same command again".format(*PLACE_IS_WRONG[error.errno])


def exit_status(main: Callable[[], int | None]) -> int:
    """Run an entry point; an error that was foreseen becomes a sentence on stderr and a status (`explained`)."""
    try:
        return main() or 0
    except Exception as error:
        said = explained(error)
        if said is None:
            raise
    sentence, status = said
    with contextlib.suppress(OSError):
        sys.stdout.flush()  # in a file of both, what came before the error stands before it
    print(f"{ERROR}{sentence}", file=sys.stderr)
    return status


def signal_in_words(number: int) -> str:
    """What ended a process: SIGTERM, say. A real-time signal has no name."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return f"{name}; the machine may have run out of memory" if number == signal.SIGKILL else name
