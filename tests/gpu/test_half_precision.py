"""Thirty steps in half precision follow those in fp32, and frozen prototypes do not move by a bit."""

import pytest
import torch

from tests.gpu.trainings import STEPS_PER_EPOCH, Training, build_training

NUM_STEPS = 30
SIZES = (24, 24)


def build(device: torch.device, precision: str, num_batches: int = NUM_STEPS) -> Training:
    return build_training("swav", device, precision=precision, num_batches=num_batches, sizes=SIZES)


def losses(device: torch.device, precision: str) -> torch.Tensor:
    return torch.stack(build(device, precision).losses(0, NUM_STEPS)).cpu()


@pytest.fixture(scope="module")
def exact(device: torch.device) -> torch.Tensor:
    """The losses in fp32."""
    return losses(device, "fp32")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_losses_of_thirty_steps_are_within_two_percent(
    device: torch.device, exact: torch.Tensor, precision: str
) -> None:
    """The first one and their mean: one by one they drift apart, and fp16 skips steps until the loss scale fits."""
    found = losses(device, precision)
    assert not torch.equal(found, exact)
    assert found[0].item() == pytest.approx(exact[0].item(), rel=0.02)
    assert found.mean().item() == pytest.approx(exact.mean().item(), rel=0.02)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_frozen_prototypes_do_not_move(device: torch.device, precision: str) -> None:
    """Through LARC, momentum and the loss scaler, for the first epoch; then they train."""
    training = build(device, precision, STEPS_PER_EPOCH + 1)
    weight = training.net.get_parameter("prototypes.weight")
    normalized: list[torch.Tensor] = []
    training.net.register_forward_pre_hook(lambda *_: normalized.append(weight.detach().clone()))
    moved = []
    for step in range(STEPS_PER_EPOCH + 1):
        training.losses(step, 1)
        moved.append(not torch.equal(weight.detach(), normalized[step]))
    assert moved == [False] * STEPS_PER_EPOCH + [True]
