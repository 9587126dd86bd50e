"""Labeled images in one folder per class, or packed from such folders into shards."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reproduce.config.schema import Dataset
from reproduce.data.datasets.class_folders import SUFFIXES_IN_WORDS, list_class_folders, passed_over
from reproduce.data.datasets.image_file import UnreadableImage
from reproduce.data.datasets.shards import ShardIndex, read_packed_split
from reproduce.errors import UserError, few
from reproduce.files import sha256_of_lines

SHARDS = "shards"
"""The `layout` of a dataset that `data-shard` packed."""


@dataclass(frozen=True)
class ImageList:
    """Image paths and their class numbers, as indices into `classes` (folder names, sorted).

    If the images are in shards, `paths` are those that they had in folders, and everything else is the same.
    """

    paths: list[str]
    labels: list[int]
    classes: list[str]
    shard_index: ShardIndex | None = None
    passed_over: str = ""
    """A sentence on files that are in the folders but not in the list; "" if there are none."""

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, indices: Sequence[int]) -> "ImageList":
        """Return the images at `indices`, in that order, with all classes."""
        shard_index = self.shard_index.subset(indices) if self.shard_index else None
        return ImageList([self.paths[i] for i in indices], [self.labels[i] for i in indices], self.classes, shard_index)

    def read_bytes(self, index: int) -> bytes:
        """Return the encoded content of image `index`. Raises `UnreadableImage` if it can't be read."""
        try:
            return self.shard_index.read(index) if self.shard_index else Path(self.paths[index]).read_bytes()
        except OSError as error:
            raise UnreadableImage(f"{self.paths[index]} ({error})") from error

    def reading_order(self) -> np.ndarray:
        """Return all indices, `(n,)` int64, in the order in which they can be read sequentially from disk."""
        return self.shard_index.reading_order() if self.shard_index else np.arange(len(self))

    def sha256(self) -> str:
        """Return a hash of the labels and of `class/file` names: which images these are, wherever they are stored."""
        lines = (f"{label} {path.rsplit('/', 2)[-2:]}" for path, label in zip(self.paths, self.labels, strict=True))
        return sha256_of_lines(lines)


def read_image_folder(root: Path) -> ImageList:
    """List the images in `root/<class>/` and the folders below it, sorted by class and name.

    Raises `UserError` if the folder is missing or has no class, or if a class has no image.
    """
    if not root.is_dir():
        raise UserError(f"folder {root} is missing: DATA must contain it, with one folder of images per class")
    folders = list_class_folders(root)
    paths: list[str] = []
    labels: list[int] = []
    empty: list[str] = []
    others: list[str] = []
    hidden = list(folders.hidden)
    for label, (name, found) in enumerate(zip(folders.classes, folders.list_each(), strict=True)):
        paths += [f"{root}/{name}/{image}" for image in found.images]
        labels += [label] * len(found.images)
        others += [f"{name}/{other}" for other in found.others]
        hidden += [f"{name}/{each}" for each in found.hidden]
        if not found.images:
            empty.append(f"{name} (which has {few(sorted(found.others))})" if found.others else name)
    sentence = passed_over(root, folders.stray, others, hidden)
    if not paths:
        raise UserError(
            f"folder {root} contains no images: it needs one folder per class with {SUFFIXES_IN_WORDS}"
            + (f" ({sentence})" if sentence else "")
        )
    if empty:
        raise UserError(
            f"class folders of {root} have no images ({len(empty):,}): {few(sorted(empty))}; add images "
            f"({SUFFIXES_IN_WORDS}) or remove the folders, because a class without an image changes every accuracy"
        )
    return ImageList(paths, labels, folders.classes, passed_over=sentence)


def read_sharded_images(root: Path, split: str) -> ImageList:
    """List the images packed in the shards of `root/split`, in the order of the class folders they were packed from.

    Raises `UserError` if a shard is missing or has another size than when it was written.
    """
    packed = read_packed_split(root / split)
    paths = [f"{root}/{name}" for name in packed.names]
    return ImageList(paths, [int(label) for label in packed.labels], packed.contents["classes"], packed.index)


def read_image_list(root: Path, dataset: Dataset, split: str) -> ImageList:
    """List the images of a split, from class folders or from shards. Raises `UserError` if it is missing."""
    return read_sharded_images(root, split) if dataset.layout == SHARDS else read_image_folder(root / split)


def read_train_and_val(root: Path, dataset: Dataset) -> tuple[ImageList, ImageList]:
    """List the images of both splits.

    Raises `UserError` if their class folders differ: one label would then mean two classes.
    """
    train, val = (read_image_list(root, dataset, split) for split in (dataset.train, dataset.val))
    if train.classes != val.classes:
        different = sorted(set(train.classes) ^ set(val.classes))[:5]
        folders = f"{root / dataset.train} and {root / dataset.val}"
        lower = [sorted(name.lower() for name in split.classes) for split in (train, val)]
        case = ", which differ only in upper and lower case: rename them" if lower[0] == lower[1] else ""
        raise UserError(f"{folders} have different class folders, e.g. {', '.join(different)}{case}")
    return train, val
