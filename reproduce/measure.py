"""What a pretraining costs: `python -m reproduce.measure experiment=swav_800ep measurement=cost scale=paper`.

No pictures are read: steps run on noise of the recipe's sizes.
"""

import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from omegaconf import DictConfig
from torch import Tensor

from models.methods import registry
from models.methods.base import PretrainTask
from models.networks.resnet import resnet50
from reproduce.config.command_line import config_from_command_line
from reproduce.config.schema import Crops, Optimizer
from reproduce.config.validate import to_dataclass
from reproduce.data.pipeline.sampler import StepSampler
from reproduce.engine.batchnorm import wrap_for_distributed
from reproduce.engine.distributed.collectives import device, process_group, rank, world_size
from reproduce.engine.loop import StepLogger, Trainer, nan_guard
from reproduce.engine.optimizer import build_optimizer
from reproduce.engine.precision import loss_scaler
from reproduce.engine.runs.provenance import peak_memory_gb
from reproduce.engine.runs.run import Run, run_context
from reproduce.errors import run_cli
from reproduce.memory import IMAGENET_CLASSES, memory
from reproduce.network import build_network, check_machine

PAPER_DEVICES = 64
IMAGENET_IMAGES = 1_281_167
MIDDLE = 1
"""A step at which no epoch begins."""
EPOCHS = 100
"""Table 1: 100 epochs of ImageNet on 64 GPUs, a 64th of the batch on each."""


@dataclass
class Parameters:
    """conf/measurement/parameters.yaml."""

    name: str


@dataclass
class Cost:
    """conf/measurement/cost.yaml."""

    name: str
    images_per_step: int
    num_steps: int


def parameters(cfg: DictConfig) -> dict[str, float]:
    """Millions of parameters of the trunk alone, as Table 2 counts them (B.2); no memory is needed for them."""
    to_dataclass(cfg.measurement, Parameters, "measurement")
    with torch.device("meta"):
        trunk = resnet50(cfg.network.width)
    return {"params_millions": sum(weight.numel() for weight in trunk.parameters()) / 1e6}


def cost(cfg: DictConfig, run: Run) -> dict[str, float]:
    """Time and memory of training steps (B.1, Table 1), without reading and cropping pictures.

    The steps are of the middle of an epoch: where a method labels all images between epochs, that time is not in it.

    `seconds_per_image`: of one device, the median over steps after the first. `hours`: what 100 epochs of ImageNet take
    at that pace on 64 such devices. `peak_memory_gb`: on a GPU the most that was allocated at a 64th of the batch; on a
    CPU what is counted for a GPU (`reproduce.memory`), which has no convolution workspaces.
    """
    check_machine(cfg)
    measurement = to_dataclass(cfg.measurement, Cost, "measurement")
    on_gpu = device().type == "cuda"
    share = cfg.batch_size // PAPER_DEVICES if on_gpu else measurement.images_per_step
    batch_size = share * world_size()
    run.provenance["measured"] = (
        f"{share} images a step on each of {world_size()} {'GPUs' if on_gpu else 'CPU processes'}; "
        f"memory {'measured' if on_gpu else 'counted in bf16, not measured'}"
    )
    paces: list[float] = []

    def log(step: int, num_steps: int, **values: float) -> None:
        paces.append(world_size() / values["images_per_second"])
        run.metrics.log(step, num_steps, **values)

    optim = to_dataclass(cfg.optimizer, Optimizer, "optimizer")
    method_config, build_method = registry.find(cfg.method)
    net = build_network(cfg, method_config, IMAGENET_CLASSES)
    method = build_method(method_config, net, IMAGENET_IMAGES, batch_size)
    trained = wrap_for_distributed(net, sync_batchnorm=cfg.cluster.sync_batchnorm)
    num_steps = measurement.num_steps + 1  # the first is not counted
    steps = StepSampler(IMAGENET_IMAGES, batch_size, 1, cfg.seed, MIDDLE, rank(), world_size())
    method.on_train_start(trained, steps, ())
    trainer = Trainer(
        task=PretrainTask(trained, method, cfg.precision),
        optimizer=build_optimizer(net.parameters(), optim),
        learning_rates=lambda _: [optim.warmup_start_lr],
        scaler=loss_scaler(cfg.precision),
        guard=nan_guard(run, "optimizer.lr"),
        logger=StepLogger(log, 1, batch_size),
    )
    trainer.train(_noise(to_dataclass(cfg.crops, Crops, "crops"), share, num_steps), MIDDLE, MIDDLE + num_steps)
    seconds = statistics.median(paces[1:])
    counted = memory(_in_half(cfg), PAPER_DEVICES, activation_checkpointing=False)
    return {
        "seconds_per_image": seconds,
        "hours": seconds * IMAGENET_IMAGES * EPOCHS / PAPER_DEVICES / 3600,
        "peak_memory_gb": peak_memory_gb() if on_gpu else counted.sum_gb,
    }


def _noise(crops: Crops, images: int, num_steps: int) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Batches of random crops `(images, 3, S, S)`, the same on every step: making them is no part of the cost."""
    torch.manual_seed(rank())
    sizes = [view.size_px for view in crops.views for _ in range(view.num)]
    batch = [torch.randn(images, 3, size, size, device=device()) for size in sizes]
    labels = torch.zeros(images, dtype=torch.int64, device=device())
    return ((batch, labels) for _ in range(num_steps))


def _in_half(cfg: DictConfig) -> DictConfig:
    """`cfg` in the mixed precision that Table 1 was measured in."""
    half = cfg.copy()
    half.precision = "bf16"
    return half


def main() -> int:
    """Entry point: overrides on the command line, `result.json` in the run's folder."""
    cfg = config_from_command_line("measure", sys.argv[1:])
    torch.set_num_threads(cfg.cluster.num_threads)
    with process_group(), run_context(cfg) as run:
        run.metrics.truncate(0)
        run.finish(parameters(cfg) if cfg.measurement.name == "parameters" else cost(cfg, run))
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
