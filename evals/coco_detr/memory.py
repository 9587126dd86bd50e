"""The GPU memory that a training step of DETR needs."""

from collections.abc import Callable

import torch
from torch import nn

from evals.coco_detr.detector import Detr, TransformerConfig
from models.networks.resnet import ResNet
from reproduce.engine.memory import ADAM_BYTES_PER_WEIGHT, MemoryEstimate, estimate_step

NUM_COCO_CLASSES = 91


def estimate_memory(
    config: TransformerConfig, images_per_gpu: int, height: int, width: int, precision: str, trunk_width: float = 1
) -> MemoryEstimate:
    """Estimate the memory of a step on images of `height` x `width` pixels, from a trunk of `trunk_width`."""

    def build() -> tuple[nn.Module, Callable[[], object]]:
        net = Detr(ResNet(trunk_width), config, NUM_COCO_CLASSES).train()
        for module in net.modules():
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0  # with it, a CPU keeps the attention matrices; a GPU's fused kernels do not
        images, padding = torch.empty(images_per_gpu, 3, height, width), torch.zeros(images_per_gpu, height, width)
        return net, lambda: net(images, padding.bool())

    return estimate_step(images_per_gpu, precision, build, ADAM_BYTES_PER_WEIGHT)
