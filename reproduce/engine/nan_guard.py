"""Stop at a loss that is NaN or infinite. The check runs one step late, so that the loop never waits for the device."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reproduce.engine.distributed.collectives import all_reduce_max
from reproduce.errors import TrainingFailed

DumpTensors = Callable[[dict[str, Any]], Path]
"""Write this rank's tensors to a file and return its path."""


def nonfinite_remedy(lr_keys: str = "the learning rate") -> str:
    """Return what to try if a loss or the weights are not finite; `lr_keys` names the config's learning rates."""
    return f"lower {lr_keys}, or use precision=fp32"


class FiniteGuard:
    """Stops all ranks when the loss of any rank is not finite, and dumps the tensors that produced it.

    A step's flag is copied to the host while the device runs the next step. By the time it is read, the step has
    already updated the weights; `CheckpointManager` does not save weights that are not finite.
    """

    def __init__(self, dump: DumpTensors, remedy: str = nonfinite_remedy()) -> None:
        """Guard with `dump` to save the tensors, and `remedy` to end the error message."""
        self._dump, self._remedy = dump, remedy
        self._pending: tuple[int, Tensor, dict[str, Any]] | None = None
        self._copied = torch.cuda.Event() if torch.cuda.is_available() else None

    def update(self, step: int, loss: Tensor, **tensors: Any) -> None:
        """Check the previous step, then queue this one with the tensors to dump. A collective."""
        self.check()
        flag = all_reduce_max((~loss.detach().isfinite()).float())
        if self._copied is not None:
            flag = torch.empty_like(flag, device="cpu", pin_memory=True).copy_(flag, non_blocking=True)
            self._copied.record()
        detached = {name: value.detach() for name, value in tensors.items() if isinstance(value, Tensor)}
        self._pending = step, flag, {"step": step, "loss": loss.detach(), **detached}

    def check(self) -> None:
        """Check the queued step, waiting for the device. Raises `TrainingFailed` on every rank if any loss is bad."""
        if self._pending is None:
            return
        (step, flag, tensors), self._pending = self._pending, None
        if self._copied is not None:
            self._copied.synchronize()
        if not flag.item():
            return
        if tensors["loss"].isfinite():
            raise TrainingFailed(f"the loss of another rank is not finite at step {step}: {self._remedy}")
        path = self._dump(tensors)
        raise TrainingFailed(
            f"the loss is {tensors['loss'].item()} at step {step}: {self._remedy}; its tensors are in {path}"
        )
