"""Summarize the files behind a number: a hash of a split's file names and sizes, wherever they are stored."""

import gzip
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from reproduce.config.schema import Dataset
from reproduce.data.datasets.image_folder import ImageList
from reproduce.data.datasets.shards import CONTENTS_FILE, escape_name, unescape_name
from reproduce.errors import RetryableError
from reproduce.files import read_json, sha256_of_lines, write_atomic

STAT_THREADS = 4 * (os.cpu_count() or 1)
"""More threads than cores, because looking up file sizes waits for the disk."""
STAT_BLOCK = 256
"""Files that a thread looks up at a time."""
Found = TypeVar("Found")


def summarize_files(files: Mapping[str, int]) -> dict[str, Any]:
    """Summarize a split's files, given as name below the dataset's folder -> bytes.

    Returns the number of `images`, the total `bytes`, and hashes of names with sizes (`sha256`) and of names alone
    (`names_sha256`).
    """
    names = sorted(files)
    return {
        "images": len(names),
        "bytes": sum(files.values()),
        "sha256": sha256_of_lines(f"{files[name]} {escape_name(name)}" for name in names),
        "names_sha256": sha256_of_lines(map(escape_name, names)),
    }


class FileState(NamedTuple):
    """What a file system says of a file; all zero if there is none."""

    size: int
    modified_ns: int
    changed_ns: int
    """When the file's entry last changed, which no program can set."""

    def __str__(self) -> str:
        return " ".join(map(str, self))


def read_error(file: str, error: OSError) -> RetryableError:
    """Return the error of a file that is there, or may be, and can't be read."""
    reason = error.strerror or error
    return RetryableError(f"can't read {file}: {reason}; check its disk and run the same command again")


def file_states(paths: Sequence[str]) -> list[FileState]:
    """Return the size and dates of each file. Raises `RetryableError` if they can't be looked up."""
    return _map_in_blocks(_file_state, paths)


def _file_state(path: str) -> FileState:
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return FileState(0, 0, 0)
    except OSError as error:  # a network disk that fails for a moment must not count as other images
        raise read_error(path, error) from error
    return FileState(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def file_sizes(paths: Sequence[str]) -> list[int]:
    """Return the size of each file in bytes, 0 if it is missing. Raises `RetryableError` if it can't be looked up."""
    return _map_in_blocks(_file_size, paths)


def _map_in_blocks(look_up: Callable[[str], Found], paths: Sequence[str]) -> list[Found]:
    """Call `look_up` on each path in threads, block by block: handing over a path takes longer than looking it up."""
    blocks = [paths[start : start + STAT_BLOCK] for start in range(0, len(paths), STAT_BLOCK)]
    with ThreadPoolExecutor(STAT_THREADS) as pool:
        return list(itertools.chain.from_iterable(pool.map(lambda block: list(map(look_up, block)), blocks)))


def _file_size(path: str) -> int:
    return _file_state(path).size


def image_states_sha256(images: ImageList) -> str:
    """Return a hash of the paths, sizes and dates of the files of a list's images: equal if none changed."""
    paths = images.shard_index.paths if images.shard_index else images.paths
    states = (f"{state} {escape_name(path)}" for path, state in zip(paths, file_states(paths), strict=True))
    return sha256_of_lines([*states, *map(escape_name, images.paths)])


def manifest_path(data: Path, dataset: Dataset) -> Path:
    """Return where data-verify stores the manifest of a dataset below `data`."""
    return data / ".manifests" / f"{dataset.name}.json"


def split_manifest(data: Path, dataset: Dataset, split: str, images: ImageList) -> dict[str, Any]:
    """Return the summary of the split that `images` were read from, as `summarize_files` describes it.

    Looks up the size of every file, except for those of shards, of which `shards.json` has it. Adds the day as
    `verified` if data-verify found the same names and sizes.
    """
    root = data / dataset.root
    if images.shard_index:
        summary: dict[str, Any] = read_json(root / split / CONTENTS_FILE)["manifest"]
    else:
        # VOC07+12 has images outside its root, too.
        names = [name.removeprefix(f"{root}/").removeprefix(f"{data}/") for name in images.paths]
        summary = summarize_files(dict(zip(names, file_sizes(images.paths), strict=True)))
    if manifest_path(data, dataset).is_file():
        manifest = read_json(manifest_path(data, dataset))
        verified = manifest["splits"].get(split, {})
        if manifest["source"] == dataset.source and verified.get("sha256") == summary["sha256"]:
            return summary | {"verified": manifest["written"]}
    return summary


def read_size_list(path: Path) -> dict[str, int]:
    """Read data-verify's list of file names and sizes."""
    lines = gzip.decompress(path.read_bytes()).decode().split("\n")
    return {unescape_name(name): int(size) for size, name in (line.split("\t", 1) for line in lines if line)}


def write_size_list(path: Path, sizes: Mapping[str, int]) -> None:
    """Write data-verify's list of file names and sizes; compressed, because a million names take 50 MB."""
    lines = [f"{size}\t{escape_name(name)}" for name, size in sorted(sizes.items())]
    write_atomic(path, gzip.compress("\n".join(lines).encode(), mtime=0))
