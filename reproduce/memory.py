"""How much memory a recipe needs on each GPU: `python -m reproduce.memory > docs/memory.md`, on any machine.

The forward pass runs on tensors without content, which have shapes and dtypes only; what it keeps for the backward pass
is counted. Nothing is measured on a GPU: convolution workspaces, the allocator's gaps and NCCL's buffers come on top.
"""

import sys
from dataclasses import dataclass

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode  # the only way to have autocast decide on dtypes, too

from models.methods import registry
from reproduce.config.compose import compose
from reproduce.config.schema import Network
from reproduce.config.validate import to_dataclass
from reproduce.engine.precision import autocast
from reproduce.errors import run_cli

IMAGENET_CLASSES = 1000

BYTES_PER_WEIGHT = 16
"""fp32: the weight, its gradient, its momentum, and its place in DDP's buckets."""

HARDWARE = {
    "swav_400ep_2x224": (64, 8),
    "swav_400ep_2x160_4x96": (64, 8),
    "swav_400ep_prototypes100000": (64, 8),
    "swav_800ep": (64, 32, 16, 8),
    "swav_200ep_bs256": (4, 1),
    "swav_w2_400ep": (128, 32, 16),
    "swav_w4_400ep": (64, 32, 8),
    "swav_w5_400ep": (128, 32, 16),
}
"""Recipes that differ in memory, each with numbers of GPUs: the paper's, and fewer."""


@dataclass(frozen=True)
class Memory:
    """Of one process, in GB (1e9 bytes)."""

    images: int
    weights_gb: float
    activations_gb: float

    @property
    def sum_gb(self) -> float:
        """Without workspaces and the allocator's gaps."""
        return self.weights_gb + self.activations_gb


def memory(cfg: DictConfig, num_processes: int, *, activation_checkpointing: bool) -> Memory:
    """What one of `num_processes` processes holds when the forward pass of `cfg`'s pretraining ends."""
    images = cfg.batch_size // num_processes
    with FakeTensorMode():
        method, _ = registry.find(cfg.method)
        net = registry.network(to_dataclass(cfg.network, Network, "network"), method, IMAGENET_CLASSES)
        net.activation_checkpointing = activation_checkpointing
        crops = [torch.empty(images, 3, v.size_px, v.size_px) for v in cfg.crops.views for _ in range(v.num)]
        kept: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage  # held, so that no other gets its address
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast(cfg.precision, "cpu"):
            embeddings, scores = net(crops)
            torch.log_softmax((embeddings if scores is None else scores).float(), dim=1)  # the loss, roughly
        for tensor in net.state_dict(keep_vars=True).values():
            kept.pop(tensor.untyped_storage()._cdata, None)
        num_weights = sum(weight.numel() for weight in net.parameters())
    return Memory(images, BYTES_PER_WEIGHT * num_weights / 1e9, sum(map(len, kept.values())) / 1e9)


def page() -> str:
    """docs/memory.md."""
    lines = [
        "# Memory per GPU",
        "",
        "`python -m reproduce.memory` computes this page, for bf16 or fp16. *Weights* take 16 bytes each (fp32 weight,",
        "gradient, momentum, DDP's bucket). *Activations* are what the forward pass saves for the backward pass.",
        "*Checkpointed* is the sum with `cluster.activation_checkpointing=true`, which costs a second forward pass.",
        "Convolution workspaces, allocator fragmentation and NCCL's buffers come on top: Table 1 of the paper prints",
        "8.6, 8.5 and 12.8 GB for 2x224, 2x160+4x96 and 2x224+6x96 on 64 GPUs, 2 to 4 GB above these sums.",
        "",
        "| experiment | batch | GPUs | images per GPU | weights GB | activations GB | sum GB | checkpointed GB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [row(name, num_gpus) for name, numbers in HARDWARE.items() for num_gpus in numbers]
    return "\n".join(lines) + "\n"


def row(experiment: str, num_gpus: int) -> str:
    """The page's line on one recipe and number of GPUs."""
    cfg = compose("pretrain", [f"experiment={experiment}", "scale=paper", "precision=bf16"])
    plain = memory(cfg, num_gpus, activation_checkpointing=False)
    thrifty = memory(cfg, num_gpus, activation_checkpointing=True)
    return (
        f"| {experiment} | {cfg.batch_size} | {num_gpus} | {plain.images} | {plain.weights_gb:.1f} | "
        f"{plain.activations_gb:.1f} | {plain.sum_gb:.1f} | {thrifty.sum_gb:.1f} |"
    )


def main() -> int:
    """Print the page."""
    sys.stdout.write(page())
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
