"""Faster R-CNN R50-C4 in Detectron2, from one of our trunks."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from evals.voc_detection.compatibility import (
    ROI_HEADS_REGISTRY,
    CfgNode,
    Res5ROIHeads,
    build_model,
    get_cfg,
    get_norm,
)
from models.networks.resnet import BLOCKS_R50, ResNet
from reproduce.data.datasets.voc import VOC_CLASSES
from reproduce.engine.distributed.collectives import device
from reproduce.errors import UserError

HEAD_PREFIXES = ("proposal_generator.", "roi_heads.box_predictor.", "roi_heads.res5.norm.")
"""Prefixes of the detector's weights that the trunk does not have; they start at random."""


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeadsExtraNorm(Res5ROIHeads):  # type: ignore[misc]
    """The C4 head with one more BatchNorm after res5, where features of a self-supervised trunk have no known scale."""

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Sequential, int]:
        res5, channels = super()._build_res5_block(cfg)
        res5.add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, channels))
        return res5, channels


def build_config(keys: dict[str, Any], trunk: ResNet) -> CfgNode:
    """Return Detectron2's defaults with the protocol's `keys` at the trunk's width; raise `UserError` for a bad key."""
    cfg = get_cfg()
    try:
        cfg.merge_from_other_cfg(CfgNode(keys))
    except (KeyError, ValueError, AssertionError) as error:
        raise UserError(f"config protocol.detectron2: {str(error).strip(chr(39))}") from error
    base = trunk.conv1.out_channels
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.WIDTH_PER_GROUP = base
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 4 * base
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(VOC_CLASSES)
    cfg.MODEL.DEVICE = str(device())
    return cfg


def build_detector(cfg: CfgNode, trunk: ResNet) -> nn.Module:
    """Build a detector with the trunk's weights and BatchNorm statistics; Detectron2 initializes the rest.

    Detectron2 builds the depths of the literature; of a trunk with fewer blocks, the detector has as many.
    """
    if type(trunk.maxpool) is not nn.MaxPool2d or trunk.conv1.kernel_size != (7, 7):
        raise UserError(
            "Detectron2's ResNet begins with a 7x7 convolution and a pooling padded as in PyTorch; this trunk begins "
            "otherwise, so Faster R-CNN can't use it"
        )
    detector: Any = build_model(cfg)
    stages = (detector.backbone.res2, detector.backbone.res3, detector.backbone.res4, detector.roi_heads.res5)
    own = (trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4)
    for stage, built, blocks in zip(stages, BLOCKS_R50, own, strict=True):
        for number in range(len(blocks), built):
            delattr(stage, str(number))
    weights = to_detectron2_names(trunk)
    counters = {name for name in weights if name.endswith(".num_batches_tracked")}  # frozen BatchNorm has none
    weights = {name: value for name, value in weights.items() if name not in counters - detector.state_dict().keys()}
    missing, unexpected = detector.load_state_dict(weights, strict=False)
    not_loaded = [name for name in missing if not name.startswith(HEAD_PREFIXES)]
    if not_loaded or unexpected:
        raise UserError(
            f"the trunk does not fit Detectron2's ResNet-50: {len(not_loaded)} of its tensors are missing and "
            f"{len(unexpected)} left over, e.g. {[*not_loaded, *unexpected][0]}"
        )
    return detector


def to_detectron2_names(trunk: ResNet) -> dict[str, Tensor]:
    """Return the trunk's tensors under Detectron2's names: layers 1 to 3 in the backbone, layer 4 in the head."""
    return dict(_renamed(trunk.state_dict()))


def _renamed(weights: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, value in weights.items():
        stage, _, rest = name.partition(".")
        if stage in ("conv1", "bn1"):
            yield f"backbone.stem.conv1.{'norm.' if stage == 'bn1' else ''}{rest}", value
            continue
        block, part, tensor = rest.split(".", 2)
        if part == "downsample":
            number, tensor = tensor.split(".", 1)
            layer = "shortcut.norm" if number == "1" else "shortcut"
        else:
            layer = f"conv{part[-1]}.norm" if part.startswith("bn") else part
        home = "roi_heads.res5" if stage == "layer4" else f"backbone.res{int(stage[-1]) + 1}"
        yield f"{home}.{block}.{layer}.{tensor}", value


def total_loss(losses: dict[str, Tensor]) -> Tensor:
    """Return the sum of all losses: two of the proposals, two of the boxes."""
    return torch.stack(list(losses.values())).sum()
