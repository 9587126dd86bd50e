"""Checkpoints: one file with everything that a run needs to go on, whole or not there."""

import hashlib
import os
import pickle
import sys
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch

from reproduce.engine.distributed.collectives import all_reduce_sum, any_rank, barrier, device, is_main, world_size
from reproduce.errors import TrainingFailed, UserError
from reproduce.files import write_atomic, write_atomic_with

UNREADABLE = (RuntimeError, EOFError, pickle.UnpicklingError, LookupError, ValueError, AttributeError, TypeError)
"""What torch raises over a file that is damaged or none of its own, by the bytes that it meets."""
NUM_KEPT = 2
"""Checkpoints of a run under way: the newest, and the one before in case the newest is damaged."""


def save(path: Path, state: dict[str, Any]) -> Path:
    """Write tensors and plain values, and return `path`; a reader never sees a part of the file."""
    write_atomic_with(path, lambda file: _write(state, file))
    return path


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
    except (FileNotFoundError, IsADirectoryError) as error:
        reason = "a folder" if path.is_dir() else "not there"
        raise UserError(
            f"checkpoint {path} is {reason}; give a file, or the run_id of a finished pretraining"
        ) from error
    except UNREADABLE as error:
        of_torch = str(error).partition("\n")[0].partition(". ")[0]
        reason = of_torch if isinstance(error, RuntimeError) else "it is none of torch's files"
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
    """A run's checkpoints: taken up at the start, written every now and then and at the end, the last two kept.

    While a run is under way they are `checkpoint-<step>.pt`, each valid once its SHA-256 lies beside it. The loop waits
    only for the copy to memory; a thread writes. At the end one file remains, `checkpoint.pt`.
    """

    def __init__(self, path: Path, parts: Mapping[str, Part], every_seconds: float, agree_every_steps: int = 1) -> None:
        self.path, self.parts, self.every_seconds = path, parts, every_seconds
        self._agree_every_steps = agree_every_steps if world_size() > 1 else 1
        self._saved_at = time.monotonic()
        self._writing: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")

    def resume(self) -> int:
        """Load every part from the newest whole checkpoint; returns the number of steps that it has seen, or 0.

        A damaged newest one is passed over with a warning, and deleted once the one before is loaded; `UserError` where
        all are damaged. Rank 0 chooses, for all ranks: they must not see a different file each.
        """
        found = self._agreed(self._choose() if is_main() else 0)
        if not found:
            return 0
        state = load(self._at(found) if found > 0 else self.path)
        if strange := sorted(set(self.parts) - set(state)):
            raise UserError(
                f"the checkpoints in {self.path.parent} have no {', '.join(strange)}: other code wrote them; go on "
                "with that, or delete them to begin anew"
            )
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        step = int(state["step"])
        barrier()
        if is_main():
            for damaged in self._numbered():
                if damaged > self._at(step):
                    self._delete(damaged)  # or it would count as one of those kept
            print(f"going on from step {step}", flush=True)
        return step

    def _choose(self) -> int:
        """The step of the newest whole checkpoint, -1 for `checkpoint.pt`, 0 for none."""
        numbered = self._numbered()
        for path in reversed(numbered):
            if self._whole(path):
                return _step(path)
        if numbered and not self.path.exists():
            raise UserError(f"all checkpoints in {self.path.parent} are damaged; delete them to start anew")
        return -1 if self.path.exists() else 0

    @staticmethod
    def _agreed(number: int) -> int:
        """Rank 0's number, on every rank; the others give 0."""
        return int(all_reduce_sum(torch.tensor(number, device=device())).item())

    def save_if_due(self, step: int) -> None:
        """Save, where `every_seconds` have passed since the last time; ranks agree on it every few steps."""
        if step % self._agree_every_steps:
            return
        if any_rank(time.monotonic() - self._saved_at >= self.every_seconds):
            self.save(step)

    def save(self, step: int) -> None:
        """Copy all parts as they are after `step` steps, and let the thread of rank 0 write them. A collective."""
        self.wait()
        states = {name: part.state_dict() for name, part in self.parts.items()}
        if is_main():
            self._writing = self._thread.submit(self._write, step, {"step": step, **_copied(states)})
        self._saved_at = time.monotonic()

    def wait(self) -> None:
        """Wait until the last save is on the disk; what went wrong with it is raised here."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def finish(self, step: int) -> None:
        """Leave the last checkpoint as `checkpoint.pt`, and no other."""
        self.save(step)
        self.wait()
        if is_main():
            if not self._at(step).exists():
                raise TrainingFailed(f"the weights after the last step, {step}, are not finite: lower optimizer.lr")
            os.replace(self._at(step), self.path)
            for path in self._numbered():
                path.unlink()
            for path in self.path.parent.glob("checkpoint-*.sha256"):
                path.unlink()
        self._thread.shutdown()

    def _at(self, step: int) -> Path:
        return self.path.with_name(f"checkpoint-{step:08d}.pt")

    def _numbered(self) -> list[Path]:
        return sorted(self.path.parent.glob("checkpoint-*.pt"))

    def _write(self, step: int, state: dict[str, Any]) -> None:
        if not _finite(state):
            print(f"warning: the state after step {step} is not finite; not saved", file=sys.stderr, flush=True)
            return
        path = self._at(step)

        def fill(file: BinaryIO) -> None:
            _write(state, file)
            file.seek(0)
            # Before the checkpoint has its name: killed between the two, a run would take a whole one for damaged.
            write_atomic(path.with_suffix(".sha256"), _sha256(file))

        write_atomic_with(path, fill)
        for old in self._numbered()[:-NUM_KEPT]:
            self._delete(old)

    @staticmethod
    def _delete(path: Path) -> None:
        path.with_suffix(".sha256").unlink(missing_ok=True)
        path.unlink()

    def _whole(self, path: Path) -> bool:
        proof = path.with_suffix(".sha256")
        with path.open("rb") as file:
            if proof.exists() and proof.read_text() == _sha256(file):
                return True
        print(f"warning: checkpoint {path} is damaged; using the one before", file=sys.stderr, flush=True)
        return False


def _step(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])


def _copied(value: Any) -> Any:
    """A copy in memory that the next step does not change: tensors on the CPU, containers anew."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(item) for item in value]
    return value


def _finite(value: Any) -> bool:
    """Whether every floating tensor in a state is finite."""
    if isinstance(value, torch.Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return all(_finite(item) for item in items)


def sha256_of(path: Path) -> str:
    """Of a checkpoint's file: what a pretraining's result says it made, and an evaluation's what it measured."""
    with open(path, "rb") as file:
        return _sha256(file)


def _sha256(file: BinaryIO) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # every file of ours has readinto
