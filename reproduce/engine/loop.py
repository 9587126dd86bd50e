"""The training loop of pretraining, classifiers, finetuning and DETR.

A `TrainTask` computes the loss of one batch, the `Trainer` does everything around it. A run that resumes from its last
checkpoint takes the same steps as an uninterrupted one.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from reproduce.engine import checkpoint
from reproduce.engine.checkpoint import CheckpointManager, Stateful
from reproduce.engine.distributed.collectives import all_reduce_mean, rank
from reproduce.engine.first_steps import FirstSteps
from reproduce.engine.nan_guard import FiniteGuard, nonfinite_remedy
from reproduce.engine.preemption import Preemption
from reproduce.engine.runs.provenance import peak_memory_gb
from reproduce.engine.runs.run import Run
from reproduce.errors import TrainingFailed

Batch = TypeVar("Batch")


@dataclass
class StepOutput:
    """The result of a task's forward pass on one batch."""

    loss: Tensor
    """Scalar, with gradient: the loss of this rank's share of the batch."""
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    """Scalars to log, the same on every rank."""
    tensors: Mapping[str, Any] = field(default_factory=dict)
    """What the loss was computed from; written to disk if the loss is not finite."""


class TrainTask(ABC, Generic[Batch]):
    """What the loop trains. Pretraining and every evaluation that trains supply their own."""

    validate_every_steps: int = 0
    """How often `validate` is called; 0: never."""

    @abstractmethod
    def forward(self, batch: Batch, step: int) -> StepOutput:
        """Compute the loss of one batch, which is on the device already. Autocast is up to the task."""

    def after_backward(self, step: int) -> None:
        """Change gradients or state between the backward pass and the optimizer step."""

    def validates_after(self, num_steps_done: int) -> bool:
        """Return whether a validation is due after this many steps."""
        return self.validate_every_steps > 0 and num_steps_done % self.validate_every_steps == 0

    def validate(self, num_steps_done: int) -> dict[str, float]:  # noqa: ARG002
        """Return validation metrics to log, or {} if this validation is skipped; leave the network in train mode."""
        return {}


class StepLogger:
    """Logs a training's curves every `log_every` steps, after the last step and after each validation."""

    def __init__(self, write: Callable[..., None], log_every: int, batch_size: int) -> None:
        """Log by calling `write(step, num_steps, **values)`; `batch_size` is global."""
        self._write, self._log_every, self._batch_size = write, log_every, batch_size
        self._data_time = 0.0
        self._restart_clock(0)

    def timed(self, batches: Iterable[Batch], first_step: int) -> Iterator[Batch]:
        """Yield `batches`, and measure how long the loop waits for them."""
        self._restart_clock(first_step)
        iterator = iter(batches)
        while True:
            step_end_time = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._data_time += time.perf_counter() - step_end_time
            yield batch

    def is_due(self, step: int, num_steps: int) -> bool:
        """Return whether the curves of this step are logged."""
        return step % self._log_every == 0 or step == num_steps

    def throughput(self, step: int) -> dict[str, float]:
        """Return images per second since the last log, of all ranks, and the share of that time spent on data."""
        seconds = time.perf_counter() - self._last_log_time
        num_images = (step - self._last_log_step) * self._batch_size
        return {"images_per_second": num_images / seconds, "data_wait_share": self._data_time / seconds}

    def log(self, step: int, num_steps: int, **values: float) -> None:
        """Write the values of one step; what follows is timed from here."""
        self._write(step, num_steps, **values)
        self._restart_clock(step)

    def _restart_clock(self, step: int) -> None:
        self._last_log_step, self._last_log_time, self._data_time = step, time.perf_counter(), 0.0


@dataclass(kw_only=True)
class Trainer(Generic[Batch]):
    """Trains a task: set the rate, take a step, guard against NaN, log, stop if preempted, checkpoint.

    Recorder, logger, checkpoints and preemption are optional. A step that neither logs nor validates never waits for
    the device, except under fp16: there the scaler reads whether gradients overflowed before each optimizer step.
    """

    task: TrainTask[Batch]
    optimizer: torch.optim.Optimizer
    learning_rates: Callable[[int], Sequence[float]]
    """Maps a step to the learning rate of each parameter group."""
    scaler: torch.amp.GradScaler
    """Does nothing unless precision is fp16 (`precision.loss_scaler`). LARC and `clip_norm` see unscaled gradients."""
    guard: FiniteGuard
    clip_norm: float = math.inf
    """Gradients whose total norm is larger are scaled down to it."""
    recorder: FirstSteps | None = None
    logger: StepLogger | None = None
    checkpoints: CheckpointManager | None = None
    preemption: Preemption | None = None

    def train(self, batches: Iterable[Batch], first_step: int, num_steps: int) -> None:
        """Train from `first_step` to `num_steps`, on one batch per step, and save the last checkpoint.

        Raises `TrainingFailed` if a loss is not finite, `Preempted` if a stop was requested.
        """
        timed = self.logger.timed(batches, first_step) if self.logger else batches
        for step, batch in enumerate(timed, start=first_step):
            done = step + 1
            validation_due = self.task.validates_after(done)
            log_due = validation_due or (self.logger is not None and self.logger.is_due(done, num_steps))

            self._set_learning_rates(step)
            recording = self.recorder is not None and self.recorder.wants(step)
            output, gradient_norm = self.train_step(batch, step, measure_gradients=log_due or recording)
            if self.recorder and recording:
                rates = [group["lr"] for group in self.optimizer.param_groups]
                self.recorder.record(step, batch, output.loss, output.metrics, gradient_norm, rates)
            self.guard.update(done, output.loss, **output.tensors)
            validated = False
            if log_due:
                self.guard.check()
                values = step_values(output, done, self.optimizer, self.scaler, gradient_norm)
                values |= self.logger.throughput(done) if self.logger else {}
                validation = self.task.validate(done) if validation_due else {}
                validated = bool(validation)
                if self.logger:
                    self.logger.log(done, num_steps, **values, **validation)
            self._stop_if_preempted(done, num_steps, validated=validated)
            self._save_checkpoint(done, num_steps, validated=validated)
        self.guard.check()
        if self.checkpoints:
            self.checkpoints.finish(num_steps)

    def train_step(
        self, batch: Batch, step: int, *, measure_gradients: bool = False
    ) -> tuple[StepOutput, Tensor | None]:
        """Take one optimizer step; return the task's output and the gradient norm if it was computed."""
        self.optimizer.zero_grad()  # before the forward pass, whose activations need the memory
        output = self.task.forward(batch, step)
        self.scaler.scale(output.loss).backward()
        self.scaler.unscale_(self.optimizer)
        self.task.after_backward(step)
        gradient_norm = None
        if measure_gradients or self.clip_norm < math.inf:
            gradient_norm = clip_gradients(self.optimizer, self.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return output, gradient_norm

    def _set_learning_rates(self, step: int) -> None:
        for group, lr in zip(self.optimizer.param_groups, self.learning_rates(step), strict=True):
            group["lr"] = lr

    def _stop_if_preempted(self, done: int, num_steps: int, *, validated: bool) -> None:
        """Save and raise `Preempted` if a stop was requested; ranks agree on it at once after a validation."""
        if self.preemption and self.checkpoints:
            self.preemption.checkpoint_and_stop_if_requested(self.checkpoints, done, num_steps, sync_now=validated)

    def _save_checkpoint(self, done: int, num_steps: int, *, validated: bool) -> None:
        """Save if a checkpoint is due, or after a validation, which may have taken minutes."""
        if self.checkpoints is None:
            return
        if validated and done < num_steps:
            self.checkpoints.save(done)
        self.checkpoints.save_if_due(done)


def resume(run: Run, lr_keys: str, /, **state: Stateful) -> tuple[CheckpointManager, int]:
    """Load the run's last checkpoint into `state`; return the checkpoint manager and the number of steps done.

    `lr_keys` names the config's learning rates, for the error of weights that are not finite.
    """
    checkpoints = CheckpointManager(
        run.checkpoint,
        {**state, "counts": run.counts, "first_steps": run.first_steps},
        run.cfg.checkpointing.save_every_seconds,
        run.cfg.checkpointing.sync_every_steps,
        nonfinite_remedy(lr_keys),
    )
    first_step = checkpoints.resume()
    run.metrics.truncate(first_step)
    run.resumed_from(first_step)
    return checkpoints, first_step


def build_nan_guard(run: Run, lr_keys: str) -> FiniteGuard:
    """Return a guard that dumps tensors to the run's folder, and whose error names the config's learning rates."""

    def dump_nonfinite(tensors: dict[str, Any]) -> Path:
        return checkpoint.save(run.folder / f"not-finite-rank{rank()}.pt", tensors)

    return FiniteGuard(dump_nonfinite, nonfinite_remedy(lr_keys))


def step_values(
    output: StepOutput,
    step: int,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    gradient_norm: Tensor | None,
) -> dict[str, float]:
    """Return the metrics of one step to log, as plain numbers. A collective that waits for the device."""
    values = {"loss": all_reduce_mean(output.loss.detach().clone()).item(), "lr": optimizer.param_groups[0]["lr"]}
    values |= _loss_scale(scaler, step)
    values |= {name: value.item() for name, value in output.metrics.items()}
    if gradient_norm is not None and math.isfinite(norm := gradient_norm.item()):
        # Under fp16 the scaler skips a step whose gradients overflow; otherwise the next loss shows the overflow.
        values["gradient_norm"] = norm
    return values | {"peak_memory_gb": peak_memory_gb()}


def clip_gradients(optimizer: torch.optim.Optimizer, max_norm: float = math.inf) -> Tensor:
    """Scale gradients down to a total norm of `max_norm`; return the norm before that."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if max_norm < math.inf:
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    return torch.nn.utils.get_total_norm([value.grad for value in parameters if value.grad is not None])


def _loss_scale(scaler: torch.amp.GradScaler, step: int) -> dict[str, float]:
    """Return the loss scale, under fp16; raise `TrainingFailed` if gradients overflow at any scale."""
    if not scaler.is_enabled():
        return {}
    scale = scaler.get_scale()
    if scale < 1:
        raise TrainingFailed(
            f"the gradients overflow fp16 even at a loss scale of {scale:g} (step {step}): lower the learning rate, or "
            "use precision=bf16"
        )
    return {"loss_scale": scale}
