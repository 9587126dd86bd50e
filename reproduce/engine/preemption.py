"""Stop a run with its state saved: at SIGTERM or SIGUSR1, which a scheduler sends before it kills, and at Ctrl-C."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from reproduce.engine.checkpoint import CheckpointManager
from reproduce.engine.distributed.collectives import any_rank, barrier, is_main, world_size
from reproduce.system import STOP_SIGNALS

INTERRUPTED = b"stopping, with the state saved; Ctrl-C again ends the run at once\n"


class Preempted(Exception):
    """Raised on every rank after a stop request, once the run's state is saved."""


class _StopRequested(Exception):
    """Leaves `rank_local_work` on a rank that received a signal."""


class Preemption:
    """Turns stop signals into a flag while entered, so that a run stops between steps with its state saved.

    A second Ctrl-C ends the process at once, even inside a collective that waits for ever. Ctrl-C stays ignored in a
    process that was started so, as the background jobs of a script are.
    """

    def __init__(self, sync_every_steps: int) -> None:
        self._sync_every_steps = sync_every_steps
        self._signalled = False
        self._previous_handlers: dict[int, object] = {}

    def __enter__(self) -> "Preemption":
        handled = [each for each in STOP_SIGNALS if each != signal.SIGINT or signal.getsignal(each) != signal.SIG_IGN]
        self._previous_handlers = {number: signal.signal(number, self._request_stop) for number in handled}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def stop_requested(self) -> bool:
        """Return whether any rank received a stop signal; the same answer on all ranks. A collective."""
        return any_rank(self._signalled)

    def stop_if_requested(self, saved: str) -> None:
        """Raise `Preempted` if `stop_requested()`; `saved` ends the message: "the features are saved". A collective."""
        if self.stop_requested():
            raise Preempted(f"stop requested; {saved}")

    def checkpoint_and_stop_if_requested(
        self, checkpoints: CheckpointManager, step: int, num_steps: int, *, sync_now: bool = False
    ) -> None:
        """Save a checkpoint and raise `Preempted` if a stop was requested. Does nothing after the last step.

        Several ranks ask each other only at multiples of `sync_every_steps`, because each time waits for the device,
        and where `sync_now` says so.
        """
        sync_now = sync_now or world_size() == 1 or step % self._sync_every_steps == 0
        if step < num_steps and sync_now and self.stop_requested():
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

    def _request_stop(self, number: int, _frame: FrameType | None) -> None:
        self._signalled = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if is_main():
                os.write(2, INTERRUPTED)  # print is not reentrant, and the loop may be printing
