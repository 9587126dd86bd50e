"""Files that are complete or absent: atomic writes, checked reads, lock files, and the hash of a list of them."""

import errno
import fcntl
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any, BinaryIO

from reproduce.errors import UserError, os_error_hint
from reproduce.parsing import parse_json

NOT_FINITE = 1e300
"""Stands for infinity, which JSON lacks, and for NaN, which equals nothing, in numbers that may be either."""
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What a file system without locks answers: some network file systems, and FUSE."""


def write_atomic_with(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to the disk, then rename it to `path`.

    Readers see the old file or the new one, never a part. `write` may read back what it wrote. Raises `UserError` if
    the disk is full or `path` is not writable; the old file then stays.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if not (hint := os_error_hint(error)):
            raise
        raise UserError(f"could not write {path}: {hint}") from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write text (as UTF-8) or bytes to `path`, completely or not at all. Raises as `write_atomic_with` does."""
    data = _as_bytes(content) if isinstance(content, str) else content
    write_atomic_with(path, lambda file: file.write(data))


def _as_bytes(text: str) -> bytes:
    """Return a text as UTF-8; names of files keep their bytes, and halves of characters, as JSON may have, are `?`."""
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return text.encode(errors="replace")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, completely or not at all. Raises ValueError for NaN or infinity."""
    write_atomic(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file that we wrote. Raises `UserError` if the file is missing or damaged."""
    try:
        return parse_json(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; first run the command that writes it") from error
    except ValueError as error:
        raise UserError(
            f"{path} is cut short or damaged ({error}); delete it and run the same command again"
        ) from error


def try_lock(file: IO[Any], wait: bool = False, shared: bool = False) -> bool | None:
    """Lock an open file for this process until it is closed; return False if another process has it.

    Return None if its file system has no locks, as some network file systems.
    """
    operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.flock(file, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return None
    return True


def lock_file(file: IO[Any], path: Path, wait: bool = False) -> bool:
    """Lock an open file as `try_lock`; without locks, say once that nothing keeps two commands apart, and go on."""
    locked = try_lock(file, wait)
    if locked is None:
        _warn_without_locks(path.parent)
    return locked is not False


@cache
def _warn_without_locks(folder: Path) -> None:
    print(
        f"warning: the file system of {folder.resolve()} has no locks, so nothing keeps two commands from doing the "
        "same run at once; start one at a time, or use a folder on a local disk",
        file=sys.stderr,
    )


@contextmanager
def file_lock(path: Path, owner: str, remedy: str = "wait until it ends, or stop it") -> Iterator[None]:
    """Lock the file `path` for this process. Raises `UserError` with `owner` and `remedy` if another process has it.

    The kernel releases the lock when the process ends, so a killed owner leaves nothing to clean up.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        if not lock_file(file, path):
            file.seek(0)
            other = file.read().strip() or "unknown"
            raise UserError(f"{owner} is already running here (process {other}, lock {path}); {remedy}")
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def sha256_of_lines(lines: Iterable[str]) -> str:
    """Return the SHA-256 of lines of text, in which bytes that are no UTF-8 count as they are."""
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()
