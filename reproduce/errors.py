"""Errors that the user can fix: they end a command with one clear sentence and an exit status, never a traceback."""

import argparse
import contextlib
import difflib
import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

EXIT_USAGE = 2
"""Exit status of a wrong request, config or input. Retrying cannot help."""
EXIT_TRAINING_FAILED = 3
"""Exit status of a training that collapsed or diverged. Retrying cannot help."""
REQUEUE = 75
"""Exit status of a preempted run that saved its state and should be started again (EX_TEMPFAIL)."""
EXIT_INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""
ERROR_PREFIX = "error: "
"""Start of the line on stderr that carries an error's sentence."""

FREE_SPACE = "free some space there"
FIX_PERMISSIONS = "fix its permissions or use another location"
MOVE_IT = "move it out of the way"
OS_ERROR_HINTS = {
    errno.ENOSPC: ("the disk is full", FREE_SPACE),
    errno.EDQUOT: ("the disk quota is used up", FREE_SPACE),
    errno.EACCES: ("permission is denied", FIX_PERMISSIONS),
    errno.EPERM: ("permission is denied", FIX_PERMISSIONS),
    errno.EROFS: ("its file system is read-only", FIX_PERMISSIONS),
    errno.ENOTDIR: ("there is a file where a folder should be", MOVE_IT),
    errno.EEXIST: ("there is a file where a folder should be", MOVE_IT),
    errno.ENAMETOOLONG: ("its name is too long", "give it a shorter one"),
    errno.ELOOP: ("its links lead in a circle", "mend them"),
    errno.EISDIR: ("there is a folder where a file should be", MOVE_IT),
}
"""Problem and remedy of each system error that the user can fix."""


class UserError(Exception):
    """An error that the user can fix. The message says what happened, where, and what to do."""


class Unavailable(UserError):
    """Data or weights that nobody can get: the URL is gone, or they were never published."""


class TrainingFailed(Exception):
    """A training that cannot continue: its loss is not finite, or it collapsed. `status` goes to failure.json."""

    def __init__(self, message: str, status: str = "failed") -> None:
        super().__init__(message)
        self.status = status


class RetryableError(Exception):
    """A failure around the run rather than in it. The same command resumes from the last checkpoint."""


class ArgumentParser(argparse.ArgumentParser):
    """A parser whose errors are one sentence, without the usage. Options are written out: `--seed` is no `--seeds`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False} | options)

    def error(self, message: str) -> NoReturn:
        """Raise `UserError` with the sentence."""
        raise UserError(f"{message}; `{self.prog} --help` shows the options")


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """Return a hint for an unknown `word`: the closest valid words, or all of them if none is close."""
    valid = sorted(valid)
    close = difflib.get_close_matches(word, valid, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(match) for match in close) + "?"
    return "valid are: " + ", ".join(valid) if valid else "there are no valid values"


def few(names: Iterable[str], limit: int = 5, separator: str = ", ") -> str:
    """Return the first `limit` of some names, and the number of the others."""
    names = list(names)
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return separator.join(names[:limit]) + more


def describe_error(error: Exception) -> tuple[str, int] | None:
    """Return the message and exit status of an error that we handle, or None for any other error."""
    if isinstance(error, UserError):
        return str(error), EXIT_USAGE
    if isinstance(error, TrainingFailed):
        return str(error), EXIT_TRAINING_FAILED
    if isinstance(error, RetryableError):
        return str(error), 1
    if isinstance(error, OSError) and (hint := os_error_hint(error)):
        return f"can't use {error.filename}: {hint}" if error.filename else hint, EXIT_USAGE
    return None


def os_error_hint(error: OSError) -> str:
    """Return the problem and its remedy, or an empty string if the user can't fix this system error."""
    if error.errno not in OS_ERROR_HINTS:
        return ""
    return "{}; {}, and run the same command again".format(*OS_ERROR_HINTS[error.errno])


def run_cli(main: Callable[[], int | None]) -> int:
    """Run an entry point and return its exit status.

    Errors that `describe_error` knows, and Ctrl-C, go to stderr as one line.
    """
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may be in no encoding, or not in the terminal's
            with contextlib.suppress(OSError, ValueError):  # a stream that is closed or broken
                stream.reconfigure(errors="backslashreplace")
    try:
        return main() or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        described = describe_error(error)
        if described is None:
            raise
    message, status = described
    with contextlib.suppress(OSError):
        sys.stdout.flush()  # keeps the order when both streams go to one file
    print(f"{ERROR_PREFIX}{message}", file=sys.stderr)
    return status


def _open_closed_streams() -> None:
    """Open what the caller has closed (`>&-`) as the null device.

    Python has no stream for it, so that printing fails, and the next file that is opened would get its number: child
    processes would then print into that file.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            os.set_inheritable(descriptor, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "r" if name == "stdin" else "w", closefd=False))  # noqa: SIM115


def describe_signal(number: int) -> str:
    """Return the name of the signal that ended a process, e.g. "SIGTERM"; real-time signals have only a number."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return f"{name}; the machine may have run out of memory" if number == signal.SIGKILL else name
