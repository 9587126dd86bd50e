"""A training step of each detector, on noise with a few objects."""

from collections.abc import Callable
from typing import Any

import torch

from evals.coco_detr import protocol as coco_detr
from evals.coco_detr.detector import Detr
from evals.coco_detr.losses import Target
from models.networks.resnet import ResNet, resnet50
from reproduce.config.compose import compose
from reproduce.config.validate import to_dataclass
from reproduce.engine.distributed.collectives import device
from reproduce.engine.precision import autocast

NUM_OBJECTS = 7
"""What an image of COCO has on average."""
NUM_COCO_CLASSES = 91


def protocol(evaluation: str, schema: type, scale: str) -> Any:
    """Return the protocol of an evaluation at a scale."""
    cfg = compose("evaluate", [f"eval={evaluation}", f"scale={scale}", "checkpoint=x", "paths.data_root=none"])
    return to_dataclass(cfg.protocol, schema, "protocol")


def trunk_of(scale: str) -> ResNet:
    """Return a trunk of the scale's width with random weights."""
    return resnet50(1 if scale == "paper" else 0.0625)


def detr_step(
    num_images: int, height: int, width: int, scale: str = "paper", precision: str = "fp32"
) -> Callable[[], None]:
    """Return a function that takes one step of DETR."""
    asked = protocol("coco_detr", coco_detr.ProtocolConfig, scale)
    net = Detr(trunk_of(scale), asked.transformer, NUM_COCO_CLASSES).to(device()).train()
    optimizer = coco_detr.build_optimizer(net, asked)
    boxes = (torch.rand(NUM_OBJECTS, 4) / 4 + 0.3).to(device())
    targets = [Target(torch.arange(NUM_OBJECTS, device=device()), boxes)] * num_images
    images = torch.randn(num_images, 3, height, width, device=device()).contiguous(memory_format=torch.channels_last)
    batch = images, torch.zeros(num_images, height, width, dtype=torch.bool, device=device()), targets

    def step() -> None:
        optimizer.zero_grad()
        with autocast(precision):
            loss = coco_detr.detr_loss(net, batch, asked.loss_weights, (0, 0))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), asked.clip_norm)
        optimizer.step()

    return step


def faster_rcnn_step(
    num_images: int, height: int, width: int, scale: str = "paper", precision: str = "fp32"
) -> Callable[[], None]:
    """Return a function that takes one step of Faster R-CNN R50-C4. Raises `ImportError` without Detectron2."""
    from evals import voc_detection
    from evals.voc_detection.compatibility import Boxes, EventStorage, Instances, build_optimizer
    from evals.voc_detection.detector import build_config, build_detector, total_loss

    trunk = trunk_of(scale)
    cfg = build_config(protocol("voc_detection", voc_detection.ProtocolConfig, scale).detectron2, trunk)
    net = build_detector(cfg, trunk).train()
    optimizer = build_optimizer(cfg, net)
    corners = torch.rand(NUM_OBJECTS, 2) * min(height, width) * 0.4
    objects = Instances((height, width))
    objects.gt_boxes = Boxes(torch.cat([corners, corners + 0.3 * min(height, width)], dim=1))
    objects.gt_classes = torch.arange(NUM_OBJECTS)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)

    def step() -> None:
        optimizer.zero_grad()
        with EventStorage(0), autocast(precision):
            loss = total_loss(net([{"image": image, "instances": objects}] * num_images))
        loss.backward()
        optimizer.step()

    return step
