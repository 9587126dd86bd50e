"""The GPU memory that a training step of Faster R-CNN needs."""

from collections.abc import Callable

import torch
from torch import nn

from evals.voc_detection.compatibility import META_ARCH_REGISTRY, CfgNode
from reproduce.engine.memory import MemoryEstimate, estimate_step


def estimate_memory(detectron2_cfg: CfgNode, images_per_gpu: int, precision: str) -> MemoryEstimate:
    """Estimate the memory of a step on images of the largest training size, with all boxes that the config samples.

    Counts trunk, proposal head and the C4 head on the boxes; the losses and the choice of the boxes are small.
    """
    cfg = detectron2_cfg.clone()
    cfg.MODEL.DEVICE = "cpu"
    if cfg.MODEL.RESNETS.NORM == "SyncBN":
        cfg.MODEL.RESNETS.NORM = "BN"  # saves the same tensors, without a collective
    height, width = max(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MAX_SIZE_TRAIN
    num_boxes = images_per_gpu * cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE
    pooled_px = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION

    def build() -> tuple[nn.Module, Callable[[], object]]:
        net = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(
            cfg
        ).train()  # `build_model` moves it: fakes don't move
        images = torch.empty(images_per_gpu, 3, height, width)

        def forward() -> object:
            (features,) = net.backbone(images).values()
            proposals = net.proposal_generator.rpn_head([features])
            pooled = torch.empty(num_boxes, features.shape[1], pooled_px, pooled_px, requires_grad=True)
            return proposals, net.roi_heads.box_predictor(net.roi_heads.res5(pooled).mean(dim=[2, 3]))

        return net, forward

    return estimate_step(images_per_gpu, precision, build)
