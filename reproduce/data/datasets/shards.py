"""A split as WebDataset shards: a few thousand tar files in place of a million pictures, for parallel file systems.

`prepare.write_shards` writes them with the webdataset library, and any WebDataset reader can read them. Here they are
read in place, by an index of where each picture lies. The library's own loader draws while it reads, so nobody could
say which pictures a later step holds, as a resumed run and DeepCluster-v2's bank must; and a list of 1% of the pictures
would have to read them all. What makes reading go forward is the order: `ShardOrder`.
"""

import gzip
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from reproduce.errors import UserError
from reproduce.files import read_json

ABOUT, INDEX = "shards.json", "index.tsv.gz"
"""Beside a split's shards: what they are (written last), and a line per picture."""
STREAM_IMAGES = 32
"""Of a batch, so many pictures come from one stream: a rank that trains on 64 a step reads two of them."""
WINDOW_IMAGES = 1024
"""Pictures of a stream are shuffled so many at a time: 110 MB of ImageNet, which the system's page cache holds."""
OPEN_FILES = 128


class _File:
    """A file that is closed when nobody needs it any longer."""

    def __init__(self, path: str, whole: bool) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)
        if whole and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_WILLNEED)


_opened = lru_cache(OPEN_FILES)(_File)


@dataclass(frozen=True)
class ShardIndex:
    """Where each of some pictures lies: number of its shard, and offset and size in bytes there, `(n,)` each."""

    files: list[str]
    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    whole: bool = True
    """Whether these are all pictures of the shards, so that a shard which is opened will be read to its end."""

    def subset(self, indices: Sequence[int]) -> "ShardIndex":
        """Of only these pictures, in this order."""
        at = np.asarray(indices, dtype=np.int64)
        return ShardIndex(self.files, self.shard[at], self.offset[at], self.size[at], whole=False)

    def read(self, index: int) -> bytes:
        """A picture as it was packed. Raises `OSError` where it is not there in full. Threads may share a reader."""
        path, size = self.files[self.shard[index]], int(self.size[index])
        data = os.pread(_opened(path, self.whole).descriptor, size, int(self.offset[index]))
        if len(data) != size:
            raise OSError(f"shard {path} is cut short")
        return data

    def reading_order(self) -> np.ndarray:
        """The pictures as one pass over the shards meets them."""
        return np.lexsort((self.offset, self.shard))


def read_index(folder: Path) -> tuple[dict[str, Any], list[str], list[str], ShardIndex]:
    """What `shards.json` says, and of each picture its label as text, its name below the data set, and its place.

    In the order of the folder that was packed. Raises `UserError` where a shard is missing or has another size.
    """
    if not (folder / ABOUT).is_file():
        raise UserError(f"{folder} holds no shards ({ABOUT} is not there): make them by data-shard")
    about = read_json(folder / ABOUT)
    files = []
    for shard in about["shards"]:
        path = folder / shard["name"]
        size = path.stat().st_size if path.is_file() else 0
        if size != shard["bytes"]:
            what = f"has {size:,} bytes in place of {shard['bytes']:,}" if path.is_file() else "is not there"
            raise UserError(f"shard {path} {what}: copy it anew, or make it again by data-shard")
        files.append(str(path))
    try:
        lines = gzip.decompress((folder / INDEX).read_bytes()).decode().splitlines()
        columns = list(zip(*(line.split("\t", 4) for line in lines), strict=True))
        shard, offset, size = (np.array(column, dtype=np.int64) for column in columns[:3])
    except (OSError, EOFError, ValueError) as error:
        raise UserError(
            f"{folder / INDEX} is damaged ({error}): copy it anew, or make it again by data-shard"
        ) from error
    if len(lines) != about["manifest"]["pictures"]:
        raise UserError(f"{folder / INDEX} does not belong to {folder / ABOUT}: copy both anew")
    return about, list(columns[3]), list(columns[4]), ShardIndex(files, shard, offset, size)


class ShardOrder:
    """The order of all pictures in one epoch, such that each rank reads forward through a few shards at a time.

    Shards are shuffled, and what one pass over them meets is cut into streams, which go side by side. A step takes 32
    pictures (or what divides the batch) of each stream, shuffled within a window: they come from all over the set, and
    a rank, whose share of a step is a run of these, reads few streams. The order knows of no ranks and workers: with
    any number of them each picture comes at most once an epoch, and a run goes on in the middle of one.
    """

    def __init__(self, places: ShardIndex, batch_size: int) -> None:
        self._places, self._batch_size = places, batch_size
        self._made = lru_cache(maxsize=2)(self._make)  # of the steps prefetched and the one under way

    def __call__(self, num_images: int, seed: int, epoch: int) -> np.ndarray:
        """A permutation of `num_images`."""
        assert num_images == len(self._places.shard)
        return self._made(seed, epoch)

    def _make(self, seed: int, epoch: int) -> np.ndarray:
        rng = np.random.Generator(np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)))
        turn = rng.permutation(len(self._places.files))
        met = np.lexsort((self._places.offset, turn[self._places.shard]))
        most = max(1, self._batch_size // STREAM_IMAGES)
        num_streams = max(number for number in range(1, most + 1) if self._batch_size % number == 0)
        num_steps = len(met) // self._batch_size
        used = num_steps * self._batch_size
        streams = met[:used].reshape(num_streams, -1)
        for stream in streams:
            for start in range(0, len(stream), WINDOW_IMAGES):
                rng.shuffle(stream[start : start + WINDOW_IMAGES])
        steps = streams.reshape(num_streams, num_steps, -1).transpose(1, 0, 2).reshape(-1)
        return np.concatenate([steps, met[used:]])
