"""What a config makes of the optimiser and of the learning rate; LARC's numbers are in tests/golden."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from models.networks.resnet import ResNet
from reproduce.config.compose import compose
from reproduce.config.schema import Optimizer
from reproduce.config.validate import to_dataclass
from reproduce.engine.optimizer import Larc, build_optimizer
from reproduce.engine.schedule import learning_rate
from reproduce.errors import UserError
from tests.foreach_fast_path import ForeachFastPath


def test_no_trust_coefficient_means_plain_sgd() -> None:
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = build_optimizer([weight], Optimizer(lr=0.1, momentum=0.9, weight_decay=0.5, trust_coefficient=None))
    expected, velocity = weight.detach().clone(), torch.zeros(2)
    for gradient in (torch.tensor([3.0, 1.0]), torch.tensor([-1.0, 2.0])):
        weight.grad = gradient.clone()
        optimizer.step()
        velocity = 0.9 * velocity + gradient + 0.5 * expected
        expected = expected - 0.1 * velocity
        torch.testing.assert_close(weight.detach(), expected)
    assert isinstance(build_optimizer([weight], Optimizer(lr=0.1)), Larc)


def test_larc_leaves_a_parameter_without_a_gradient_alone() -> None:
    """|g| = 0: no scaling and no weight decay, so that frozen prototypes and unused heads do not shrink."""
    still, moved = nn.Parameter(torch.tensor([3.0, 4.0])), nn.Parameter(torch.tensor([0.0, 2.0]))
    still.grad, moved.grad = torch.zeros(2), torch.tensor([1.0, 0.0])
    Larc([still, moved], lr=1.0, momentum=0.9, weight_decay=0.5, trust_coefficient=0.1).step()
    assert still.tolist() == [3.0, 4.0]
    rate = 0.1 * 2 / (1 + 0.5 * 2 + 1e-8)
    torch.testing.assert_close(moved.detach(), torch.tensor([-rate, 2.0 - rate * 0.5 * 2]))


def test_vectors_may_have_a_weight_decay_of_their_own() -> None:
    matrix, vector = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    config = Optimizer(lr=0.1, momentum=0, weight_decay=0.5, vector_weight_decay=0, trust_coefficient=None)
    optimizer = build_optimizer([vector, matrix], config)
    matrix.grad, vector.grad = torch.zeros(2, 2), torch.zeros(2)
    optimizer.step()
    assert torch.equal(vector.detach(), torch.ones(2))
    torch.testing.assert_close(matrix.detach(), torch.full((2, 2), 0.95))
    with pytest.raises(UserError, match="vector_weight_decay"):
        build_optimizer([matrix], Optimizer(lr=0.1, vector_weight_decay=0))


@pytest.mark.parametrize(
    ("experiment", "rates"),
    [
        ("npid_200ep", {0: 0.03, 119: 0.03, 120: 0.003, 159: 0.003, 160: 0.0003, 199: 0.0003}),
        ("npid_pp_800ep", {0: 0.12, 400: 0.06006}),
        ("cmc_w2_240ep", {0: 0.03, 119: 0.03, 120: 0.003, 159: 0.003, 160: 0.0003, 199: 0.0003, 200: 0.00003}),
        ("pirl_800ep", {0: 0.12, 400: 0.06006}),
        ("moco_v1_200ep", {0: 0.03, 119: 0.03, 120: 0.003, 159: 0.003, 160: 0.0003, 199: 0.0003}),
        ("moco_v2_200ep", {0: 0.03, 100: 0.015}),
        ("moco_v2_800ep", {0: 0.03, 400: 0.015, 600: 0.03 * (1 - 0.5**0.5) / 2}),
        ("supervised", {0: 0.1, 29: 0.1, 30: 0.01, 59: 0.01, 60: 0.001, 89: 0.001}),
        ("simclr_100ep", {0: 0.6, 10: 4.8, 55: 2.4}),
    ],
)
def test_learning_rate_at_epoch_starts_equals_the_recipe(experiment: str, rates: dict[int, float]) -> None:
    cfg = compose("pretrain", [f"experiment={experiment}", "scale=paper"])
    optimizer = to_dataclass(cfg.optimizer, Optimizer, "optimizer")
    steps = 7
    found = {epoch: learning_rate(steps * epoch, steps * cfg.epochs, cfg.epochs, optimizer) for epoch in rates}
    assert found == pytest.approx(rates)


def scaled_gradients(*, on_gpu: bool, num_blocks: int = 1) -> tuple[list[torch.Tensor], int]:
    """LARC's gradients of a channels-last trunk, and how many operations the path of GPUs took, here on the CPU."""
    torch.manual_seed(0)
    trunk = ResNet(0.25, (num_blocks,) * 4).to(memory_format=torch.channels_last)
    trunk(torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last)).sum().backward()
    trunk.bn1.bias.grad = torch.zeros_like(trunk.bn1.bias)
    optimizer = Larc(trunk.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, trust_coefficient=0.001)
    if not on_gpu:
        optimizer._scale_gradients()
        return [p.grad for p in trunk.parameters() if p.grad is not None], 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizer, "_partners", optimizer._spread)
        with ForeachFastPath() as path:
            optimizer._scale_gradients()
    return [p.grad for p in trunk.parameters() if p.grad is not None], path.num_operations


def test_larc_stays_on_the_multi_tensor_kernels_of_gpus() -> None:
    gradients, num_operations = scaled_gradients(on_gpu=True)
    expected, _ = scaled_gradients(on_gpu=False)
    assert all(torch.equal(one, other) for one, other in zip(gradients, expected, strict=True))
    more, same = scaled_gradients(on_gpu=True, num_blocks=3)
    assert len(more) > len(gradients) > 40
    assert num_operations == same < 25


def test_0_dim_partners_would_leave_the_multi_tensor_kernels() -> None:
    weights = [torch.ones(2, 2), torch.ones(3)]
    with ForeachFastPath(), pytest.raises(AssertionError, match="leaves the fast path"):
        torch._foreach_mul_(weights, list(torch.ones(2).unbind()))


@pytest.mark.parametrize("milestones", [None, [0.5]])
def test_a_restarted_schedule_is_run_twice(milestones: list[float] | None) -> None:
    """Over three epochs of four steps, then over five, each with its warm-up."""
    once = Optimizer(lr=1.0, final_lr=0.1, milestones=milestones, warmup_epochs=1, warmup_start_lr=0.2)
    again = replace(once, restart_epoch=3)
    expected = [learning_rate(step, 4 * epochs, epochs, once) for epochs in (3, 5) for step in range(4 * epochs)]
    assert [learning_rate(step, 32, 8, again) for step in range(32)] == expected


def test_a_rate_of_zero_stays_zero_at_milestones() -> None:
    optimizer = Optimizer(lr=0.0, final_lr=0.0, milestones=[0.5], warmup_epochs=0, warmup_start_lr=0.0)
    assert [learning_rate(step, 8, 8, optimizer) for step in range(8)] == [0.0] * 8
