"""Read tar and zip archives safely, and write their files so that unpacking can be interrupted and repeated.

Nothing is written outside the target folder: names in an archive are reduced to file names or must lead below the
folder, and links are never created. (tarfile's own filter needs Python 3.11.4; Debian 12 has 3.11.2.)
"""

import gzip
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from reproduce.errors import UserError

Members = Iterator[tuple[tarfile.TarInfo, IO[bytes]]]
"""The files of a tar archive with their content, which must be read before the next one."""


@contextmanager
def archive_errors(path: Path) -> Iterator[None]:
    """Turn errors of a truncated or damaged archive into a `UserError`."""
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, gzip.BadGzipFile, KeyError) as error:
        raise UserError(
            f"archive {path} is truncated or damaged ({error!r}): get it again and repeat the command, "
            "which keeps what is unpacked"
        ) from error


@contextmanager
def open_tar(path: Path, mode: Any) -> Iterator[tarfile.TarFile]:
    """Open a tar archive. Raises `UserError` if it is damaged."""
    with archive_errors(path), tarfile.open(path, mode) as archive:
        yield archive


@contextmanager
def open_members(path: Path) -> Iterator[Members]:
    """Open a tar archive and iterate over its files sequentially. Raises `UserError` if it is damaged."""
    with open_tar(path, "r|*") as archive:
        yield file_members(archive)


def file_members(archive: tarfile.TarFile) -> Members:
    """Yield the regular files of an open archive."""
    for member in archive:
        content = archive.extractfile(member) if member.isfile() else None
        if content is not None:
            yield member, content


def safe_target(folder: Path, name: str, archive: Path) -> Path:
    """Return the path of an archive's member below `folder`. Raises `UserError` if its name leads out of the folder."""
    target = folder / name
    if folder.resolve() not in target.resolve().parents:
        raise UserError(f"archive {archive} is refused: it names a file outside its folder, {name}")
    return target


def write_member(folder: Path, member: tarfile.TarInfo, content: IO[bytes]) -> None:
    """Write a member into `folder` under the last part of its name, unless it exists there in full."""
    name = PurePosixPath(member.name).name
    if name in ("", ".."):
        raise tarfile.TarError(f"a file is named {member.name!r}")
    write_file(folder / name, content, member.size)


def write_file(target: Path, content: IO[bytes], size: int | None = None) -> None:
    """Write a file atomically, unless it exists (with `size` bytes).

    It is not flushed to disk: that takes hours for a million files, and a file of another size is written again.
    """
    if target.is_file() and (size is None or target.stat().st_size == size):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    with open(part, "wb") as file:
        shutil.copyfileobj(content, file)
    os.replace(part, target)
