"""Measure what a pretraining costs: `python -m reproduce.measure experiment=swav_800ep measurement=cost scale=paper`.

No images are read: the steps train on noise of the recipe's crop sizes.
"""

import itertools
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig
from torch import Tensor

from models.methods.base import PretrainTask
from models.networks.architectures import build_trunk
from reproduce.config.command_line import config_from_command_line
from reproduce.config.schema import Crops, Optimizer
from reproduce.config.validate import to_dataclass
from reproduce.data.datasets.imagenet import NUM_IMAGENET_CLASSES, NUM_IMAGENET_IMAGES
from reproduce.data.pipeline.sampler import StepSampler
from reproduce.engine.arithmetic import configure_torch
from reproduce.engine.batchnorm import BatchNormGroups
from reproduce.engine.distributed.collectives import device, process_group, rank, world_size
from reproduce.engine.distributed.processes import prepare_process
from reproduce.engine.loop import Trainer, build_nan_guard
from reproduce.engine.precision import loss_scaler
from reproduce.engine.runs.provenance import peak_memory_gb
from reproduce.engine.runs.run import Run, run_context
from reproduce.errors import UserError, run_cli
from reproduce.memory import estimate_memory
from reproduce.network import validate_runtime_options
from reproduce.pretrain import build_training

Batch = TypeVar("Batch")
NUM_PAPER_GPUS = 64
NUM_EPOCHS = 100
"""Table 1: 100 epochs of ImageNet on 64 GPUs, a 64th of the batch on each."""
FIRST_STEP = 1
"""Not 0: at an epoch's first step some methods label all images."""


@dataclass
class ParametersConfig:
    """The keys of conf/measurement/parameters.yaml."""

    name: str


@dataclass
class CostConfig:
    """The keys of conf/measurement/cost.yaml."""

    name: str
    images_per_step: int
    num_steps: int


class StepTimer:
    """Times steps without waiting for the device: by CUDA's events on a GPU, by the clock on a CPU."""

    def __init__(self, *, on_gpu: bool) -> None:
        self._on_gpu = on_gpu
        self._marks: list[Any] = []

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield `batches`; a step lasts from its batch to the next one."""
        for batch in batches:
            self._mark()
            yield batch
        self._mark()

    def seconds(self) -> list[float]:
        """Return the duration of each step; waits for the last one."""
        pairs = itertools.pairwise(self._marks)
        if not self._on_gpu:
            return [end - start for start, end in pairs]
        self._marks[-1].synchronize()
        return [start.elapsed_time(end) / 1000 for start, end in pairs]

    def _mark(self) -> None:
        self._marks.append(torch.cuda.Event(enable_timing=True) if self._on_gpu else time.perf_counter())
        if self._on_gpu:
            self._marks[-1].record()


def count_parameters(cfg: DictConfig) -> dict[str, float]:
    """Return the trunk's parameters in millions, as Table 2 counts them (B.2); none are allocated.

    A network that is not a ResNet (`network.architecture`) counts as `models.networks` builds it, with the classifier
    if that is a part of it.
    """
    to_dataclass(cfg.measurement, ParametersConfig, "measurement")
    with torch.device("meta"):
        trunk = build_trunk(cfg.network.architecture, cfg.network.width)
    return {"params_millions": sum(weight.numel() for weight in trunk.parameters()) / 1e6}


def measure_cost(cfg: DictConfig, run: Run) -> dict[str, float]:
    """Measure time and memory of training steps (B.1, Table 1), without reading and cropping images.

    GPUs run in the config's precision, CPUs in fp32. The time in which a method labels all images between epochs is not
    included.

    Return `seconds_per_image` of one device, the median over the steps after the first; `hours` that 100 epochs of
    ImageNet take at that speed on 64 such devices; and `peak_memory_gb`: on a GPU what was allocated at a 64th of the
    batch, on a CPU an estimate for a GPU (`reproduce.memory`) without convolution workspaces.
    """
    validate_runtime_options(cfg)
    measurement = to_dataclass(cfg.measurement, CostConfig, "measurement")
    on_gpu = device().type == "cuda"
    precision = cfg.precision if on_gpu else "fp32"  # CPUs emulate fp16
    if cfg.batch_size % NUM_PAPER_GPUS:
        raise UserError(
            f"config batch_size={cfg.batch_size}: the cost is that of one of {NUM_PAPER_GPUS} GPUs, so it must be a "
            f"multiple of {NUM_PAPER_GPUS}; take scale=paper"
        )
    images_per_device = cfg.batch_size // NUM_PAPER_GPUS if on_gpu else measurement.images_per_step
    batch_size = images_per_device * world_size()
    run.provenance["measured"] = (
        f"{images_per_device} images a step in {precision} on each of {world_size()} "
        f"{'GPUs' if on_gpu else 'CPU processes'}; "
        f"memory {'measured' if on_gpu else 'counted in bf16, not measured'}"
    )
    optimizer_config = to_dataclass(cfg.optimizer, Optimizer, "optimizer")
    crops = to_dataclass(cfg.crops, Crops, "crops")
    groups = BatchNormGroups(world_size())
    training = build_training(cfg, crops, NUM_IMAGENET_CLASSES, NUM_IMAGENET_IMAGES, batch_size, groups)
    num_steps = measurement.num_steps + 1  # the first is not counted
    sampler = StepSampler(NUM_IMAGENET_IMAGES, batch_size, 1, cfg.seed, FIRST_STEP, rank(), world_size())
    training.method.on_train_start(training.net_on_all_ranks, sampler, ())
    trainer = Trainer(
        task=PretrainTask(training.net_on_all_ranks, training.method, precision),
        optimizer=training.optimizer,
        learning_rates=lambda _: [optimizer_config.warmup_start_lr] * len(training.optimizer.param_groups),
        scaler=loss_scaler(precision, cfg.initial_loss_scale),
        guard=build_nan_guard(run, "optimizer.lr"),
    )
    batches = _noise_batches(crops, images_per_device, num_steps)
    timer = StepTimer(on_gpu=on_gpu)
    trainer.train(timer.timed(batches), FIRST_STEP, FIRST_STEP + num_steps)
    seconds = statistics.median(timer.seconds()[1:]) / images_per_device
    estimate = estimate_memory(_with_bf16(cfg), NUM_PAPER_GPUS, activation_checkpointing=False)
    return {
        "seconds_per_image": seconds,
        "hours": seconds * NUM_IMAGENET_IMAGES * NUM_EPOCHS / NUM_PAPER_GPUS / 3600,
        "peak_memory_gb": peak_memory_gb() if on_gpu else estimate.sum_gb,
    }


def _noise_batches(crops: Crops, num_images: int, num_steps: int) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Yield random crops `(num_images, 3, S, S)` and labels, the same in every step, so that they cost no time.

    Crops are channels-last in memory, as the input pipeline makes them.
    """
    torch.manual_seed(rank())
    sizes = [view.size_px for view in crops.views for _ in range(view.num)]
    batch = [
        torch.randn(num_images, 3, size, size, device=device()).contiguous(memory_format=torch.channels_last)
        for size in sizes
    ]
    labels = torch.zeros(num_images, dtype=torch.int64, device=device())
    return ((batch, labels) for _ in range(num_steps))


def _with_bf16(cfg: DictConfig) -> DictConfig:
    """Return `cfg` in mixed precision, in which Table 1 was measured."""
    mixed = cfg.copy()
    mixed.precision = "bf16"
    return mixed


def main() -> int:
    """Run the measurement of the command line; it leaves `result.json` in the run's folder."""
    prepare_process()
    cfg = config_from_command_line("measure", sys.argv[1:])
    configure_torch(cfg)
    with process_group(cfg.cluster.gpus_per_process, cfg.cluster.collective_timeout_minutes), run_context(cfg) as run:
        run.metrics.truncate(0)
        run.resumed_from(0)
        run.finish(count_parameters(cfg) if cfg.measurement.name == "parameters" else measure_cost(cfg, run))
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
