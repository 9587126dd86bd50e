"""Estimate the memory that a recipe needs on each GPU: `python -m reproduce.memory > docs/memory.md`, on any machine.

`reproduce.engine.memory` says what is counted.
"""

import importlib
import sys
from collections.abc import Callable

import torch
from omegaconf import DictConfig
from torch import nn

from models.methods import registry
from reproduce.config.compose import compose
from reproduce.config.schema import Network
from reproduce.config.validate import to_dataclass
from reproduce.data.datasets.imagenet import NUM_IMAGENET_CLASSES
from reproduce.engine.memory import MemoryEstimate, estimate_step
from reproduce.errors import run_cli

NUM_GPUS = {
    "swav_400ep_2x224": (64, 8),
    "swav_400ep_2x160_4x96": (64, 8),
    "swav_400ep_prototypes100000": (64, 8),
    "swav_800ep": (64, 32, 16, 8),
    "swav_200ep_bs256": (4, 1),
    "swav_w2_400ep": (128, 32, 16),
    "swav_w4_400ep": (64, 32, 8),
    "swav_w5_400ep": (128, 32, 16),
}
"""Recipes that differ in memory, with the paper's number of GPUs and smaller ones."""
NUM_DETECTOR_GPUS = {"voc_detection": (8, 4, 2, 1), "coco_detr": (16, 8, 4, 1)}
"""Evaluations that train a detector, with the paper's number of GPUs and smaller ones."""

INTRODUCTION = """# Memory per GPU

`python -m reproduce.memory` writes this page. It counts what one process needs in bf16 or fp16:

- *weights*: 16 bytes each, for the fp32 weight, its gradient, its momentum and its copy in DDP's buckets;
- *activations*: the tensors that the forward pass saves for the backward pass;
- *checkpointed*: the sum of both with `cluster.activation_checkpointing=true`, which repeats each block's forward pass.

Convolution workspaces, the allocator's fragmentation and NCCL's buffers are not counted. Table 1 of the paper prints
8.6, 8.5 and 12.8 GB for the crops 2x224, 2x160+4x96 and 2x224+6x96 on 64 GPUs: 2 to 4 GB more than the sums below.

| experiment | batch | GPUs | images per GPU | weights GB | activations GB | sum GB | checkpointed GB |
|---|--:|--:|--:|--:|--:|--:|--:|
"""
"""The text of docs/memory.md above the rows of its table."""

DETECTOR_INTRODUCTION = """
## Detectors

They train in fp32 at scale paper, on as many GPUs as the papers' (the first row of each). The sums are for a batch of
images of the largest training size, 800 x 1333; a batch of wide and tall images is padded to a square, and needs up to
1.7 times the activations of the trunk. A run stops before it reads data if its GPU has less memory than the sum.
`CLUSTER_OPTIONS=detector_processes=N` sets another number of GPUs.

| evaluation | batch | GPUs | images per GPU | fp32: sum GB | bf16: sum GB |
|---|--:|--:|--:|--:|--:|
"""
"""The text above the rows of the second table."""


def estimate_memory(cfg: DictConfig, num_processes: int, *, activation_checkpointing: bool) -> MemoryEstimate:
    """Estimate the memory of one of `num_processes` processes at the end of the pretraining's forward pass."""
    images_per_gpu = cfg.batch_size // num_processes

    def build() -> tuple[nn.Module, Callable[[], object]]:
        method, _ = registry.parse_config(cfg.method)
        net = registry.build_network(to_dataclass(cfg.network, Network, "network"), method, NUM_IMAGENET_CLASSES)
        net.activation_checkpointing = activation_checkpointing
        crops = [torch.empty(images_per_gpu, 3, v.size_px, v.size_px) for v in cfg.crops.views for _ in range(v.num)]

        def forward() -> object:
            embeddings, scores = net(crops)
            return torch.log_softmax((embeddings if scores is None else scores).float(), dim=1)  # stands for the loss

        return net, forward

    return estimate_step(images_per_gpu, cfg.precision, build)


def estimate_detector_memory(evaluation: str, num_processes: int, precision: str) -> MemoryEstimate:
    """Estimate the memory of one of `num_processes` processes that train a detector from a ResNet-50."""
    module = importlib.import_module(f"evals.{evaluation}")
    cfg = compose("evaluate", [f"eval={evaluation}", "scale=paper", "checkpoint=any"])
    protocol = to_dataclass(cfg.protocol, module.ProtocolConfig, "protocol")
    estimate: MemoryEstimate = module.estimate_memory(protocol, num_processes, precision)
    return estimate


def page() -> str:
    """Return the text of docs/memory.md."""
    rows = [row(name, num_gpus) for name, counts in NUM_GPUS.items() for num_gpus in counts]
    detectors = [detector_row(name, num_gpus) for name, counts in NUM_DETECTOR_GPUS.items() for num_gpus in counts]
    return "\n".join([INTRODUCTION + "\n".join(rows), DETECTOR_INTRODUCTION + "\n".join(detectors)]) + "\n"


def row(experiment: str, num_gpus: int) -> str:
    """Return the table row of one recipe and number of GPUs."""
    cfg = compose("pretrain", [f"experiment={experiment}", "scale=paper", "precision=bf16"])
    plain = estimate_memory(cfg, num_gpus, activation_checkpointing=False)
    checkpointed = estimate_memory(cfg, num_gpus, activation_checkpointing=True)
    return (
        f"| {experiment} | {cfg.batch_size} | {num_gpus} | {plain.images_per_gpu} | {plain.weights_gb:.1f} | "
        f"{plain.activations_gb:.1f} | {plain.sum_gb:.1f} | {checkpointed.sum_gb:.1f} |"
    )


def detector_row(evaluation: str, num_gpus: int) -> str:
    """Return the table row of one detector and number of GPUs."""
    fp32, bf16 = (estimate_detector_memory(evaluation, num_gpus, precision) for precision in ("fp32", "bf16"))
    batch_size = fp32.images_per_gpu * num_gpus
    return (
        f"| {evaluation} | {batch_size} | {num_gpus} | {fp32.images_per_gpu} | {fp32.sum_gb:.1f} | {bf16.sum_gb:.1f} |"
    )


def main() -> int:
    """Print docs/memory.md."""
    sys.stdout.write(page())
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
