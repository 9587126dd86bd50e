"""Which pictures a number was made from: the hash of a split's file names and sizes, the same wherever they lie."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from reproduce.config.schema import Dataset
from reproduce.data.datasets.image_folder import ImageList
from reproduce.data.datasets.shards import ABOUT
from reproduce.errors import UserError
from reproduce.files import read_json, write_json

THREADS = 4 * (os.cpu_count() or 1)
"""Looking at files waits for the disk: more threads than cores."""


def summary(files: Mapping[str, int]) -> dict[str, Any]:
    """Of a split's files (name below the data set, and size): number, bytes, and hashes with and without sizes."""
    names = sorted(files)
    return {
        "pictures": len(names),
        "bytes": sum(files.values()),
        "sha256": _sha256(f"{files[name]} {name}" for name in names),
        "names_sha256": _sha256(names),
    }


def _sha256(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def sizes(paths: list[str]) -> list[int]:
    """Bytes of each file; 0 where it is not there."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(_size, paths, chunksize=256))


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def path(data: Path, dataset: Dataset) -> Path:
    """Where data-verify keeps the manifest of a data set that lies below `data`."""
    return data / ".manifests" / f"{dataset.name}.json"


def of_split(data: Path, dataset: Dataset, split: str, pictures: ImageList, cache: Path) -> dict[str, Any]:
    """The `summary` of a split that was read from `data`, with the day on which data-verify `verified` it, if it did.

    Taken from the manifest that data-verify wrote, where this names the same pictures, or from what shards say of
    themselves; else every file is looked at, and the answer kept in the folder `cache`. None of these notices a file
    that another of the same name took the place of since: data-verify does.
    """
    root = data / dataset.root
    # VOC07+12 has pictures beside its root, too.
    names = [name.removeprefix(f"{root}/").removeprefix(f"{data}/") for name in pictures.paths]
    names_sha256 = _sha256(sorted(names))
    if path(data, dataset).is_file():
        kept = read_json(path(data, dataset))
        found: dict[str, Any] = kept["splits"].get(split, {})
        if kept["source"] == dataset.source and found.get("names_sha256") == names_sha256:
            return found | {"verified": kept["written"]}
    if pictures.shard_index:
        return read_json(root / split / ABOUT)["manifest"]
    key = json.dumps([str(root.resolve()), split, names_sha256])
    answer = cache / f"{_sha256([key])[:20]}.json"
    if answer.is_file():
        return read_json(answer)
    made = summary(dict(zip(names, sizes(pictures.paths), strict=True)))
    with contextlib.suppress(UserError):  # a cache that can't be written costs time only
        write_json(answer, made)
    return made
