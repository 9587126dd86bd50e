"""Training steps of R50 with multi-crop in bf16, on input that comes from further and further away."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice, repeat
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch._C._autograd import DeviceType  # torch.autograd has it, too, but does not export it
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from models.methods.base import PretrainTask
from models.methods.registry import parse_config
from reproduce.config.compose import compose
from reproduce.config.schema import Crops, Normalize, Optimizer
from reproduce.config.validate import to_dataclass
from reproduce.data.datasets.image_folder import ImageList
from reproduce.data.pipeline import dataloader
from reproduce.data.pipeline.augment import augment
from reproduce.data.pipeline.dataloader import build_dataloader, multicrop_batches
from reproduce.data.pipeline.multicrop import MultiCropBatch, MultiCropDataset, collate_multicrop
from reproduce.data.pipeline.sampler import StepSampler
from reproduce.engine.distributed.collectives import device
from reproduce.engine.loop import Trainer
from reproduce.engine.nan_guard import FiniteGuard
from reproduce.engine.optimizer import build_optimizer
from reproduce.engine.precision import loss_scaler
from reproduce.network import build_network
from reproduce.system import PREFETCH_BATCHES
from tests.benchmarks.gpu.sizes import Size

Batch = tuple[list[Tensor], Tensor]
PRECISION = "bf16"
FIRST_STEP = 2
"""From here on prototypes train: an epoch of these trainings is one step."""
COPIES = ("Memcpy", "Memset")
"""What the profiler's names of events start with that are no kernels."""


def synchronize() -> None:
    """Wait for the device."""
    if device().type == "cuda":
        torch.cuda.synchronize()


def pretraining_config(size: Size) -> DictConfig:
    """Return the config of SwAV's main recipe."""
    overrides = ["experiment=swav_800ep", f"scale={size.scale}", f"precision={PRECISION}", "paths.data_root=none"]
    return compose("pretrain", [*overrides, *size.overrides])


class Training:
    """SwAV's main recipe on `num_images` images a step, under the loop of real runs."""

    def __init__(self, size: Size, num_images: int) -> None:
        cfg = pretraining_config(size)
        config, build = parse_config(cfg.method)
        net = build_network(cfg, config)
        optimizer_config = to_dataclass(cfg.optimizer, Optimizer, "optimizer")
        method = build(config, net, num_images, num_images)
        self.size, self.num_images, self.net, self.method = size, num_images, net, method
        self.recipe = to_dataclass(cfg.crops, Crops, "crops")
        self.normalize = to_dataclass(cfg.normalize, Normalize, "normalize")
        self.step = FIRST_STEP
        self.trainer: Trainer[Batch] = Trainer(
            task=PretrainTask(net, method, PRECISION),
            optimizer=build_optimizer(net.parameters(), optimizer_config),
            learning_rates=lambda _: [optimizer_config.warmup_start_lr],
            scaler=loss_scaler(PRECISION),
            guard=FiniteGuard(_refuse_dump),
        )

    def train(self, batches: Iterable[Batch], num_steps: int) -> None:
        """Take `num_steps` steps."""
        self.trainer.train(islice(batches, num_steps), self.step, self.step + num_steps)
        self.step += num_steps

    def seconds_per_step(self, batches: Iterator[Batch], num_workers: int = 0) -> float:
        """Return the time of a step, the mean over many."""
        num_steps = self._warmed_up(batches, num_workers)
        synchronize()
        started = time.perf_counter()
        self.train(batches, num_steps)
        synchronize()
        return (time.perf_counter() - started) / num_steps

    def _warmed_up(self, batches: Iterator[Batch], num_workers: int) -> int:
        """Take the warm-up's steps; return how many to measure.

        Workers prepare batches during the warm-up: one each (runs: four), and three times as many are measured.
        """
        with mock.patch.object(dataloader, "prefetch_batches", return_value=1):
            self.train(batches, self.size.num_warmup_steps)
        return max(self.size.num_steps, 3 * num_workers)

    def resident(self) -> Iterator[Batch]:
        """Yield normalized noise that lies on the device: the bound, with no input at all."""
        sizes = [view.size_px for view in self.recipe.views for _ in range(view.num)]
        crops = [
            torch.randn(self.num_images, 3, px, px, device=device()).contiguous(memory_format=torch.channels_last)
            for px in sizes
        ]
        return repeat((crops, torch.zeros(self.num_images, dtype=torch.int64, device=device())))

    def augmented(self, batch: MultiCropBatch) -> Iterator[Batch]:
        """Yield uint8 crops that lie on the device, augmented anew for each step."""
        mean, std = (torch.tensor(list(each), device=device()) for each in (self.normalize.mean, self.normalize.std))
        on_device, labels = [crops.to(device()) for crops in batch.crops], batch.labels.to(device())
        while True:
            crops: list[Tensor] = []
            for pixels, parameters, view in zip(on_device, batch.parameters, self.recipe.views, strict=True):
                crops += augment(pixels, parameters, mean, std).chunk(view.num)
            yield crops, labels

    def uploaded(self, images: ImageList, batch: MultiCropBatch) -> Iterator[Batch]:
        """Yield uint8 crops that lie in pinned memory, uploaded and augmented for each step, as a run does it."""
        ready = batch.pin_memory() if device().type == "cuda" else batch
        num_batches = self.size.num_warmup_steps + self.size.num_steps + 2
        with mock.patch.object(dataloader, "build_dataloader", return_value=[ready] * num_batches):
            yield from self.loaded(images, num_workers=0)

    def loaded(self, images: ImageList, num_workers: int, jpeg_decoder: str | None = None) -> Iterator[Batch]:
        """Yield crops of JPEG files, read and cut by `num_workers` processes, or read by them and cut on the GPU."""
        return multicrop_batches(
            images, replace(self.recipe, jpeg_decoder=jpeg_decoder), self.normalize, self.sampler(images),
            num_workers=num_workers, device=device(), on_unreadable=_refuse_unreadable,
        )  # fmt: skip

    def sampler(self, images: ImageList) -> StepSampler:
        """Return a sampler of more steps than any measurement takes."""
        return StepSampler(len(images), self.num_images, 1 + 1000 * self.num_images // len(images), seed=0)

    def host_batches(self, images: ImageList, num_workers: int) -> Iterator[MultiCropBatch]:
        """Yield what the loader's workers make, without any work on the device."""
        dataset = MultiCropDataset(images, self.recipe.views, self.recipe.augment, seed=0)
        loader = build_dataloader(
            dataset, num_workers, batch_sampler=self.sampler(images), collate_fn=collate_multicrop
        )
        return iter(loader)

    def images_per_second_of_loader(self, images: ImageList, num_workers: int) -> float:
        """Return how many images the workers decode and crop in a second if nobody trains on them."""
        batches = self.host_batches(images, num_workers)
        for _ in islice(batches, max(1, num_workers) * PREFETCH_BATCHES):
            pass  # what was prepared ahead
        started = time.perf_counter()
        num_batches = len(list(islice(batches, self.size.num_steps * max(1, num_workers))))
        return num_batches * self.num_images / (time.perf_counter() - started)

    def flops_per_step(self) -> int:
        """Count the floating-point operations of a step: products and convolutions, forward and backward."""
        with FlopCounterMode(display=False) as counter:
            self.train(self.resident(), 1)
        return int(counter.get_total_flops())

    def device_activity(self, batches: Iterator[Batch], num_workers: int) -> dict[str, float]:
        """Return kernels a step and the share of the time in which the GPU does nothing; {} without a GPU."""
        if device().type != "cuda":
            return {}
        num_steps = self._warmed_up(batches, num_workers)
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            self.train(batches, num_steps)
            synchronize()
        events = [event for event in profiler.events() or [] if event.device_type == DeviceType.CUDA]
        kernels = [event for event in events if not event.name.startswith(COPIES)]
        intervals = sorted((event.time_range.start, event.time_range.end) for event in kernels)
        return {"launches": len(kernels) / num_steps, "idle_share": 1 - busy_share(intervals)}


def busy_share(intervals: list[tuple[float, float]]) -> float:
    """Return which share of the time from the first start to the last end lies in at least one interval."""
    first, busy, reached = intervals[0][0], 0.0, intervals[0][0]
    for start, end in intervals:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return busy / (reached - first)


def matrix_product_flops(size: Size) -> float:
    """Return the operations per second of a plain bf16 matrix product, measured here."""
    a, b = torch.randn(2, size.matrix, size.matrix, device=device()).bfloat16()
    for _ in range(3):
        a @ b
    synchronize()
    started = time.perf_counter()
    for _ in range(size.num_steps):
        a @ b
    synchronize()
    return 2 * size.matrix**3 * size.num_steps / (time.perf_counter() - started)


def _refuse_dump(tensors: dict[str, Any]) -> Path:
    """Stop at a loss that is not finite."""
    raise RuntimeError(f"the loss is {tensors['loss'].item()}")


def _refuse_unreadable(names: list[str]) -> None:
    """Stop at a file that can't be decoded."""
    if names:
        raise RuntimeError(f"can't decode {names[0]}")
