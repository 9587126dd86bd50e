"""The loop itself; what it computes is held to golden losses (tests/golden)."""

import pytest
import torch
from torch import Tensor, nn

from models.methods.base import PretrainTask
from models.methods.swav import Swav, SwavConfig
from models.networks.heads import MultiCropNet
from reproduce.engine.loop import Trainer
from reproduce.engine.nan_guard import FiniteGuard
from reproduce.engine.precision import loss_scaler


def test_gradients_are_freed_before_the_forward_pass() -> None:
    """The forward pass is when memory is fullest; w5's gradients are 2.3 GB."""
    net = MultiCropNet(0.125, 16, 8, 6, blocks=(1, 1, 1, 1))
    method = Swav(SwavConfig("swav", 6, 0.1, 0.05, 3, 0, True, False, 0, 0), net, num_images=40, batch_size=4)
    batches = [([torch.randn(4, 3, 32, 32) for _ in range(2)], torch.zeros(4)) for _ in range(3)]
    held: list[bool] = []

    def look(_net: nn.Module, _crops: tuple[list[Tensor]]) -> None:
        held.append(any(p.grad is not None for p in net.parameters()))

    net.register_forward_pre_hook(look)
    trainer = Trainer(
        task=PretrainTask(net, method, "fp32"),
        optimizer=torch.optim.SGD(net.parameters(), 0.1),
        learning_rates=lambda _: [0.1],
        scaler=loss_scaler("fp32"),
        guard=FiniteGuard(lambda _: pytest.fail("not finite")),
    )
    trainer.train(batches, first_step=0, num_steps=3)
    assert held == [False] * 3
    assert all(p.grad is not None for p in net.parameters())
