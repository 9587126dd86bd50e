"""Losses and detections of DETR and Faster R-CNN on the device, against the CPU.

DETR's is in double precision there. Detectron2 has none; on the CPU, its two detectors differ by the layout in memory.
"""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evals.coco_detr.detector import Detr, TransformerConfig
from evals.coco_detr.losses import LossWeights, Target
from evals.coco_detr.protocol import detr_loss, to_detections
from reproduce.config.compose import compose
from reproduce.config.validate import to_dataclass
from tests.gpu.trainings import assert_close_to, gradients
from tests.networks import random_trunk

WEIGHTS = LossWeights(classes=1, l1=5, giou=2, no_object=0.1)
SIZE = TransformerConfig(num_layers=2, hidden_dim=32, num_heads=4, feedforward_dim=48, num_queries=7, dropout=0.0)
HEIGHT, WIDTH = 64, 96


@pytest.fixture(scope="module")
def exact_detr() -> Detr:
    trunk = random_trunk(0.125)
    torch.manual_seed(0)
    return Detr(trunk, SIZE, num_classes=5).double()


def detr_batch(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, list[Target]]:
    """Three images, one of them padded, with 2, 0 and 3 objects."""
    draw = torch.Generator().manual_seed(1)
    images = torch.randn(3, 3, HEIGHT, WIDTH, generator=draw)
    padding = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.bool)
    padding[1, :, 64:] = True
    boxes = [torch.rand(n, 4, generator=draw) / 4 + 0.3 for n in (2, 0, 3)]
    targets = [Target(torch.arange(len(each)).to(device), each.to(device)) for each in boxes]
    images = images.masked_fill(padding[:, None], 0).to(device, dtype)
    return images.contiguous(memory_format=torch.channels_last), padding.to(device), targets


def test_detr_loss_and_gradients(device: torch.device, exact_detr: Detr) -> None:
    exact, found = copy.deepcopy(exact_detr), copy.deepcopy(exact_detr).to(device, torch.float32)
    expected = detr_loss(exact, detr_batch(torch.device("cpu"), torch.float64), WEIGHTS, (0, 0))
    loss = detr_loss(found, detr_batch(device, torch.float32), WEIGHTS, (0, 0))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    loss.backward()
    expected.backward()
    ours, theirs = gradients(found), gradients(exact)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if value.norm() > 1e-3:  # keys' biases have no gradient but rounding
            assert_close_to(ours[name], value, 1e-2)


@torch.no_grad()
def test_detr_detections(device: torch.device, exact_detr: Detr) -> None:
    exact, found = copy.deepcopy(exact_detr).eval(), copy.deepcopy(exact_detr).to(device, torch.float32).eval()
    cpu_images, cpu_padding, _ = detr_batch(torch.device("cpu"), torch.float64)
    images, padding, _ = detr_batch(device, torch.float32)
    ours, theirs = found(images, padding), exact(cpu_images, cpu_padding)
    for number in range(len(images)):
        detections, expected = (
            to_detections(logits[-1, number], boxes[-1, number], WIDTH, HEIGHT).cpu()
            for logits, boxes in (ours, theirs)
        )
        torch.testing.assert_close(detections, expected, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def faster_rcnn() -> tuple[nn.Module, nn.Module, Any]:
    """Detectron2's detector, twice, and the module with its structures."""
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    from evals.voc_detection import ProtocolConfig, compatibility
    from evals.voc_detection.detector import build_config, build_detector

    asked = compose("evaluate", ["eval=voc_detection", "scale=smoke", "checkpoint=x"]).protocol
    trunk = random_trunk(0.125)
    detectron2 = build_config(to_dataclass(asked, ProtocolConfig, "protocol").detectron2, trunk)
    # Samples of all anchors and of all proposals: none is left to chance, which differs between devices.
    detectron2.MODEL.RPN.BATCH_SIZE_PER_IMAGE = detectron2.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 100_000
    detectron2.MODEL.RPN.POSITIVE_FRACTION = detectron2.MODEL.ROI_HEADS.POSITIVE_FRACTION = 0.5
    detectron2.MODEL.DEVICE = "cpu"
    torch.manual_seed(0)
    return build_detector(detectron2, trunk), build_detector(detectron2, trunk), compatibility


def inputs(compatibility: Any, *, with_objects: bool) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(2)
    made = []
    for number in range(2):
        picture: dict[str, Any] = {
            "image": torch.randint(0, 256, (3, 80, 96), dtype=torch.uint8, generator=draw), "height": 80, "width": 96,
        }  # fmt: skip
        if with_objects:
            corners = torch.rand(3, 2, generator=draw) * 40
            objects = compatibility.Instances((80, 96))
            objects.gt_boxes = compatibility.Boxes(torch.cat([corners, corners + 36], dim=1))
            objects.gt_classes = torch.arange(3) + number
            picture["instances"] = objects
        made.append(picture)
    return made


def both(faster_rcnn: tuple[nn.Module, nn.Module, Any], device: torch.device) -> tuple[nn.Module, nn.Module]:
    """The detector on the device, channels-last, and on the CPU."""
    found, exact, _ = faster_rcnn
    exact.load_state_dict(found.state_dict())
    return found.to(device).to(memory_format=torch.channels_last), exact


def test_faster_rcnn_losses(device: torch.device, faster_rcnn: tuple[nn.Module, nn.Module, Any]) -> None:
    found, exact = (net.train() for net in both(faster_rcnn, device))
    compatibility = faster_rcnn[2]
    with compatibility.EventStorage(0):
        ours = found(inputs(compatibility, with_objects=True))
        theirs = exact(inputs(compatibility, with_objects=True))
    assert ours.keys() == theirs.keys()
    assert len(ours) == 4
    for name, value in theirs.items():
        assert ours[name].device.type == device.type
        assert ours[name].item() == pytest.approx(value.item(), rel=1e-2), name


@torch.no_grad()
def test_faster_rcnn_detections(device: torch.device, faster_rcnn: tuple[nn.Module, nn.Module, Any]) -> None:
    found, exact = (net.eval() for net in both(faster_rcnn, device))
    asked = inputs(faster_rcnn[2], with_objects=False)
    for ours, theirs in zip(found(asked), exact(asked), strict=True):
        detected, expected = (each["instances"].to("cpu") for each in (ours, theirs))
        assert len(detected) == len(expected) > 0
        torch.testing.assert_close(detected.scores.double(), expected.scores.double(), rtol=1e-3, atol=1e-4)
        boxes, their_boxes = detected.pred_boxes.tensor.double(), expected.pred_boxes.tensor.double()
        torch.testing.assert_close(boxes, their_boxes, rtol=1e-3, atol=0.1)
