"""Batches on the training device: what the training loop and the evaluations iterate over."""

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from reproduce.config.schema import Crops, Normalize, View
from reproduce.data.datasets.image_folder import ImageList
from reproduce.data.pipeline.augment import augment
from reproduce.data.pipeline.center_crop import CenterCropDataset, collate_center_crops
from reproduce.data.pipeline.multicrop import MultiCropBatch, MultiCropDataset, collate_multicrop
from reproduce.data.pipeline.nvjpeg import EncodedDataset, collate_encoded, decoded_batches
from reproduce.data.pipeline.sampler import StepSampler
from reproduce.data.pipeline.upload import upload_ahead
from reproduce.system import SHARED_GPUS, STOP_SIGNALS, pinned_bytes, prefetch_batches, workers_per_gpu

OnUnreadable = Callable[[list[str]], None]
"""Called with the unreadable files of every batch (often none), each with its error: stops the run or counts them."""


def multicrop_batches(
    images: ImageList,
    recipe: Crops,
    normalize: Normalize,
    sampler: StepSampler,
    *,
    num_workers: int | None,
    device: torch.device,
    on_unreadable: OnUnreadable,
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Yield this rank's batch of each step: a list of augmented crops, and labels `(B,)` int64.

    Each crop is `(B, 3, S, S)` float32, normalized, on `device`; channels-last in memory, the layout in which CPU and
    GPU convolutions are fastest.
    """
    mean, std = _mean_and_std(normalize, device)
    cut = _cut_batches(images, recipe, sampler, num_workers, device)
    for batch, (*views, labels) in upload_ahead(cut, lambda batch: [*batch.crops, batch.labels], device):
        on_unreadable(batch.unreadable)
        crops: list[Tensor] = []
        for pixels, parameters, view in zip(views, batch.parameters, recipe.views, strict=True):
            crops += augment(pixels, parameters, mean, std).chunk(view.num)
        yield crops, labels


def _cut_batches(
    images: ImageList, recipe: Crops, sampler: StepSampler, num_workers: int | None, device: torch.device
) -> Iterable[MultiCropBatch]:
    """Return each step's crops before they are augmented: cut by the workers, or on the device by nvJPEG."""
    dataset = MultiCropDataset(images, recipe.views, recipe.augment, sampler.seed)
    if recipe.jpeg_decoder is None:
        return build_dataloader(
            dataset,
            num_workers,
            multicrop_bytes(recipe.views, sampler.images_per_rank),
            batch_sampler=sampler,
            collate_fn=collate_multicrop,
        )
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
    num_workers: int | None,
    device: torch.device,
    on_unreadable: OnUnreadable,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each readable image once, in order: indices `(B,)` and normalized pixels `(B, 3, crop_px, crop_px)`.

    Indices are int64 on the host; pixels are float32 on `device`, channels-last in memory.
    """
    mean, std = (each.view(3, 1, 1) for each in _mean_and_std(normalize, device))
    dataset = CenterCropDataset(images, resize_px, crop_px, interpolation)
    batch_bytes = pinned_bytes(batch_size * 3 * crop_px**2)
    loader = build_dataloader(dataset, num_workers, batch_bytes, batch_size=batch_size, collate_fn=collate_center_crops)
    for batch, (pixels,) in upload_ahead(loader, lambda batch: [batch.pixels], device):
        on_unreadable(batch.unreadable)
        if len(batch.indices):
            x = (pixels.to(mean.dtype) / 255 - mean) / std
            yield batch.indices, x.contiguous(memory_format=torch.channels_last)


def _mean_and_std(normalize: Normalize, device: torch.device) -> list[Tensor]:
    """Return the channels' mean and standard deviation, `(3,)` float32 each, of pixels in [0, 1]."""
    return [torch.tensor(list(values), device=device) for values in (normalize.mean, normalize.std)]


def multicrop_bytes(views: Sequence[View], num_images: int) -> int:
    """Return the pinned memory of a batch's crops, which are uint8: one tensor for each view."""
    return pinned_bytes(*(num_images * view.num * 3 * view.size_px**2 for view in views))


def build_dataloader(
    dataset: Dataset[Any], num_workers: int | None, batch_bytes: int = 0, **options: Any
) -> DataLoader[Any]:
    """Return a torch DataLoader whose workers ignore stop signals; `options` are torch's own.

    `num_workers` None is `default_num_workers()`. Fewer batches are prepared ahead if they have many `batch_bytes`,
    which changes no batch.
    """
    num_workers = default_num_workers() if num_workers is None else num_workers
    return DataLoader(
        dataset,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=prefetch_batches(num_workers, batch_bytes) if num_workers else None,
        worker_init_fn=_ignore_stop_signals,
        **options,
    )


def default_num_workers() -> int:
    """Return the workers of a process whose config gives none: on a GPU by the cores per GPU, on a CPU 1.

    The GPUs that share this machine's cores are those that this process sees, those of the run's other processes, and
    those that the harness shares among its runs.
    """
    if not torch.cuda.is_available():
        return 1  # the cores compute
    of_harness = len(os.environ.get(SHARED_GPUS, "").split(","))
    of_run = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return workers_per_gpu(max(torch.cuda.device_count(), of_run, of_harness))


def _ignore_stop_signals(_: int) -> None:
    """Ignore stop signals in a worker: schedulers and Ctrl-C reach every process; the run needs its workers to stop."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
