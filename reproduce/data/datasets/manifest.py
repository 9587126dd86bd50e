"""Fingerprint the images behind a number: a hash of a split's file names and sizes, wherever they are stored."""

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
from reproduce.data.datasets.shards import CONTENTS_FILE
from reproduce.errors import UserError
from reproduce.files import read_json, write_json

STAT_THREADS = 4 * (os.cpu_count() or 1)
"""More threads than cores, because looking up file sizes waits for the disk."""


def summarize_files(files: Mapping[str, int]) -> dict[str, Any]:
    """Summarize a split's files, given as name below the dataset's folder -> bytes.

    Returns the number of `images`, the total `bytes`, and hashes of names with sizes (`sha256`) and of names alone
    (`names_sha256`).
    """
    names = sorted(files)
    return {
        "images": len(names),
        "bytes": sum(files.values()),
        "sha256": _sha256(f"{files[name]} {name}" for name in names),
        "names_sha256": _sha256(names),
    }


def _sha256(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def file_sizes(paths: list[str]) -> list[int]:
    """Return the size of each file in bytes, 0 if it is missing."""
    with ThreadPoolExecutor(STAT_THREADS) as pool:
        return list(pool.map(_file_size, paths, chunksize=256))


def _file_size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def manifest_path(data: Path, dataset: Dataset) -> Path:
    """Return where data-verify stores the manifest of a dataset below `data`."""
    return data / ".manifests" / f"{dataset.name}.json"


def split_manifest(data: Path, dataset: Dataset, split: str, images: ImageList, cache: Path) -> dict[str, Any]:
    """Return the summary of the split that `images` were read from, as `summarize_files` describes it.

    Takes it from data-verify's manifest, if that lists the same files (and adds the day as `verified`), or from
    `shards.json`. Otherwise looks up the size of every file, and stores the summary in the folder `cache`. It does not
    notice a file that was replaced by another of the same name since; data-verify does.
    """
    root = data / dataset.root
    # VOC07+12 has images outside its root, too.
    names = [name.removeprefix(f"{root}/").removeprefix(f"{data}/") for name in images.paths]
    names_sha256 = _sha256(sorted(names))
    if manifest_path(data, dataset).is_file():
        manifest = read_json(manifest_path(data, dataset))
        verified: dict[str, Any] = manifest["splits"].get(split, {})
        if manifest["source"] == dataset.source and verified.get("names_sha256") == names_sha256:
            return verified | {"verified": manifest["written"]}
    if images.shard_index:
        return read_json(root / split / CONTENTS_FILE)["manifest"]
    key = json.dumps([str(root.resolve()), split, names_sha256])
    cached = cache / f"{_sha256([key])[:20]}.json"
    if cached.is_file():
        return read_json(cached)
    summary = summarize_files(dict(zip(names, file_sizes(images.paths), strict=True)))
    with contextlib.suppress(UserError):  # without the cache it only takes longer
        write_json(cached, summary)
    return summary
