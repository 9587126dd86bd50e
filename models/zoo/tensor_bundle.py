"""Read TensorFlow's checkpoints (tensor bundles) without TensorFlow: an index, and shards of raw numbers.

The index is a sorted string table (LevelDB's format) that maps a variable's name to a protocol buffer with its dtype,
shape, shard and offset. It contains no code.
"""

import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reproduce.errors import UserError

ReadFile = Callable[[str], bytes]
"""Returns the content of a file in an archive, by its name."""
MAGIC = 0xDB4775248B80FB57
FOOTER_BYTES = 48
FLOAT32 = 1
"""TensorFlow's number of the dtype; variables of other dtypes (step counters) are skipped."""
READ_ERRORS = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, struct.error, EOFError, OSError, NotImplementedError),
    *(KeyError, ValueError, IndexError, OverflowError, MemoryError, RuntimeError),
)
"""Errors that reading a damaged archive raises, depending on its bytes."""


def is_archive(path: Path) -> bool:
    """Return whether a file is an archive with a tensor bundle; False if its file list is damaged."""
    try:
        with _open(path) as (names, _):
            return bool(_indices(names))
    except READ_ERRORS:
        return False


@contextmanager
def _open(path: Path) -> Iterator[tuple[list[str], ReadFile]]:
    """Open a zip archive, or a `.tar.gz` as TensorFlow Hub has them: yield its files' names, and what reads one."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield archive.namelist(), archive.read
        return
    with tarfile.open(path, "r:gz") as module:

        def read(name: str) -> bytes:
            file = module.extractfile(name)
            if file is None:
                raise ValueError(f"{name} is no file")
            return file.read()

        yield module.getnames(), read


def _indices(names: list[str]) -> list[str]:
    """Return the index files of training checkpoints, or those of exported modules if there are no others.

    An archive with both has the same variables twice, under other names.
    """
    trained = [name for name in names if re.search(r"(^|/)model\.ckpt[^/]*\.index$", name)]
    return trained or [name for name in names if re.search(r"(^|/)variables/variables\.index$", name)]


def read_archive(path: Path) -> dict[str, Tensor]:
    """Read the float32 variables of the only bundle in an archive, by name, without unpacking it.

    Raises `UserError` if the file is not such an archive, or damaged.
    """
    try:
        with _open(path) as (names, read):
            (index,) = _indices(names)
            return _read(read, index)
    except READ_ERRORS as error:
        raise UserError(f"checkpoint {path} is not an intact archive of a TensorFlow checkpoint ({error})") from error


def _read(read: ReadFile, index: str) -> dict[str, Tensor]:
    entries = dict(_table(read(index)))
    num_shards = _number(_message(entries.pop(b"")), 1)
    shards = [
        read(f"{index.removesuffix('.index')}.data-{shard:05d}-of-{num_shards:05d}") for shard in range(num_shards)
    ]
    variables = {}
    for name, value in entries.items():
        entry = _message(value)
        if _number(entry, 1) != FLOAT32:
            continue
        dimensions = _message(_bytes(entry, 2)).get(2, [])
        shape = [_number(_message(dimension), 1) for dimension in dimensions if isinstance(dimension, bytes)]
        start, size = _number(entry, 4), _number(entry, 5)
        numbers = np.frombuffer(shards[_number(entry, 3)][start : start + size], "<f4")
        variables[name.decode()] = torch.from_numpy(numbers.reshape(shape).copy())
    return variables


def _table(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the entries of a sorted table: its footer points to an index block, which points to blocks of entries."""
    footer = content[-FOOTER_BYTES:]
    if struct.unpack("<Q", footer[-8:])[0] != MAGIC:
        raise ValueError("the index ends with another magic number")
    _, at = _handle(footer, 0)  # of the metaindex block, which is not needed
    index, _ = _handle(footer, at)
    for _, handle in _entries(_block(content, index)):
        yield from _entries(_block(content, _handle(handle, 0)[0]))


def _block(content: bytes, handle: tuple[int, int]) -> bytes:
    offset, size = handle
    if content[offset + size] != 0:
        raise ValueError("the index is compressed, which is not supported")
    return content[offset : offset + size]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield keys and values of a block; each key is stored without the prefix it shares with the previous one."""
    (num_restarts,) = struct.unpack("<I", block[-4:])
    end, at, key = len(block) - 4 - 4 * num_restarts, 0, b""
    while at < end:
        shared, at = _varint(block, at)
        rest, at = _varint(block, at)
        length, at = _varint(block, at)
        key = key[:shared] + block[at : at + rest]
        at += rest
        yield key, block[at : at + length]
        at += length


def _handle(content: bytes, at: int) -> tuple[tuple[int, int], int]:
    """Return the (offset, size) of a block, and the position after the handle."""
    offset, at = _varint(content, at)
    size, at = _varint(content, at)
    return (offset, size), at


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at


def _message(content: bytes) -> dict[int, list[int | bytes]]:
    """Return a protocol buffer's undecoded fields, by field number."""
    fields: dict[int, list[int | bytes]] = {}
    at = 0
    while at < len(content):
        tag, at = _varint(content, at)
        value: int | bytes
        if tag & 7 == 0:
            value, at = _varint(content, at)
        else:
            length, at = {1: (8, at), 5: (4, at)}.get(tag & 7) or _varint(content, at)
            value, at = content[at : at + length], at + length
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _number(fields: dict[int, list[int | bytes]], field: int) -> int:
    value = fields.get(field, [0])[-1]
    if not isinstance(value, int):
        raise ValueError(f"field {field} is not a number")  # noqa: TRY004 - the file is wrong, not its caller
    return value


def _bytes(fields: dict[int, list[int | bytes]], field: int) -> bytes:
    value = fields.get(field, [b""])[-1]
    if not isinstance(value, bytes):
        raise ValueError(f"field {field} is a number")  # noqa: TRY004 - as above
    return value
