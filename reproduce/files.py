"""Files that are whole or not there: atomic writes, careful reads, and locks."""

import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from reproduce.errors import UserError, about_place


def write_with(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to the disk, then rename it to `path`.

    Readers see the old file or the new one, never a part; `write` may read back what it wrote. Raises `UserError` where
    the disk is full or the place not writable; the old file then still stands.
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
        if not (said := about_place(error)):
            raise
        raise UserError(f"could not write {path}: {said}") from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write text (UTF-8) or bytes as a whole or not at all; see `write_with`."""
    data = content.encode() if isinstance(content, str) else content
    write_with(path, lambda file: _write_all(file, data))


def _write_all(file: BinaryIO, data: bytes) -> None:
    file.write(data)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, as a whole or not at all. NaN and infinity are refused: they are not JSON."""
    write_atomic(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file of ours; a missing or cut one is a `UserError` that names it."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path} is not there; run the command that makes it first") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is cut short or damaged ({error}); delete it and run the same command again"
        ) from error


@contextmanager
def lock(path: Path, holder: str, remedy: str = "wait until it ends, or stop it") -> Iterator[None]:
    """Hold the lock file `path`; raise `UserError` where another process holds it.

    The kernel drops the lock with its process, so a killed holder leaves nothing to clean up.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            other = file.read().strip() or "unknown"
            raise UserError(f"{holder} is already running here (process {other}, lock {path}); {remedy}") from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
