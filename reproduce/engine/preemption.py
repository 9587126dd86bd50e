"""Preemption: a scheduler that needs the machine sends SIGTERM or SIGUSR1 some time before it kills the run."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from reproduce.engine.checkpoint import CheckpointManager
from reproduce.engine.distributed.collectives import any_rank, barrier, world_size
from reproduce.system import STOP_SIGNALS


class Preempted(Exception):
    """Raised on every rank after a stop request, once the run's state is saved."""


class _StopRequested(Exception):
    """Leaves `rank_local_work` on a rank that received a signal."""


class Preemption:
    """Turns stop signals into a flag while entered, so that a run stops between steps with its state saved."""

    def __init__(self, sync_every_steps: int) -> None:
        self._sync_every_steps = sync_every_steps
        self._signalled = False
        self._previous_handlers: dict[int, object] = {}

    def __enter__(self) -> "Preemption":
        self._previous_handlers = {number: signal.signal(number, self._set_flag) for number in STOP_SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def stop_requested(self, step: int) -> bool:
        """Return whether any rank received a stop signal; the same answer on all ranks. A collective.

        Several ranks synchronize only at multiples of `sync_every_steps`, because each time waits for the device;
        at other steps the answer is False. Pass step 0 to synchronize now.
        """
        if world_size() == 1:
            return self._signalled
        if step % self._sync_every_steps:
            return False
        return any_rank(self._signalled)

    def stop_if_requested(self, step: int, saved: str) -> None:
        """Raise `Preempted` if `stop_requested(step)`; `saved` ends the message: "the features are saved"."""
        if self.stop_requested(step):
            raise Preempted(f"stop requested; {saved}")

    def checkpoint_and_stop_if_requested(
        self, checkpoints: CheckpointManager, step: int, num_steps: int, *, sync_now: bool = False
    ) -> None:
        """Save a checkpoint and raise `Preempted` if a stop was requested. Does nothing after the last step.

        `sync_now` synchronizes the ranks even if `step` is no multiple of `sync_every_steps`.
        """
        if step < num_steps and self.stop_requested(0 if sync_now else step):
            checkpoints.save(step)
            checkpoints.wait()
            barrier()  # a rank that exits takes the others with it: all wait until rank 0 has written the file
            raise Preempted(f"stop requested; saved after step {step} of {num_steps}")

    @contextmanager
    def rank_local_work(self, saved: str) -> Iterator[Callable[[], None]]:
        """Run work that each rank does by itself. Yields a function that leaves the block if a stop was requested.

        Call that function often. All ranks meet at the end; if any has left early, all raise `Preempted`, and `saved`
        ends the message.
        """
        left_early = False
        try:
            yield self._leave_if_signalled
        except _StopRequested:
            left_early = True
        if any_rank(left_early):
            raise Preempted(f"stop requested; {saved}")

    def _leave_if_signalled(self) -> None:
        if self._signalled:
            raise _StopRequested

    def _set_flag(self, _signal: int, _frame: FrameType | None) -> None:
        self._signalled = True
