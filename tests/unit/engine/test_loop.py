"""The loop itself; what it computes is held to golden losses (tests/golden)."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.methods.base import PretrainTask
from models.methods.swav import Swav, SwavConfig
from models.networks.heads import MultiCropNet
from reproduce.engine import loop
from reproduce.engine.loop import StepLogger, StepOutput, Trainer, TrainTask
from reproduce.engine.nan_guard import FiniteGuard
from reproduce.engine.precision import loss_scaler
from reproduce.errors import TrainingFailed


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


class Quadratic(TrainTask[Tensor]):
    """The smallest task: the squared distance of one weight to the batch, validated every second step."""

    validate_every_steps = 2

    def __init__(self) -> None:
        self.weight = nn.Parameter(torch.zeros(()))
        self.validated: list[int] = []

    def forward(self, batch: Tensor, step: int) -> StepOutput:  # noqa: ARG002
        return StepOutput((self.weight - batch).square(), tensors={"batch": batch})

    def validate(self, num_steps_done: int) -> dict[str, float]:
        self.validated.append(num_steps_done)
        return {"accuracy": float(num_steps_done)}


class RecordingCheckpoints:
    """Notes what the loop asks of a `CheckpointManager`."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def __getattr__(self, name: str) -> Callable[[int], None]:
        return lambda step: self.calls.append((name, step))


def quadratic_trainer(**options: Any) -> Trainer[Tensor]:
    task = Quadratic()
    return Trainer(
        task=task,
        optimizer=torch.optim.SGD([task.weight], 0.1),
        learning_rates=lambda step: [0.1 / (step + 1)],
        scaler=loss_scaler("fp32"),
        **options,
    )


def test_validations_are_logged_with_their_step_and_saved_at_once() -> None:
    points: list[dict[str, float]] = []
    checkpoints = RecordingCheckpoints()
    trainer = quadratic_trainer(
        guard=FiniteGuard(lambda _: pytest.fail("not finite")),
        logger=StepLogger(lambda step, _, **values: points.append({"step": step, **values}), log_every=3, batch_size=1),
        checkpoints=checkpoints,
    )
    trainer.train([torch.ones(())] * 5, first_step=0, num_steps=5)
    assert [point["step"] for point in points] == [2, 3, 4, 5]
    assert [point.get("accuracy") for point in points] == [2, None, 4, None]
    assert [point["lr"] for point in points] == [0.1 / step for step in (2, 3, 4, 5)]
    assert all(point["gradient_norm"] > 0 and point["images_per_second"] > 0 for point in points)
    assert [step for name, step in checkpoints.calls if name == "save"] == [2, 4]
    assert [step for name, step in checkpoints.calls if name == "save_if_due"] == [1, 2, 3, 4, 5]
    assert checkpoints.calls[-1] == ("finish", 5)


def test_speed_is_that_of_the_steps_since_the_run_was_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten images in four seconds, of which one was spent on data. Loading the checkpoint took a minute before."""
    clock = [0.0]
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    logger = StepLogger(lambda *_, **__: None, log_every=1, batch_size=10)
    clock[0] += 60

    def read() -> Iterator[int]:
        clock[0] += 1
        yield 0

    next(logger.timed(read(), first_step=100))
    clock[0] += 3
    assert logger.throughput(101) == {"images_per_second": 2.5, "data_wait_share": 0.25}


def test_a_loss_that_is_not_finite_stops_before_the_next_validation() -> None:
    trainer = quadratic_trainer(guard=FiniteGuard(lambda _: Path("dump.pt"), "lower protocol.lr"))
    assert isinstance(trainer.task, Quadratic)
    batches = [torch.tensor(value) for value in (1.0, 1.0, 1.0, float("nan"), 1.0)]
    with pytest.raises(TrainingFailed, match=r"at step 4: lower protocol\.lr.*dump\.pt"):
        trainer.train(batches, first_step=0, num_steps=5)
    assert trainer.task.validated == [2]


def test_gradients_are_clipped_to_their_total_norm() -> None:
    trainer = quadratic_trainer(guard=FiniteGuard(lambda _: pytest.fail("not finite")), clip_norm=0.5)
    _, norm = trainer.train_step(torch.tensor(3.0), 0)
    assert norm == 6  # before clipping
    assert trainer.optimizer.param_groups[0]["params"][0].item() == pytest.approx(0.1 * 0.5)
