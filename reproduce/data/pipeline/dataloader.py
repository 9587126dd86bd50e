"""Batches on the training device: what the training loop and the evaluations iterate over."""

import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from reproduce.config.schema import Crops, Normalize
from reproduce.data.datasets.image_folder import ImageList
from reproduce.data.pipeline.augment import augment
from reproduce.data.pipeline.center_crop import CenterCropDataset, collate_center_crops
from reproduce.data.pipeline.multicrop import MultiCropBatch, MultiCropDataset, collate_multicrop
from reproduce.data.pipeline.nvjpeg import EncodedDataset, collate_encoded, decoded_batches
from reproduce.data.pipeline.sampler import StepSampler

OnUnreadable = Callable[[list[str]], None]
"""Called with the unreadable files of every batch (often none), each with its error: stops the run or counts them."""

PREFETCH_BATCHES = 4
"""Batches that each worker prepares ahead."""


def multicrop_batches(
    images: ImageList,
    recipe: Crops,
    normalize: Normalize,
    sampler: StepSampler,
    *,
    num_workers: int,
    device: torch.device,
    on_unreadable: OnUnreadable,
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Yield this rank's batch of each step: a list of augmented crops, and labels `(B,)` int64.

    Each crop is `(B, 3, S, S)` float32, normalized, on `device`; channels-last in memory, the layout in which CPU and
    GPU convolutions are fastest.
    """
    mean, std = _mean_and_std(normalize, device)
    for batch in _cut_batches(images, recipe, sampler, num_workers, device):
        on_unreadable(batch.unreadable)
        crops: list[Tensor] = []
        for pixels, parameters, view in zip(batch.crops, batch.parameters, recipe.views, strict=True):
            crops += augment(pixels.to(device, non_blocking=True), parameters, mean, std).chunk(view.num)
        yield crops, batch.labels.to(device, non_blocking=True)


def _cut_batches(
    images: ImageList, recipe: Crops, sampler: StepSampler, num_workers: int, device: torch.device
) -> Iterable[MultiCropBatch]:
    """Return each step's crops before they are augmented: cut by the workers, or on the device by nvJPEG."""
    dataset = MultiCropDataset(images, recipe.views, recipe.augment, sampler.seed)
    if recipe.jpeg_decoder is None:
        return build_dataloader(dataset, num_workers, batch_sampler=sampler, collate_fn=collate_multicrop)
    encoded = EncodedDataset(images, recipe.views, recipe.augment, sampler.seed)
    loader = build_dataloader(encoded, num_workers, batch_sampler=sampler, collate_fn=collate_encoded)
    return decoded_batches(loader, dataset, device)


def center_crop_batches(
    images: ImageList,
    resize_px: int,
    crop_px: int,
    interpolation: str,
    normalize: Normalize,
    *,
    batch_size: int,
    num_workers: int,
    device: torch.device,
    on_unreadable: OnUnreadable,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each readable image once, in order: indices `(B,)` and normalized pixels `(B, 3, crop_px, crop_px)`.

    Indices are int64 on the host; pixels are float32 on `device`, channels-last in memory.
    """
    mean, std = (each.view(3, 1, 1) for each in _mean_and_std(normalize, device))
    dataset = CenterCropDataset(images, resize_px, crop_px, interpolation)
    loader = build_dataloader(dataset, num_workers, batch_size=batch_size, collate_fn=collate_center_crops)
    for indices, pixels, unreadable in loader:
        on_unreadable(unreadable)
        if len(indices):
            x = (pixels.to(device, non_blocking=True).float() / 255 - mean) / std
            yield indices, x.contiguous(memory_format=torch.channels_last)


def _mean_and_std(normalize: Normalize, device: torch.device) -> list[Tensor]:
    """Return the channels' mean and standard deviation, `(3,)` float32 each, of pixels in [0, 1]."""
    return [torch.tensor(list(values), device=device) for values in (normalize.mean, normalize.std)]


def build_dataloader(dataset: Dataset[Any], num_workers: int, **options: Any) -> DataLoader[Any]:
    """Return a torch DataLoader whose workers ignore SIGTERM; `options` are torch's own."""
    return DataLoader(
        dataset,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=PREFETCH_BATCHES if num_workers else None,
        worker_init_fn=_ignore_sigterm,
        **options,
    )


def _ignore_sigterm(_: int) -> None:
    """Ignore SIGTERM in a worker: schedulers signal every process, and the run needs its workers to checkpoint."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
