"""The arithmetic of memory, against real tensors and against the page that states it."""

import importlib
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from evals import coco_detr
from evals.coco_detr.detector import Detr
from models.networks.heads import MultiCropNet
from models.networks.resnet import BLOCKS, ResNet
from reproduce.config.compose import compose
from reproduce.config.validate import to_dataclass
from reproduce.engine import memory, precision
from reproduce.errors import UserError
from reproduce.memory import DETECTOR_INTRODUCTION, INTRODUCTION, detector_row, estimate_memory, row
from tests.networks import activations_gb, kept_for_backward


def test_memory_estimate_matches_a_forward_pass() -> None:
    small = [
        "network.width=0.0625",
        "network.head_hidden_dim=16",
        "network.embedding_dim=8",
        "batch_size=8",
        "scale=smoke",
    ]
    cfg = compose("pretrain", ["experiment=swav_800ep", *small])
    counted = estimate_memory(cfg, 2, activation_checkpointing=False)

    net = MultiCropNet(0.0625, 16, 8, cfg.method.num_prototypes, blocks=BLOCKS[cfg.network.depth])
    crops = [torch.zeros(4, 3, view.size_px, view.size_px) for view in cfg.crops.views for _ in range(view.num)]
    with kept_for_backward() as kept:
        torch.log_softmax(net(crops)[1] / 0.1, dim=1)
    assert counted.images_per_gpu == 4
    assert counted.weights_gb == 16 * sum(weight.numel() for weight in net.parameters()) / 1e9
    assert counted.activations_gb == activations_gb(net, kept)


def test_weights_are_counted_with_what_a_step_of_sgd_keeps_for_each() -> None:
    """Weights, gradients and momenta of a real step; DDP's buckets are as large as the gradients."""
    cfg = compose("pretrain", ["experiment=swav_800ep", "network.width=0.0625", "scale=smoke"])
    counted = estimate_memory(cfg, 2, activation_checkpointing=False)
    net = MultiCropNet(0.0625, cfg.network.head_hidden_dim, cfg.network.embedding_dim, cfg.method.num_prototypes,
                       blocks=BLOCKS[cfg.network.depth])  # fmt: skip
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    assert counted.weights_gb == pytest.approx(kept_by_a_step(net, optimizer) / 1e9)


def kept_by_a_step(net: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """The bytes of weights, gradients, DDP's copy of these, and of what the optimizer keeps for each weight."""
    for weight in net.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    gradients = [weight.grad for weight in net.parameters() if weight.grad is not None]
    states = [each for state in optimizer.state.values() for each in state.values()
              if isinstance(each, torch.Tensor) and each.dim()]  # fmt: skip
    return sum(each.nbytes for each in (*net.parameters(), *gradients, *gradients, *states))


@pytest.mark.parametrize(("checkpointing", "experiment"), [(False, "swav_800ep"), (True, "swav_400ep_2x224")])
def test_activations_are_in_proportion_to_images_and_weights_are_not(checkpointing: bool, experiment: str) -> None:
    """But for the activations of the prototypes' own weights, which are none."""
    cfg = compose("pretrain", [f"experiment={experiment}", "network.width=0.0625", "scale=smoke", "batch_size=8"])
    one, two = (estimate_memory(cfg, processes, activation_checkpointing=checkpointing) for processes in (4, 2))
    assert (one.images_per_gpu, two.images_per_gpu) == (2, 4)
    assert two.weights_gb == one.weights_gb > 0
    assert two.activations_gb == pytest.approx(2 * one.activations_gb, rel=0.02)
    assert one.sum_gb == one.weights_gb + one.activations_gb


def test_half_precision_counts_the_same_on_a_machine_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = compose("pretrain", ["experiment=swav_800ep", "network.width=0.0625", "precision=bf16", "scale=smoke"])
    here = estimate_memory(cfg, 2, activation_checkpointing=False)
    monkeypatch.setattr(precision, "device", lambda: torch.device("cuda"))
    assert estimate_memory(cfg, 2, activation_checkpointing=False) == here


def test_the_page_says_what_is_counted() -> None:
    page = (Path(__file__).parents[2] / "docs" / "memory.md").read_text()
    assert page.startswith(INTRODUCTION)
    assert row("swav_800ep", 8) in page


@pytest.fixture(scope="module")
def small_detr() -> coco_detr.ProtocolConfig:
    asked = ["eval=coco_detr", "scale=smoke", "checkpoint=x", "protocol.transforms.max_size_px=96"]
    asked += ["protocol.batch_size=4"]
    return to_dataclass(compose("evaluate", asked).protocol, coco_detr.ProtocolConfig, "protocol")


def test_detr_estimate_matches_a_forward_pass(small_detr: coco_detr.ProtocolConfig) -> None:
    counted = coco_detr.estimate_memory(small_detr, 2, "fp32", trunk_width=0.0625)
    net = Detr(ResNet(0.0625), small_detr.transformer, num_classes=91).train()
    for module in net.modules():
        if isinstance(module, torch.nn.MultiheadAttention):
            module.dropout = 0.0  # a CPU's kernel with dropout keeps the attention matrices, which no GPU's does
    with kept_for_backward() as kept:
        net(torch.zeros(2, 3, 96, 96), torch.zeros(2, 96, 96, dtype=torch.bool))
    assert counted.images_per_gpu == 2
    optimizer = torch.optim.AdamW(net.parameters())
    assert counted.weights_gb == pytest.approx(kept_by_a_step(net, optimizer) / 1e9)
    assert counted.activations_gb == activations_gb(net, kept)


@pytest.mark.parametrize("evaluation", ["coco_detr", "voc_detection"])
def test_a_gpu_that_is_too_small_is_refused_before_data_is_read(
    monkeypatch: pytest.MonkeyPatch, evaluation: str
) -> None:
    """All images of the paper's batch on one GPU; the context has no data that could be read."""
    module = importlib.import_module(f"evals.{evaluation}")
    cfg = compose("evaluate", [f"eval={evaluation}", "scale=paper", "checkpoint=x"])
    context: Any = SimpleNamespace(cfg=cfg, run=SimpleNamespace(provenance={}), lr_scale=lambda *_: 1.0)
    protocol = to_dataclass(cfg.protocol, module.ProtocolConfig, "protocol")
    monkeypatch.setattr(memory, "gpu_memory_gb", lambda: 24.0)
    says = (
        rf"{protocol.batch_size} images on each GPU need \d+ GB of its memory .*, and this one has 24 GB: .*detector_p"
    )
    with pytest.raises(UserError, match=says):
        module.evaluate(ResNet(1), protocol, context)


@pytest.mark.parametrize(("available_gb", "fits"), [(None, True), (3.1, True), (2.9, False)])
def test_only_a_gpu_with_less_memory_than_needed_is_refused(
    monkeypatch: pytest.MonkeyPatch, available_gb: float | None, fits: bool
) -> None:
    monkeypatch.setattr(memory, "gpu_memory_gb", lambda: available_gb)
    with nullcontext() if fits else pytest.raises(UserError, match="need 3 GB"):
        memory.require_gpu_memory(lambda: memory.MemoryEstimate(4, 1.0, 2.0))


@pytest.mark.parametrize(("evaluation", "num_gpus"), [("coco_detr", 16), ("voc_detection", 8)])
def test_the_page_says_what_a_detector_needs(evaluation: str, num_gpus: int) -> None:
    page = (Path(__file__).parents[2] / "docs" / "memory.md").read_text()
    assert DETECTOR_INTRODUCTION in page
    assert detector_row(evaluation, num_gpus) in page
