"""NaN and infinity: noticed one step later, so that the loop never waits for the device."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reproduce.engine.distributed.collectives import all_reduce_max
from reproduce.errors import TrainingFailed

REMEDY = "lower optimizer.lr, or use precision=fp32"
Keep = Callable[[dict[str, Any]], Path]
"""Writes tensors to a file of this rank, and says which."""


class FiniteGuard:
    """Stops all ranks at a loss that is not finite on one of them, and keeps the tensors that made it.

    The flag of a step reaches the host while the device works on the next one. Its weights have been updated by then;
    `Checkpoints` doesn't save such weights.
    """

    def __init__(self, keep: Keep, hint: str = REMEDY) -> None:
        self._keep, self._hint = keep, hint
        self._pending: tuple[int, Tensor, dict[str, Any]] | None = None
        self._copied = torch.cuda.Event() if torch.cuda.is_available() else None

    def take(self, step: int, loss: Tensor, **made: Any) -> None:
        """Judge the step before, and take up this one: its loss, and what it was made of."""
        self.check()
        flag = all_reduce_max((~loss.detach().isfinite()).float())
        if self._copied is not None:
            flag = torch.empty_like(flag, device="cpu", pin_memory=True).copy_(flag, non_blocking=True)
            self._copied.record()
        tensors = {name: value.detach() for name, value in made.items() if isinstance(value, Tensor)}
        self._pending = step, flag, {"step": step, "loss": loss.detach(), **tensors}

    def check(self) -> None:
        """Judge the last step taken up. Raises `TrainingFailed` on every rank, where any rank's loss is not finite."""
        if self._pending is None:
            return
        (step, flag, made), self._pending = self._pending, None
        if self._copied is not None:
            self._copied.synchronize()
        if not flag.item():
            return
        if made["loss"].isfinite():
            raise TrainingFailed(f"the loss of another rank is not finite at step {step}: {self._hint}")
        where = self._keep(made)
        raise TrainingFailed(
            f"the loss is {made['loss'].item()} at step {step}: {self._hint}; what made it is in {where}"
        )
