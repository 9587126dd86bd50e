"""Detectron2's datasets and augmentations of our images, in an order of our own."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler

from evals.voc_detection.compatibility import BoxMode, CfgNode, DatasetMapper
from reproduce.data.datasets.image_file import UnreadableImage
from reproduce.data.datasets.voc import VocImage
from reproduce.data.pipeline.image_io import read_or_next
from reproduce.data.pipeline.sampler import epoch_permutation, rng_for
from reproduce.errors import UserError

DatasetDict = dict[str, Any]
"""An image in Detectron2's standard format."""
GROUP_SIZE = 2
"""Consecutive images of one orientation, which need less padding: the share of each of 8 GPUs in a batch of 16."""


def to_dataset_dict(image: VocImage) -> DatasetDict:
    """Convert an image to Detectron2's format. Difficult objects are trained on, as in its own VOC loader."""
    boxes = [
        {"category_id": box.label, "bbox": list(box.corners), "bbox_mode": BoxMode.XYXY_ABS} for box in image.boxes
    ]
    return {
        "file_name": image.path,
        "image_id": image.key,
        "width": image.width,
        "height": image.height,
        "annotations": boxes,
    }


def _map(mapper: DatasetMapper, image: VocImage) -> DatasetDict:
    """Read and transform an image. Raises `UnreadableImage` if it can't be decoded or has another size than before."""
    try:
        mapped: DatasetDict = mapper(to_dataset_dict(image))
    except ValueError as error:
        raise UnreadableImage(f"{image.path} ({error})") from error
    return mapped


class AspectRatioGroupedSampler(Sampler[list[tuple[int, int]]]):
    """Samples this rank's (position, image index) pairs of each step from `first_step` to `num_steps`.

    A position counts the images of the whole run. Every image comes once per epoch, in pairs of one orientation, in the
    same order on any number of ranks. A batch is the next pairs of this stream, which may span two epochs. Raises
    `UserError` if a batch does not consist of whole pairs or cannot be shared evenly, and if there is no image.
    """

    def __init__(
        self,
        wide: list[bool],
        batch_size: int,
        seed: int,
        first_step: int,
        num_steps: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size % GROUP_SIZE or batch_size % world_size:
            raise UserError(
                f"protocol.batch_size {batch_size} must be a multiple of {GROUP_SIZE} and of the {world_size} processes"
            )
        if not wide:
            raise UserError("no training image has a box: there is nothing to train a detector on")
        self.wide, self.batch_size, self.seed = wide, batch_size, seed
        self.first_step, self.num_steps = first_step, num_steps
        self.rank, self.images_per_rank = rank, batch_size // world_size

    def __len__(self) -> int:
        return self.num_steps - self.first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        stream = self._stream()
        for step in range(self.num_steps):
            batch = [(step * self.batch_size + offset, next(stream)) for offset in range(self.batch_size)]
            if step >= self.first_step:
                yield batch[self.rank * self.images_per_rank : (self.rank + 1) * self.images_per_rank]

    def _stream(self) -> Iterator[int]:
        groups: dict[bool, list[int]] = {True: [], False: []}
        epoch = 0
        while True:
            for index in epoch_permutation(len(self.wide), self.seed, epoch).tolist():
                group = groups[self.wide[index]]
                group.append(index)
                if len(group) == GROUP_SIZE:
                    yield from group
                    group.clear()
            epoch += 1


class TrainDataset(Dataset[tuple[DatasetDict, list[str]]]):
    """Images resized and flipped at random, with their boxes, and the unreadable files that were skipped."""

    def __init__(self, images: list[VocImage], cfg: CfgNode, seed: int) -> None:
        self.images, self.seed = images, seed
        self.mapper = DatasetMapper(cfg, is_train=True)

    def __getitem__(self, at: tuple[int, int]) -> tuple[DatasetDict, list[str]]:
        """Return image `index`, augmented by a draw that depends on seed and position only."""
        position, index = at
        np.random.seed(rng_for(self.seed, 0, position).integers(2**32))  # noqa: NPY002 - what Detectron2 draws from
        _, mapped, unreadable = read_or_next(
            len(self.images), index, lambda number: _map(self.mapper, self.images[number])
        )
        return mapped, unreadable


class TestDataset(Dataset[tuple[DatasetDict | None, str]]):
    """Each image once, at the test size, or None and the error of an unreadable file."""

    def __init__(self, images: list[VocImage], cfg: CfgNode) -> None:
        self.images = images
        self.mapper = DatasetMapper(cfg, is_train=False)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[DatasetDict | None, str]:
        """Return image `index`."""
        image = self.images[index]
        try:
            return _map(self.mapper, image), ""
        except UnreadableImage as error:
            return None, str(error)


def collate(samples: list[tuple[DatasetDict, list[str]]]) -> tuple[list[DatasetDict], list[str]]:
    """Return a batch as the list that Detectron2 takes, since images differ in size, and the unreadable files."""
    return [item for item, _ in samples], [name for _, names in samples for name in names]
