"""The pretraining loop."""

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from reproduce.engine.distributed.collectives import all_reduce_mean
from reproduce.engine.nan_guard import FiniteGuard, Keep
from reproduce.engine.precision import autocast
from reproduce.engine.runs.provenance import peak_memory_gb
from reproduce.errors import TrainingFailed


def train(
    net: nn.Module,
    method: Any,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[list[Tensor], Tensor]],
    learning_rate: Callable[[int], float],
    *,
    first_step: int,
    num_steps: int,
    batch_size: int,
    precision: str,
    scaler: torch.amp.GradScaler,
    tell: Callable[..., None],
    tell_every_steps: int,
    after_step: Callable[[int], None],
    keep_not_finite: Keep,
) -> None:
    """Train from `first_step` to `num_steps`; `batches` yields each step's crops and labels, ready on the device.

    `tell(step, num_steps, **values)` gets the curves, `after_step(num_done)` is called after every step (checkpoints).
    `scaler` may be one that does nothing (`precision.loss_scaler`); LARC sees gradients without its scale.
    Raises `TrainingFailed` where the loss is no longer finite; `keep_not_finite` gets the scores that made it.
    """
    guard = FiniteGuard(keep_not_finite)
    told, told_at, waited, loaded_at = first_step, time.perf_counter(), 0.0, time.perf_counter()
    for step, (crops, labels) in enumerate(batches, start=first_step):
        waited += time.perf_counter() - loaded_at
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        optimizer.zero_grad()  # before the forward pass, whose activations need the memory

        with autocast(precision):
            trained_on = method.before_step(step, crops, labels)
        method.before_forward()
        with autocast(precision):
            embeddings, scores = net(trained_on)
        loss, watched = method.loss(embeddings, scores, len(trained_on), step)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        method.after_backward(step)
        done = step + 1
        telling = done % tell_every_steps == 0 or done == num_steps
        gradient_norm = _gradient_norm(net) if telling else None
        scaler.step(optimizer)
        scaler.update()
        guard.take(done, loss, scores=scores, embeddings=embeddings)

        if gradient_norm is not None:
            guard.check()
            values = {"loss": all_reduce_mean(loss.detach()).item(), "lr": learning_rate(step)}
            values |= _loss_scale(scaler, done)
            values |= {name: value.item() for name, value in watched.items()}
            seconds = time.perf_counter() - told_at
            values |= _finite_norm(gradient_norm.item()) | {"peak_memory_gb": peak_memory_gb()}
            values |= {"images_per_second": (done - told) * batch_size / seconds, "data_wait_share": waited / seconds}
            tell(done, num_steps, **values)
            told, told_at, waited = done, time.perf_counter(), 0.0
        after_step(done)
        loaded_at = time.perf_counter()


def _gradient_norm(net: nn.Module) -> Tensor:
    """Norm of all gradients together, before LARC scales them."""
    return torch.nn.utils.get_total_norm([value.grad for value in net.parameters() if value.grad is not None])


def _finite_norm(norm: float) -> dict[str, float]:
    """The curve of the gradient norm, without a point where it overflows.

    A loss scaler skips such a step; without one, what comes of it shows in the loss, which is watched at every step.
    """
    return {"gradient_norm": norm} if math.isfinite(norm) else {}


def _loss_scale(scaler: torch.amp.GradScaler, step: int) -> dict[str, float]:
    """The curve of the loss scale, where there is one."""
    if not scaler.is_enabled():
        return {}
    scale = scaler.get_scale()
    if scale < 1:
        raise TrainingFailed(
            f"the gradients overflow fp16 even at a loss scale of {scale:g} (step {step}): lower optimizer.lr, or use "
            "precision=bf16"
        )
    return {"loss_scale": scale}
