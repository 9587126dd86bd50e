"""Detectron2's trainer with the hooks of our runs: NaN guard, log, preemption, checkpoint."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from evals.voc_detection.compatibility import HookBase, SimpleTrainer
from evals.voc_detection.dataset import DatasetDict
from evals.voc_detection.detector import total_loss
from reproduce.engine.checkpoint import CheckpointManager
from reproduce.engine.distributed.collectives import all_reduce_mean, rank
from reproduce.engine.first_steps import FirstSteps
from reproduce.engine.loop import StepLogger, StepOutput, clip_gradients, step_values
from reproduce.engine.nan_guard import FiniteGuard
from reproduce.engine.precision import autocast
from reproduce.engine.preemption import Preemption


class DetectorTrainer(SimpleTrainer):  # type: ignore[misc]
    """Detectron2's trainer with its own loop and hooks, and a step of ours.

    `SimpleTrainer`'s step reads every loss back to the host, and `AMPTrainer`'s needs CUDA. Ours waits for the device
    in steps that log only, runs under the run's precision anywhere, and seeds what it draws from seed, step and rank,
    so that a resumed run takes the same steps as an uninterrupted one.
    """

    losses: dict[str, Tensor]
    """The last step's losses by name, of this rank's images."""
    loss: Tensor
    """Their sum."""
    inputs: list[DatasetDict]
    """The last step's images and boxes."""

    def __init__(
        self,
        model: nn.Module,
        batches: Iterator[list[DatasetDict]],
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        precision: str,
        seed: int,
    ) -> None:
        super().__init__(model, batches, optimizer)
        self.scaler, self.precision, self.seed = scaler, precision, seed

    def run_step(self) -> None:
        """Take one optimizer step on the next batch."""
        self.inputs = next(self._data_loader_iter)
        torch.manual_seed(proposal_seed(self.seed, self.iter))  # the model samples proposals
        with autocast(self.precision):
            self.losses = self.model(self.inputs)
        self.loss = total_loss(self.losses)
        self.optimizer.zero_grad()
        self.scaler.scale(self.loss).backward()
        self.scaler.unscale_(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()


class GuardHook(HookBase):  # type: ignore[misc]
    """Stops the training at a loss that is not finite."""

    def __init__(self, guard: FiniteGuard) -> None:
        self.guard = guard

    def after_step(self) -> None:
        """Check the previous step's loss, and queue this one's."""
        self.guard.update(self.trainer.iter + 1, self.trainer.loss, **self.trainer.losses)


class RecordHook(HookBase):  # type: ignore[misc]
    """Records the first steps, as `Trainer` of the engine does."""

    def __init__(self, recorder: FirstSteps) -> None:
        self.recorder = recorder

    def after_step(self) -> None:
        """Record the step if it is one of the first."""
        trainer = self.trainer
        if not self.recorder.wants(trainer.iter):
            return
        images = [each["image"].float() for each in trainer.inputs]
        boxes = [(each["instances"].gt_classes, each["instances"].gt_boxes.tensor) for each in trainer.inputs]
        losses = {name: all_reduce_mean(each.detach().clone()) for name, each in trainer.losses.items()}
        rates = [group["lr"] for group in trainer.optimizer.param_groups]
        gradient_norm = clip_gradients(trainer.optimizer)
        self.recorder.record(trainer.iter, (images, boxes), trainer.loss, losses, gradient_norm, rates)


class LogHook(HookBase):  # type: ignore[misc]
    """Logs the sum of the losses, and each by its name."""

    def __init__(self, logger: StepLogger, guard: FiniteGuard) -> None:
        self.logger, self.guard = logger, guard

    def after_step(self) -> None:
        """Log what `Trainer` of the engine logs, if it is due."""
        trainer, done = self.trainer, self.trainer.iter + 1
        if not self.logger.is_due(done, trainer.max_iter):
            return
        self.guard.check()
        losses = {name: all_reduce_mean(each.detach().clone()) for name, each in trainer.losses.items()}
        output = StepOutput(trainer.loss, losses)
        values = step_values(output, done, trainer.optimizer, trainer.scaler, clip_gradients(trainer.optimizer))
        self.logger.log(done, trainer.max_iter, **values, **self.logger.throughput(done))


class CheckpointHook(HookBase):  # type: ignore[misc]
    """Saves a checkpoint if it is due, and stops the run if a stop was requested."""

    def __init__(self, checkpoints: CheckpointManager, preemption: Preemption) -> None:
        self.checkpoints, self.preemption = checkpoints, preemption

    def after_step(self) -> None:
        """Save and stop if a stop was requested; otherwise save a checkpoint if it is due."""
        done = self.trainer.iter + 1
        self.preemption.checkpoint_and_stop_if_requested(self.checkpoints, done, self.trainer.max_iter)
        self.checkpoints.save_if_due(done)


def proposal_seed(seed: int, step: int) -> int:
    """Return the seed of the model's proposal sampling in a step; ranks, which see different images, differ."""
    return (seed * 1_000_003 + step) * 4096 + rank()
