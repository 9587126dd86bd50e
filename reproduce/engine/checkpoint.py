"""Checkpoints: one file with everything that a run needs to go on, whole or not there."""

import pickle
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch

from reproduce.engine.distributed import barrier, is_main
from reproduce.errors import UserError
from reproduce.files import write_with


def save(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values; a reader never sees a part of the file."""
    write_with(path, lambda file: _write(state, file))


def _write(state: dict[str, Any], file: BinaryIO) -> None:
    try:
        torch.save(state, file)
    except RuntimeError as error:
        # Closing its archive on a full disk, torch hides the system's error behind one of its own.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU. Only tensors and plain values are unpickled: the file can't run code."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(
            f"checkpoint {path} is not there; give a file, or the run_id of a finished pretraining"
        ) from error
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"checkpoint {path} can't be read ({reason}); delete it and run its pretraining again"
        ) from error


class Part(Protocol):
    """Something with a state: a network, a method, an optimiser."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Take up what `state_dict` gave."""


class Checkpoints:
    """A run's checkpoint: taken up at the start, written every now and then and at the end."""

    def __init__(self, path: Path, parts: Mapping[str, Part], every_seconds: float) -> None:
        self.path, self.parts, self.every_seconds = path, parts, every_seconds
        self._saved_at = time.monotonic()

    def resume(self) -> int:
        """Load every part, where there is a checkpoint; returns the number of steps that it has seen."""
        barrier()
        if not self.path.exists():
            return 0
        state = load(self.path)
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        print(f"going on from step {state['step']}", flush=True)
        return state["step"]

    def save_if_due(self, step: int) -> None:
        """Save, where `every_seconds` have passed since the last time."""
        if time.monotonic() - self._saved_at >= self.every_seconds:
            self.save(step)

    def save(self, step: int) -> None:
        """Save all parts after `step` steps, on rank 0."""
        if is_main():
            save(self.path, {"step": step, **{name: part.state_dict() for name, part in self.parts.items()}})
        self._saved_at = time.monotonic()
