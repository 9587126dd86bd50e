"""From a list of pictures to batches, the same whatever the number of workers and processes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from reproduce.config.schema import Augment, View
from reproduce.data.datasets.image_folder import ImageList, UnreadableImage
from reproduce.data.datasets.shards import ShardOrder
from reproduce.data.pipeline.image_io import decode
from reproduce.data.pipeline.multicrop import generator, multi_crop
from reproduce.errors import UserError

Read = TypeVar("Read")

Sample = tuple[list[tuple[Tensor, Tensor]], int, list[str]]
"""Per view its crops and parameters; the label; names of files that could not be read."""


@dataclass
class CropBatch:
    """One rank's share of a step: per view crops `(num * B, 3, S, S)` uint8, crop by crop, and their parameters."""

    crops: list[Tensor]
    parameters: list[Tensor]
    labels: Tensor
    bad: list[str]


@lru_cache(maxsize=2)  # of the steps prefetched and the one under way
def epoch_permutation(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """The shuffled order of all pictures in one epoch; the same on every rank."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64))).permutation(num_images)


Order = Callable[[int, int, int], np.ndarray]
"""From the number of pictures, the seed and the epoch to the order of all pictures; the same on every rank."""


def epoch_order_for(pictures: ImageList, batch_size: int) -> Order:
    """Any order for files of their own; for shards one that reads forward."""
    return ShardOrder(pictures.shard_index, batch_size) if pictures.shard_index else epoch_permutation


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Per step this rank's (epoch, index) pairs, from `first_step` to the end of the last epoch.

    A step's global batch is a run of the epoch's order, cut into consecutive shares; the last, incomplete batch of an
    epoch is dropped. One sampler covers all epochs, so workers live through the whole run.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        epochs: int,
        seed: int,
        first_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        order: Order = epoch_permutation,
    ) -> None:
        if batch_size % world_size:
            raise UserError(f"batch_size {batch_size} can't be shared evenly by {world_size} processes")
        self.steps_per_epoch = num_images // batch_size
        if epochs and not self.steps_per_epoch:
            raise UserError(
                f"the training set has {num_images} pictures, fewer than one batch of {batch_size}: "
                "give more pictures or a smaller batch_size"
            )
        self.num_images, self.batch_size, self.epochs, self.seed = num_images, batch_size, epochs, seed
        self.first_step, self.rank, self.share, self.order = first_step, rank, batch_size // world_size, order

    def __len__(self) -> int:
        return self.epochs * self.steps_per_epoch - self.first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.first_step, self.epochs * self.steps_per_epoch):
            epoch = step // self.steps_per_epoch
            yield [(epoch, int(index)) for index in self.indices_at(step)]

    def indices_at(self, step: int) -> np.ndarray:
        """Indices of this rank's pictures in a step, of those that it yields or any other."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.batch_size + self.rank * self.share
        return self.order(self.num_images, self.seed, epoch)[start : start + self.share]


class MultiCropDataset(Dataset[Sample]):
    """Crops and augmentation parameters of each image, per epoch."""

    def __init__(self, pictures: ImageList, views: Sequence[View], augment: Augment, seed: int) -> None:
        self.pictures, self.views, self.augment, self.seed = pictures, views, augment, seed

    def __getitem__(self, at: tuple[int, int]) -> Sample:
        """The views of picture `index` in `epoch`, its label, and the files that were passed over to get them."""
        epoch, index = at
        pictures = self.pictures
        instead, image, bad = read_or_next(
            len(pictures), index, lambda number: decode(pictures.read_bytes(number), pictures.paths[number])
        )
        views = multi_crop(image, self.views, self.augment, generator(self.seed, epoch, index))
        return views, pictures.labels[instead], bad


def read_or_next(num_images: int, index: int, read: Callable[[int], Read]) -> tuple[int, Read, list[str]]:
    """Picture `index`, or the next that can be read, so that a batch keeps its size: its number, it, what was bad."""
    bad: list[str] = []
    for shift in range(num_images):
        instead = (index + shift) % num_images
        try:
            return instead, read(instead), bad
        except UnreadableImage as error:
            bad.append(str(error))
    raise UserError(f"none of the {num_images} pictures can be read; the first: {bad[0]}")


def collate_crops(samples: list[Sample]) -> CropBatch:
    """Stack pictures crop by crop: `(num * B, ...)`, crop 0 of all pictures first."""
    views = list(zip(*(views for views, _, _ in samples), strict=True))
    crops = [torch.stack([crops for crops, _ in view], dim=1).flatten(0, 1) for view in views]
    rows = [torch.stack([rows for _, rows in view], dim=1).flatten(0, 1) for view in views]
    labels = torch.tensor([label for _, label, _ in samples])
    return CropBatch(crops, rows, labels, [bad for _, _, names in samples for bad in names])
