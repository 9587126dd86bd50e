"""Checkpoints: one file with everything that a run needs to resume, complete or absent."""

import hashlib
import os
import pickle
import shutil
import sys
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch

from reproduce.engine.distributed.collectives import (
    all_reduce_sum,
    any_rank,
    barrier,
    device,
    is_main,
    others_wait,
    world_size,
)
from reproduce.engine.nan_guard import nonfinite_remedy
from reproduce.errors import TrainingFailed, UserError
from reproduce.files import write_atomic, write_atomic_with

LOAD_ERRORS = (RuntimeError, EOFError, pickle.UnpicklingError, LookupError, ValueError, AttributeError, TypeError)
"""Errors that torch.load raises on a damaged or foreign file, depending on its bytes."""
OPTIONAL = {"collapse_detector", "first_steps"}
"""States that checkpoints of earlier versions lack, and a resumed run can do without."""
NUM_KEPT = 2
"""Checkpoints kept during a run: the newest, and the one before it in case the newest is damaged."""
ROOM_CHECK_SECONDS = 30.0
"""How often a training looks whether the disk has room for its next checkpoint."""
FINAL = -1
"""Stands for `checkpoint.pt`, the checkpoint of a finished training, where a step number is expected."""


def save(path: Path, state: dict[str, Any]) -> Path:
    """Write tensors and plain values to `path`, completely or not at all, and return `path`."""
    write_atomic_with(path, lambda file: _write(state, file))
    return path


def _write(state: dict[str, Any], file: BinaryIO) -> None:
    try:
        torch.save(state, file)
    except RuntimeError as error:
        # On a full disk, torch fails again while closing its archive and hides the first error behind its own.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def require_file(path: Path) -> None:
    """Raise `UserError` unless `path` is a regular file, before anything waits for the content of a pipe or device."""
    if path.is_file():
        return
    reason = "is a folder" if path.is_dir() else "is a pipe or device" if path.exists() else "does not exist"
    raise UserError(f"checkpoint {path} {reason}; give a file, or the run_id of a finished pretraining")


def load(path: Path) -> dict[str, Any]:
    """Load a checkpoint to the CPU. Only tensors and plain values are unpickled, so the file can't run code.

    Raises `UserError` if the file is missing, damaged, or not written by torch.
    """
    require_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except LOAD_ERRORS as error:
        first_sentence = str(error).partition("\n")[0].partition(". ")[0]
        reason = first_sentence if isinstance(error, RuntimeError) else "torch did not write it"
        raise UserError(
            f"checkpoint {path} can't be read ({reason}); delete it and run its pretraining again"
        ) from error


class Stateful(Protocol):
    """An object whose state goes into checkpoints: a network, a method, an optimizer."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Load the result of `state_dict`."""


class CheckpointManager:
    """Loads a run's newest checkpoint at the start, saves periodically and at the end, and keeps the last two.

    During a run the files are `checkpoint-<step>.pt`, each valid once its SHA-256 is beside it. The loop waits only for
    the copy to host memory; a thread writes the file. At the end one file remains: `checkpoint.pt`.
    """

    def __init__(
        self,
        path: Path,
        states: Mapping[str, Stateful],
        save_every_seconds: float,
        sync_every_steps: int = 1,
        nonfinite_remedy: str = nonfinite_remedy(),
    ) -> None:
        """Manage `path` (`checkpoint.pt`) and the numbered files beside it.

        Several ranks agree every `sync_every_steps` steps on whether a save is due. `nonfinite_remedy` ends the error
        message of a training whose weights are not finite.
        """
        self._nonfinite_remedy = nonfinite_remedy
        self.path, self.states, self.save_every_seconds = path, states, save_every_seconds
        self._sync_every_steps = sync_every_steps if world_size() > 1 else 1
        self._last_save_time = self._last_room_check = time.monotonic()
        self._without_room = False
        self._pending_write: Future[None] | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")

    def resume(self) -> int:
        """Load every state from the newest intact checkpoint and return its step, or 0 if there is none. A collective.

        Skips a damaged newest file with a warning, and deletes it once the previous one is loaded. Raises `UserError`
        if all are damaged. Rank 0 chooses the file for all ranks, which could otherwise see different ones.
        """
        found = self._broadcast(self._newest_intact_step() if is_main() else 0)
        if not found:
            return 0
        state = load(self.path if found == FINAL else self._path_at(found))
        if missing := sorted(set(self.states) - set(state) - OPTIONAL):
            raise UserError(
                f"the checkpoints in {self.path.parent} have no {', '.join(missing)}: another version of the code "
                "wrote them; resume with that version, or delete them to start over"
            )
        for name, target in self.states.items():
            if name in state:
                target.load_state_dict(state[name])
        step = int(state["step"])
        barrier()
        if is_main():
            for path in self._numbered_paths():
                if path > self._path_at(step):
                    self._delete(path)  # it is damaged, and would count as one of the NUM_KEPT
            print(f"resuming from step {step}", flush=True)
        return step

    def _newest_intact_step(self) -> int:
        """Return the step of the newest intact checkpoint, FINAL for `checkpoint.pt`, or 0 if there is none."""
        paths = self._numbered_paths()
        for path in reversed(paths):
            if self._is_intact(path):
                return _step_of(path)
        if paths and not self.path.exists():
            raise UserError(f"all checkpoints in {self.path.parent} are damaged; delete them to start over")
        return FINAL if self.path.exists() else 0

    @staticmethod
    def _broadcast(number: int) -> int:
        """Return rank 0's number on every rank; the other ranks pass 0."""
        return int(all_reduce_sum(torch.tensor(number, device=device())).item())

    def save_if_due(self, step: int) -> None:
        """Save if `save_every_seconds` have passed since the last save. A collective every `sync_every_steps`.

        Between saves, say it at once if the disk has no room for the next one: there is time to make some.
        """
        if is_main() and time.monotonic() - self._last_room_check >= ROOM_CHECK_SECONDS:
            self._last_room_check = time.monotonic()
            self._warn_without_room()
        if step % self._sync_every_steps:
            return
        if any_rank(time.monotonic() - self._last_save_time >= self.save_every_seconds):
            self.save(step)

    def save(self, step: int) -> None:
        """Copy all states as they are after `step` steps; rank 0's thread writes them. A collective."""
        self.wait()
        states = {name: source.state_dict() for name, source in self.states.items()}
        if is_main():
            self._pending_write = self._writer.submit(self._write, step, {"step": step, **_copy_to_cpu(states)})
        self._last_save_time = time.monotonic()

    def _warn_without_room(self) -> None:
        """Warn, once for each time that it happens, if the disk has less room than the last checkpoint takes."""
        free = shutil.disk_usage(self.path.parent).free
        # Not from the states: a method's is a collective, and only rank 0 is here.
        needed = max((path.stat().st_size for path in self._numbered_paths()), default=0)
        if free < needed and not self._without_room:
            print(
                f"warning: {self.path.parent} has {free / 1e9:.1f} GB free, and the next checkpoint takes about "
                f"{needed / 1e9:.1f} GB: free some space there, or this run will end when it saves, within "
                f"{self.save_every_seconds / 60:.0f} minutes, and resume from the checkpoint before",
                file=sys.stderr,
                flush=True,
            )
        self._without_room = free < needed

    def wait(self) -> None:
        """Wait until the last save is on disk. Raises the error of that save, if it failed."""
        if self._pending_write is not None:
            self._pending_write.result()
            self._pending_write = None

    def finish(self, step: int) -> None:
        """Save the last step as `checkpoint.pt` and delete all others. A collective.

        Raises `TrainingFailed` on rank 0 if the final state is not finite.
        """
        self.save(step)
        with others_wait("writes the last checkpoint"):
            self.wait()
        if is_main():
            if not self._path_at(step).exists():
                raise TrainingFailed(
                    f"the weights after the last step, {step}, are not finite: {self._nonfinite_remedy}"
                )
            os.replace(self._path_at(step), self.path)
            for path in self._numbered_paths():
                path.unlink()
            for path in self.path.parent.glob("checkpoint-*.sha256"):
                path.unlink()
        self._writer.shutdown()

    def _path_at(self, step: int) -> Path:
        return self.path.with_name(f"checkpoint-{step:08d}.pt")

    def _numbered_paths(self) -> list[Path]:
        return sorted(self.path.parent.glob("checkpoint-*.pt"))

    def _write(self, step: int, state: dict[str, Any]) -> None:
        if not _is_finite(state):
            print(f"warning: the state after step {step} is not finite; not saved", file=sys.stderr, flush=True)
            return
        path = self._path_at(step)

        def fill(file: BinaryIO) -> None:
            _write(state, file)
            file.seek(0)
            # Before the checkpoint gets its name: a run killed in between would find it without a digest, as damaged.
            write_atomic(path.with_suffix(".sha256"), _sha256(file))

        write_atomic_with(path, fill)
        for old in self._numbered_paths()[:-NUM_KEPT]:
            self._delete(old)

    @staticmethod
    def _delete(path: Path) -> None:
        path.with_suffix(".sha256").unlink(missing_ok=True)
        path.unlink()

    def _is_intact(self, path: Path) -> bool:
        digest = path.with_suffix(".sha256")
        with path.open("rb") as file:
            if digest.exists() and digest.read_text() == _sha256(file):
                return True
        print(f"warning: checkpoint {path} is damaged; using the previous one", file=sys.stderr, flush=True)
        return False


def _step_of(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])


def _copy_to_cpu(value: Any) -> Any:
    """Return a deep copy on the CPU, which the next step cannot change."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _copy_to_cpu(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copy_to_cpu(item) for item in value]
    return value


def _is_finite(value: Any) -> bool:
    """Return whether every floating-point tensor in a nested state is finite."""
    if isinstance(value, torch.Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return all(_is_finite(item) for item in items)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal; results identify checkpoints by it."""
    with open(path, "rb") as file:
        return _sha256(file)


def _sha256(file: BinaryIO) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # all our files have readinto
