"""Lists of pictures on disk, and reading one."""

import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from reproduce.config.schema import Dataset
from reproduce.data.datasets.shards import ShardIndex, read_index
from reproduce.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
SHARDS = "shards"
"""The layout of a data set that was packed by data-shard."""


DECODE_ERRORS = (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What decoding a file that is missing, cut or no picture may raise."""


class UnreadableImage(Exception):
    """A file that can't be decoded; `str()` names it and says why."""


@dataclass(frozen=True)
class ImageList:
    """Files and their class numbers; `classes` are the folders' names, sorted.

    Where they lie in shards, `paths` are those that they had in folders, and all else is as it was there.
    """

    paths: list[str]
    labels: list[int]
    classes: list[str]
    shard_index: ShardIndex | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, indices: Sequence[int]) -> "ImageList":
        """Only these, in this order; the classes stay."""
        shard_index = self.shard_index.subset(indices) if self.shard_index else None
        return ImageList([self.paths[i] for i in indices], [self.labels[i] for i in indices], self.classes, shard_index)

    def read_bytes(self, index: int) -> bytes:
        """One picture as it is stored; raises `UnreadableImage` where it can't be had."""
        try:
            return self.shard_index.read(index) if self.shard_index else Path(self.paths[index]).read_bytes()
        except OSError as error:
            raise UnreadableImage(f"{self.paths[index]} ({error})") from error

    def reading_order(self) -> np.ndarray:
        """All indices, in the order in which the disk reads the pictures best."""
        return self.shard_index.reading_order() if self.shard_index else np.arange(len(self))

    def sha256(self) -> str:
        """Hash of the files' names below their folders and of their labels: which pictures these are, wherever."""
        lines = (f"{label} {path.rsplit('/', 2)[-2:]}" for path, label in zip(self.paths, self.labels, strict=True))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_image_folder(root: Path) -> ImageList:
    """The pictures below `root/<class>/`, sorted by name; nested folders and other files are passed over.

    Raises `UserError` where the folder is not there or holds no picture.
    """
    if not root.is_dir():
        raise UserError(f"folder {root} is not there: DATA must hold it, with one folder of pictures per class")
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = sorted(e.path for e in os.scandir(root / name) if e.name.lower().endswith(SUFFIXES))
        paths += files
        labels += [label] * len(files)
    if not paths:
        raise UserError(f"folder {root} holds no pictures: it needs one folder per class with {', '.join(SUFFIXES)}")
    return ImageList(paths, labels, classes)


def read_sharded_images(root: Path, split: str) -> ImageList:
    """The pictures packed as the shards in `root/split`, in the order of the class folders that they come from."""
    about, labels, names, shard_index = read_index(root / split)
    return ImageList(
        [f"{root}/{name}" for name in names], [int(label) for label in labels], about["classes"], shard_index
    )


def read_image_list(root: Path, dataset: Dataset, split: str) -> ImageList:
    """A split of a set in class folders, or packed from such. Raises `UserError` where it is not there."""
    return read_sharded_images(root, split) if dataset.layout == SHARDS else read_image_folder(root / split)


def read_train_and_val(root: Path, dataset: Dataset) -> tuple[ImageList, ImageList]:
    """Both splits of a set; `UserError` where their class folders differ: one number would mean two classes."""
    first, second = (read_image_list(root, dataset, split) for split in (dataset.train, dataset.val))
    if first.classes != second.classes:
        strange = sorted(set(first.classes) ^ set(second.classes))[:5]
        where = f"{root / dataset.train} and {root / dataset.val}"
        raise UserError(f"{where} hold different class folders, e.g. {', '.join(strange)}")
    return first, second


def read_image(path: str, encoded: bytes | None = None) -> Image.Image:
    """Decode a file, or what it holds, to an RGB picture.

    Raises `UnreadableImage` naming the file where it is missing, cut or no picture.
    """
    try:
        with Image.open(path if encoded is None else io.BytesIO(encoded)) as image:
            return image.convert("RGB")
    except UnidentifiedImageError as error:  # whose words differ each time: they hold an address in memory
        raise UnreadableImage(f"{path} (no picture that PIL knows)") from error
    except DECODE_ERRORS as error:
        raise UnreadableImage(f"{path} ({error})") from error
