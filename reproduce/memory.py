"""Estimate the memory that a recipe needs on each GPU: `python -m reproduce.memory > docs/memory.md`, on any machine.

The forward pass runs on fake tensors, which have shapes and dtypes only, and the tensors that it saves for the backward
pass are counted. Convolution workspaces, the allocator's fragmentation and NCCL's buffers are not included.
"""

import sys
from dataclasses import dataclass

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode  # the only way to get autocast's dtypes, too

from models.methods import registry
from reproduce.config.compose import compose
from reproduce.config.schema import Network
from reproduce.config.validate import to_dataclass
from reproduce.engine.precision import autocast
from reproduce.errors import run_cli

NUM_IMAGENET_CLASSES = 1000

BYTES_PER_WEIGHT = 16
"""fp32: the weight, its gradient, its momentum, and its share of DDP's buckets."""

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


@dataclass(frozen=True)
class MemoryEstimate:
    """The memory of one process, in GB (1e9 bytes)."""

    images_per_gpu: int
    weights_gb: float
    activations_gb: float

    @property
    def sum_gb(self) -> float:
        """The sum of weights and activations."""
        return self.weights_gb + self.activations_gb


def estimate_memory(cfg: DictConfig, num_processes: int, *, activation_checkpointing: bool) -> MemoryEstimate:
    """Estimate the memory of one of `num_processes` processes at the end of the pretraining's forward pass."""
    images_per_gpu = cfg.batch_size // num_processes
    with FakeTensorMode():
        method, _ = registry.parse_config(cfg.method)
        net = registry.build_network(to_dataclass(cfg.network, Network, "network"), method, NUM_IMAGENET_CLASSES)
        net.activation_checkpointing = activation_checkpointing
        crops = [torch.empty(images_per_gpu, 3, v.size_px, v.size_px) for v in cfg.crops.views for _ in range(v.num)]
        saved: dict[int, torch.UntypedStorage] = {}

        def save(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            saved[storage._cdata] = storage  # keeps it alive, so that no other gets its address
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor), autocast(cfg.precision, "cpu"):
            embeddings, scores = net(crops)
            torch.log_softmax((embeddings if scores is None else scores).float(), dim=1)  # stands for the loss
        for tensor in net.state_dict(keep_vars=True).values():
            saved.pop(tensor.untyped_storage()._cdata, None)
        num_weights = sum(weight.numel() for weight in net.parameters())
    return MemoryEstimate(images_per_gpu, BYTES_PER_WEIGHT * num_weights / 1e9, sum(map(len, saved.values())) / 1e9)


def page() -> str:
    """Return the text of docs/memory.md."""
    rows = [row(name, num_gpus) for name, counts in NUM_GPUS.items() for num_gpus in counts]
    return INTRODUCTION + "".join(f"{each}\n" for each in rows)


def row(experiment: str, num_gpus: int) -> str:
    """Return the table row of one recipe and number of GPUs."""
    cfg = compose("pretrain", [f"experiment={experiment}", "scale=paper", "precision=bf16"])
    plain = estimate_memory(cfg, num_gpus, activation_checkpointing=False)
    checkpointed = estimate_memory(cfg, num_gpus, activation_checkpointing=True)
    return (
        f"| {experiment} | {cfg.batch_size} | {num_gpus} | {plain.images_per_gpu} | {plain.weights_gb:.1f} | "
        f"{plain.activations_gb:.1f} | {plain.sum_gb:.1f} | {checkpointed.sum_gb:.1f} |"
    )


def main() -> int:
    """Print docs/memory.md."""
    sys.stdout.write(page())
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
