"""Read a split that is packed as WebDataset shards: a few thousand tar files in place of a million images.

`prepare.write_shards` writes them with the webdataset library, and any WebDataset reader can read them. This module
reads single images in place, through an index of their positions, because webdataset's own loader shuffles while it
reads: nobody could say which images a later step holds, as resuming and DeepCluster-v2's memory bank require, and a 1%
subset would have to read every image. `ShardOrder` makes the reads sequential.
"""

import gzip
import json
import os
import re
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from reproduce.errors import UserError
from reproduce.files import read_json

CONTENTS_FILE = "shards.json"
"""Describes a split's shards; written last, so its existence means that all shards are complete."""
INDEX_FILE = "index.tsv.gz"
"""One line per image: shard number, offset, size, label as JSON, and name below the dataset's folder."""
STREAM_IMAGES = 32
"""Images of a batch that come from one stream: a rank that trains on 64 images a step reads two streams."""
WINDOW_IMAGES = 1024
"""Images of a stream are shuffled within windows of this size: 110 MB of ImageNet, which fits the page cache."""
OPEN_FILES = 128
NO_PLAIN_NAME = re.compile('^"|[\n\r\ud800-\udfff]')
"""What a name has that can't stand in a line of text as it is: a line break, or bytes that are no UTF-8."""


def escape_name(name: str) -> str:
    """Return a file's name as it stands in a line of a list: as JSON if it has a line break or is no UTF-8."""
    return json.dumps(name) if NO_PLAIN_NAME.search(name) else name


def unescape_name(text: str) -> str:
    """Return the name that `escape_name` made a text of."""
    return str(json.loads(text)) if text.startswith('"') else text


class _File:
    """An open file that is closed when nothing refers to it."""

    def __init__(self, path: str, read_ahead: bool) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)
        if read_ahead and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_WILLNEED)


_open_file = lru_cache(OPEN_FILES)(_File)


@dataclass(frozen=True)
class ShardIndex:
    """Where each image is stored: `shard` indexes `paths`; `offset` and `size` are bytes. `(n,)` int64 each."""

    paths: list[str]
    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    complete: bool = True
    """Whether these are all images of the shards, so that an opened shard will be read to its end."""

    def subset(self, indices: Sequence[int]) -> "ShardIndex":
        """Return the index of the images at `indices`, in that order."""
        at = np.asarray(indices, dtype=np.int64)
        return ShardIndex(self.paths, self.shard[at], self.offset[at], self.size[at], complete=False)

    def read(self, index: int) -> bytes:
        """Return the encoded content of image `index`; thread-safe. Raises `OSError` if the shard is truncated."""
        path, size = self.paths[self.shard[index]], int(self.size[index])
        file = _open_file(path, self.complete)  # referred to until it is read: another thread may drop it meanwhile
        data = os.pread(file.descriptor, size, int(self.offset[index]))
        if len(data) != size:
            raise OSError(f"shard {path} is truncated")
        return data

    def reading_order(self) -> np.ndarray:
        """Return the images in the order of one pass over the shards, `(n,)` int64."""
        return np.lexsort((self.offset, self.shard))


@dataclass(frozen=True)
class PackedSplit:
    """A split in shards, whose images are in the order that they had before they were packed."""

    contents: dict[str, Any]
    """The content of `shards.json`: `source`, `classes`, `manifest` and `shards`."""
    labels: list[str]
    """Each image's label as JSON text: a class number, or VOC's 20 labels."""
    names: list[str]
    """Each image's name below the dataset's folder."""
    index: ShardIndex


def read_packed_split(folder: Path) -> PackedSplit:
    """Read what the shards in `folder` contain, without reading images.

    Raises `UserError` if a shard is missing or has another size, or if the index is damaged.
    """
    if not (folder / CONTENTS_FILE).is_file():
        raise UserError(
            f"{folder} contains no complete shards ({CONTENTS_FILE} is missing): create them with data-shard"
        )
    contents = read_json(folder / CONTENTS_FILE)
    paths = []
    for shard in contents["shards"]:
        path = folder / shard["name"]
        size = path.stat().st_size if path.is_file() else 0
        if size != shard["bytes"]:
            problem = f"has {size:,} bytes instead of {shard['bytes']:,}" if path.is_file() else "is missing"
            raise UserError(f"shard {path} {problem}: copy it again, or recreate it with data-shard")
        paths.append(str(path))
    try:
        lines = gzip.decompress((folder / INDEX_FILE).read_bytes()).decode().split("\n")  # names may have other breaks
        columns = list(zip(*(line.split("\t", 4) for line in lines), strict=True))
        shard, offset, size = (np.array(column, dtype=np.int64) for column in columns[:3])
    except (OSError, EOFError, ValueError) as error:
        raise UserError(
            f"{folder / INDEX_FILE} is damaged ({error}): copy it again, or recreate it with data-shard"
        ) from error
    if len(lines) != contents["manifest"].get("images"):
        raise UserError(
            f"{folder / INDEX_FILE} and {CONTENTS_FILE} do not match: copy both again, or recreate them with data-shard"
        )
    index = ShardIndex(paths, shard, offset, size)
    return PackedSplit(contents, list(columns[3]), list(map(unescape_name, columns[4])), index)


class ShardOrder:
    """An epoch order in which each rank reads sequentially through a few shards at a time.

    Shards are shuffled, and one pass over them is cut into streams that are read side by side. A step takes
    `STREAM_IMAGES` images of each stream (or fewer, so that streams divide the batch), shuffled within a window: they
    come from all over the dataset, while a rank, whose share of a step is a slice of it, reads few streams. The order
    depends on no rank or worker: for any number of them each image is used at most once an epoch, and a run can resume
    in mid-epoch.
    """

    def __init__(self, shard_index: ShardIndex, batch_size: int) -> None:
        self._index, self._batch_size = shard_index, batch_size
        self._cached_order = lru_cache(maxsize=2)(self._order)  # the epoch being prefetched and the one in progress

    def __call__(self, num_images: int, seed: int, epoch: int) -> np.ndarray:
        """Return a permutation of the image indices, `(num_images,)` int64."""
        assert num_images == len(self._index.shard)
        return self._cached_order(seed, epoch)

    def _order(self, seed: int, epoch: int) -> np.ndarray:
        rng = np.random.Generator(np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)))
        shard_rank = rng.permutation(len(self._index.paths))
        one_pass = np.lexsort((self._index.offset, shard_rank[self._index.shard]))
        max_streams = max(1, self._batch_size // STREAM_IMAGES)
        num_streams = max(number for number in range(1, max_streams + 1) if self._batch_size % number == 0)
        num_steps = len(one_pass) // self._batch_size
        used = num_steps * self._batch_size
        streams = one_pass[:used].reshape(num_streams, -1)
        for stream in streams:
            for start in range(0, len(stream), WINDOW_IMAGES):
                rng.shuffle(stream[start : start + WINDOW_IMAGES])
        steps = streams.reshape(num_streams, num_steps, -1).transpose(1, 0, 2).reshape(-1)
        return np.concatenate([steps, one_pass[used:]])
