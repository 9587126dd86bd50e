"""A training step of each detector, at the paper's sizes but one or two pictures, and its share of the peak."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from evals import coco_detr, voc_detection
from evals.coco_detr.detector import Detr
from evals.coco_detr.losses import Target
from evals.voc_detection.compatibility import Boxes, EventStorage, Instances, build_optimizer
from evals.voc_detection.detector import build_config, build_detector, total_loss
from models.networks.resnet import resnet50
from reproduce.config.compose import compose
from reproduce.config.validate import to_dataclass
from tests.benchmarks.share import shares_of_peak

HEIGHT, WIDTH = 480, 640
NUM_OBJECTS = 7
"""What a picture of COCO has on average."""


def protocol(evaluation: str, schema: type) -> Any:
    cfg = compose("evaluate", [f"eval={evaluation}", "scale=paper", "checkpoint=x", "paths.data_root=none"])
    return to_dataclass(cfg.protocol, schema, "protocol")


def detr() -> Callable[[], None]:
    asked = protocol("coco_detr", coco_detr.ProtocolConfig)
    net = Detr(resnet50(), asked.detector, 91).train()
    optimizer = coco_detr.build_optimizer(net, asked)
    boxes = torch.rand(NUM_OBJECTS, 4) / 4 + 0.3
    targets = [Target(torch.arange(NUM_OBJECTS), boxes)] * 2
    batch = torch.randn(2, 3, HEIGHT, WIDTH), torch.zeros(2, HEIGHT, WIDTH, dtype=torch.bool), targets

    def step() -> None:
        optimizer.zero_grad()
        coco_detr.detr_loss(net, batch, asked.weights, (0, 0)).backward()
        optimizer.step()

    return step


def c4() -> Callable[[], None]:
    trunk = resnet50()
    cfg = build_config(protocol("voc_detection", voc_detection.ProtocolConfig).detectron2, trunk)
    net = build_detector(cfg, trunk).train()
    optimizer = build_optimizer(cfg, net)
    corners = torch.rand(NUM_OBJECTS, 2) * 200
    objects = Instances((HEIGHT, WIDTH))
    objects.gt_boxes = Boxes(torch.cat([corners, corners + 150], dim=1))
    objects.gt_classes = torch.arange(NUM_OBJECTS)
    picture = torch.randint(0, 256, (3, HEIGHT, WIDTH), dtype=torch.uint8)

    def step() -> None:
        optimizer.zero_grad()
        with EventStorage(0):
            total_loss(net([{"image": picture, "instances": objects}])).backward()
        optimizer.step()

    return step


@pytest.mark.parametrize("make", [detr, c4])
@pytest.mark.benchmark(timer=time.process_time)
def test_detector(
    seconds: Callable[..., float], tell: Callable[..., None], make: Callable[[], Callable[[], None]]
) -> None:
    torch.manual_seed(0)
    step = make()
    taken = seconds(step)
    tell(seconds=taken, **shares_of_peak(step, taken, torch.float32))
