"""What a detector is trained and tested on: Detectron2's records and augmentations, in an order that is ours."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler

from evals.voc_detection.compatibility import BoxMode, CfgNode, DatasetMapper
from reproduce.data.datasets.image_file import DECODE_ERRORS
from reproduce.data.datasets.voc import VocImage
from reproduce.data.pipeline.sampler import epoch_permutation, rng_for
from reproduce.errors import UserError

Record = dict[str, Any]
"""A picture as Detectron2 hands it on."""
GROUP = 2
"""Pictures of one orientation that stand together in a batch, to be padded less: what each of 8 GPUs has of 16."""


def record(picture: VocImage) -> Record:
    """A picture in Detectron2's standard form. Difficult objects are trained on, as its own VOC loader has it."""
    boxes = [
        {"category_id": box.label, "bbox": list(box.corners), "bbox_mode": BoxMode.XYXY_ABS} for box in picture.boxes
    ]
    return {
        "file_name": picture.path,
        "image_id": picture.name,
        "width": picture.width,
        "height": picture.height,
        "annotations": boxes,
    }


class GroupedSteps(Sampler[list[tuple[int, int]]]):
    """Per step this rank's (step * batch + place, index) pairs, from `first_step` to `num_steps`.

    Every picture once an epoch, in pairs of one orientation, the same on any number of ranks. A batch is the next pairs
    of the endless stream, whatever epoch they are of. Raises `UserError` where a batch is of no whole pairs, or can't
    be shared.
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
        if batch_size % GROUP or batch_size % world_size:
            raise UserError(
                f"protocol.batch_size {batch_size} must be a multiple of {GROUP} and of the {world_size} processes"
            )
        if not wide:
            raise UserError("no training picture has a box: nothing to train a detector on")
        self.wide, self.batch_size, self.seed = wide, batch_size, seed
        self.first_step, self.num_steps, self.rank, self.share = first_step, num_steps, rank, batch_size // world_size

    def __len__(self) -> int:
        return self.num_steps - self.first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        stream = self._stream()
        for step in range(self.num_steps):
            batch = [(step * self.batch_size + place, next(stream)) for place in range(self.batch_size)]
            if step >= self.first_step:
                yield batch[self.rank * self.share : (self.rank + 1) * self.share]

    def _stream(self) -> Iterator[int]:
        waiting: dict[bool, list[int]] = {True: [], False: []}
        epoch = 0
        while True:
            for index in epoch_permutation(len(self.wide), self.seed, epoch).tolist():
                group = waiting[self.wide[index]]
                group.append(index)
                if len(group) == GROUP:
                    yield from group
                    group.clear()
            epoch += 1


class Training(Dataset[tuple[Record, list[str]]]):
    """Pictures resized and flipped at random, with their boxes; and the files that could not be decoded on the way."""

    def __init__(self, pictures: list[VocImage], cfg: CfgNode, seed: int) -> None:
        self.pictures, self.seed = pictures, seed
        self.mapper = DatasetMapper(cfg, is_train=True)

    def __getitem__(self, at: tuple[int, int]) -> tuple[Record, list[str]]:
        """Picture `index` as it is seen at a place of the run: the augmentation depends on nothing else."""
        place, index = at
        np.random.seed(rng_for(self.seed, 0, place).integers(2**32))  # noqa: NPY002 - what Detectron2 draws from
        bad: list[str] = []
        for shift in range(len(self.pictures)):
            # A picture that can't be decoded is replaced by the next one, so that the batch keeps its size.
            picture = self.pictures[(index + shift) % len(self.pictures)]
            try:
                return self.mapper(record(picture)), bad
            except DECODE_ERRORS as error:
                bad.append(f"{picture.path} ({error})")
        raise UserError(f"none of the {len(self.pictures)} training pictures can be decoded; the first: {bad[0]}")


class Testing(Dataset[tuple[Record | None, str]]):
    """Each picture once, at the size of the test; None and why where it can't be decoded."""

    def __init__(self, pictures: list[VocImage], cfg: CfgNode) -> None:
        self.pictures = pictures
        self.mapper = DatasetMapper(cfg, is_train=False)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Record | None, str]:
        """Picture `index`."""
        picture = self.pictures[index]
        try:
            return self.mapper(record(picture)), ""
        except DECODE_ERRORS as error:
            return None, f"{picture.path} ({error})"


def together(samples: list[tuple[Record, list[str]]]) -> tuple[list[Record], list[str]]:
    """Detectron2 takes a batch as a list: pictures differ in size."""
    return [item for item, _ in samples], [name for _, names in samples for name in names]
