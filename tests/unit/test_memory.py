"""The arithmetic of memory, against real tensors and against the page that states it."""

from pathlib import Path

import pytest
import torch

from models.networks.heads import MultiCropNet
from reproduce.config.compose import compose
from reproduce.engine import precision
from reproduce.memory import INTRODUCTION, estimate_memory, row


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

    net = MultiCropNet(0.0625, 16, 8, cfg.method.num_prototypes)
    crops = [torch.zeros(4, 3, view.size_px, view.size_px) for view in cfg.crops.views for _ in range(view.num)]
    own = {value.untyped_storage().data_ptr() for value in net.state_dict(keep_vars=True).values()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        torch.log_softmax(net(crops)[1] / 0.1, dim=1)
    assert counted.images_per_gpu == 4
    assert counted.weights_gb == 16 * sum(weight.numel() for weight in net.parameters()) / 1e9
    assert counted.activations_gb == sum(len(kept[at]) for at in kept.keys() - own) / 1e9


def test_half_precision_counts_the_same_on_a_machine_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = compose("pretrain", ["experiment=swav_800ep", "network.width=0.0625", "precision=bf16", "scale=smoke"])
    here = estimate_memory(cfg, 2, activation_checkpointing=False)
    monkeypatch.setattr(precision, "device", lambda: torch.device("cuda"))
    assert estimate_memory(cfg, 2, activation_checkpointing=False) == here


def test_the_page_says_what_is_counted() -> None:
    page = (Path(__file__).parents[2] / "docs" / "memory.md").read_text()
    assert page.startswith(INTRODUCTION)
    assert row("swav_800ep", 8) in page
