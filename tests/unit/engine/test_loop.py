"""The loop itself; what it computes is held to golden losses (tests/golden)."""

import pytest
import torch
from torch import Tensor, nn

from models.methods.swav import Swav, SwavConfig
from models.networks.heads import MultiCropNet
from reproduce.engine.loop import train
from reproduce.engine.precision import loss_scaler


def test_no_gradients_are_held_while_activations_are_made() -> None:
    """The forward pass is when memory is fullest; w5's gradients are 2.3 GB."""
    net = MultiCropNet(0.125, 16, 8, 6, blocks=(1, 1, 1, 1))
    method = Swav(SwavConfig("swav", 6, 0.1, 0.05, 3, 0, True, False, 0, 0), net, num_images=40, batch_size=4)
    batches = [([torch.randn(4, 3, 32, 32) for _ in range(2)], torch.zeros(4)) for _ in range(3)]
    held: list[bool] = []

    def look(_net: nn.Module, _crops: tuple[list[Tensor]]) -> None:
        held.append(any(p.grad is not None for p in net.parameters()))

    net.register_forward_pre_hook(look)
    train(
        net, method, torch.optim.SGD(net.parameters(), 0.1), batches, lambda _: 0.1,
        first_step=0, num_steps=3, batch_size=4, precision="fp32", scaler=loss_scaler("fp32"),
        tell=lambda *_, **__: None, tell_every_steps=9, after_step=lambda _: None,
        keep_not_finite=lambda _: pytest.fail("not finite"),
    )  # fmt: skip
    assert held == [False] * 3
    assert all(p.grad is not None for p in net.parameters())
