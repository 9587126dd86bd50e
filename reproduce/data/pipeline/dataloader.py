"""Batches ready on the device: what the loop and the evaluations iterate over."""

import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from reproduce.config.schema import Crops, Normalize
from reproduce.data.datasets.image_folder import ImageList, UnreadableImage, read_image
from reproduce.data.pipeline.augment import augment
from reproduce.data.pipeline.sampler import MultiCropDataset, StepSampler, collate_crops

OnUnreadable = Callable[[list[str]], None]
"""What to do with the names of files that could not be decoded: stop, or count and go on."""

CenterCropSample = tuple[int, np.ndarray | None, str]
"""Index, pixels `(3, crop_px, crop_px)` uint8, and "" - or None and what is wrong with the file."""


def multicrop_batches(
    pictures: ImageList,
    recipe: Crops,
    sampler: StepSampler,
    *,
    num_workers: int,
    device: torch.device,
    on_unreadable: OnUnreadable,
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Per step this rank's crops, a list of normalised `(B, 3, S, S)` float32, and labels `(B,)`.

    Channels-last in memory: what both CPU and GPU convolutions are fastest on.
    """
    mean, std = _mean_and_std(recipe.normalize, device)
    dataset = MultiCropDataset(pictures, recipe.views, recipe.augment, sampler.seed)
    loader = data_loader(dataset, num_workers, batch_sampler=sampler, collate_fn=collate_crops)
    for batch in loader:
        on_unreadable(batch.bad)
        crops: list[Tensor] = []
        for pixels, parameters, view in zip(batch.crops, batch.parameters, recipe.views, strict=True):
            crops += augment(pixels.to(device, non_blocking=True), parameters, mean, std).chunk(view.num)
        yield crops, batch.labels.to(device, non_blocking=True)


def _mean_and_std(normalize: Normalize, device: torch.device) -> list[Tensor]:
    return [torch.tensor(list(values), device=device) for values in (normalize.mean, normalize.std)]


class CenterCropDataset(Dataset[CenterCropSample]):
    """Each picture once, resized to `resize_px` on its shorter side and cut to its `crop_px` centre."""

    def __init__(self, pictures: ImageList, resize_px: int, crop_px: int) -> None:
        self.pictures, self.resize_px, self.crop_px = pictures, resize_px, crop_px

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> CenterCropSample:
        """Picture `index`, cut."""
        try:
            image = read_image(self.pictures.paths[index], self.pictures.read_bytes(index))
        except UnreadableImage as error:
            return index, None, str(error)
        width, height = image.size
        shorter = min(width, height)
        size = int(self.resize_px * width / shorter), int(self.resize_px * height / shorter)
        image = image.resize(size, Image.Resampling.BILINEAR)
        left, top = round((image.width - self.crop_px) / 2), round((image.height - self.crop_px) / 2)
        box = (left, top, left + self.crop_px, top + self.crop_px)
        return index, np.asarray(image.crop(box)).transpose(2, 0, 1), ""


def center_crop_batches(
    pictures: ImageList,
    resize_px: int,
    crop_px: int,
    normalize: Normalize,
    *,
    batch_size: int,
    num_workers: int,
    device: torch.device,
    on_unreadable: OnUnreadable,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Each picture once, in order: indices `(B,)` and normalised pixels `(B, 3, crop_px, crop_px)`."""
    mean, std = (each.view(3, 1, 1) for each in _mean_and_std(normalize, device))
    dataset = CenterCropDataset(pictures, resize_px, crop_px)
    loader = data_loader(dataset, num_workers, batch_size=batch_size, collate_fn=_collate_centres)
    for indices, pixels, bad in loader:
        on_unreadable(bad)
        if len(indices):
            x = (pixels.to(device, non_blocking=True).float() / 255 - mean) / std
            yield indices, x.contiguous(memory_format=torch.channels_last)


def _collate_centres(samples: list[CenterCropSample]) -> tuple[Tensor, Tensor, list[str]]:
    good = [(index, pixels) for index, pixels, _ in samples if pixels is not None]
    pixels = torch.from_numpy(np.stack([pixels for _, pixels in good])) if good else torch.empty(0)
    return torch.tensor([index for index, _ in good]), pixels, [bad for _, _, bad in samples if bad]


def data_loader(dataset: Dataset[Any], num_workers: int, **arguments: Any) -> DataLoader[Any]:
    """A loader whose workers leave signals to the run itself; `arguments` are torch's own."""
    return DataLoader(
        dataset,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if num_workers else None,
        worker_init_fn=_leave_stopping_to_the_parent,
        **arguments,
    )


def _leave_stopping_to_the_parent(_: int) -> None:
    """A scheduler signals every process of a job; a worker that died of it would take the last save with it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
