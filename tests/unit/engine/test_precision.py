"""Half precision: what the optimiser sees does not depend on the scale of the loss."""

from typing import Any

import pytest
import torch
from torch import Tensor

from models.methods.base import Method, PretrainTask
from reproduce.engine.loop import StepLogger, Trainer
from reproduce.engine.nan_guard import FiniteGuard
from reproduce.engine.optimizer import Larc
from reproduce.engine.precision import autocast, loss_scaler
from reproduce.errors import TrainingFailed, UserError
from tests.networks import LinearNet


class Regression(Method):
    """The smallest method: crops are inputs, the loss their squared outputs, times a factor per step."""

    def __init__(self, *factors: float) -> None:
        self.factors = factors

    def loss(self, embeddings: Tensor, *rest: Any) -> tuple[Tensor, dict[str, Tensor]]:
        _, _, step = rest
        return embeddings.float().square().mean() * self.factors[step], {}


def trained(scaler: torch.amp.GradScaler, precision: str, *factors: float) -> tuple[Tensor, list[dict[str, float]]]:
    """The weights after a step per factor, and the curve."""
    torch.manual_seed(0)
    net = LinearNet(8, 4)
    curve: list[dict[str, float]] = []
    batch = [torch.ones(2, 8)], torch.zeros(2)
    trainer = Trainer(
        task=PretrainTask(net, Regression(*factors), precision),
        optimizer=Larc(net.parameters(), 0.5, 0.9, 1e-6, 0.001),
        learning_rates=lambda _: [0.5],
        scaler=scaler,
        guard=FiniteGuard(lambda _: pytest.fail("nothing is to be dumped")),
        logger=StepLogger(lambda *_, **values: curve.append(values), log_every=1, batch_size=2),
    )
    trainer.train([batch] * len(factors), first_step=0, num_steps=len(factors))
    return net.weight.detach(), curve


def test_a_larc_step_does_not_depend_on_the_loss_scale() -> None:
    plain, told = trained(loss_scaler("fp32"), "fp32", 1, 1, 1)
    for scale in (2.0**4, 2.0**12):  # powers of two change no digit
        scaled, curve = trained(torch.amp.GradScaler("cpu", init_scale=scale), "fp32", 1, 1, 1)
        assert torch.equal(scaled, plain)
        assert [point["loss_scale"] for point in curve] == [scale] * 3
        assert [point["gradient_norm"] for point in curve] == [point["gradient_norm"] for point in told]


def test_fp16_skips_an_overflowing_step_and_halves_the_scale() -> None:
    # At a scale of 65536 a factor of 3 sends the gradient of the fp16 output beyond 65504.
    weights, curve = trained(loss_scaler("fp16"), "fp16", 100, 1, 1)
    assert [point["loss_scale"] for point in curve] == [32768.0] * 3
    assert ["gradient_norm" in point for point in curve] == [False, True, True]
    expected, _ = trained(loss_scaler("fp32"), "fp32", 1, 1)
    torch.testing.assert_close(weights, expected, rtol=1e-3, atol=1e-4)


def test_gradients_overflowing_at_any_scale_raise() -> None:
    with pytest.raises(TrainingFailed, match=r"overflow fp16 even at a loss scale of 0\.5"):
        trained(loss_scaler("fp16"), "fp16", *[1e9] * 30)


def test_only_fp16_has_a_scaler_and_unknown_precision_raises() -> None:
    assert [loss_scaler(name).is_enabled() for name in ("fp32", "bf16", "fp16")] == [False, False, True]
    assert [loss_scaler("fp16", start).get_scale() for start in (None, 1024.0)] == [65536.0, 1024.0]
    with pytest.raises(UserError, match="did you mean 'fp16'"):
        autocast("f16")
