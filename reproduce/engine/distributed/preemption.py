"""Preemption: a scheduler that wants its machine back says so with SIGTERM or SIGUSR1, some time before it takes it."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from reproduce.engine.checkpoint import Checkpoints
from reproduce.engine.distributed.collectives import any_rank, barrier, world_size

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preempted(Exception):
    """The run was asked to stop, and has saved where it is."""


class _Left(Exception):
    """This rank was asked to stop."""


class Preemption:
    """Remembers, while it stands, that the run was asked to stop; the step under way is finished first."""

    def __init__(self, every_steps: int) -> None:
        self._every_steps = every_steps
        self._signalled = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Preemption":
        self._before = {number: signal.signal(number, self._remember) for number in SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def asked(self, step: int) -> bool:
        """Whether any rank was asked to stop: all ranks get the same answer.

        Several processes ask each other only every few steps, since each time waits for the device.
        """
        if world_size() == 1:
            return self._signalled
        if step % self._every_steps:
            return False
        return any_rank(self._signalled)

    def stop_if_asked(self, step: int, kept: str) -> None:
        """Raise `Preempted`, saying what is `kept`, where any rank was asked to stop; 0 asks at once."""
        if self.asked(step):
            raise Preempted(f"asked to stop; {kept}")

    def save_and_stop_if_asked(
        self, checkpoints: Checkpoints, done: int, num_steps: int, *, at_once: bool = False
    ) -> None:
        """Save and raise `Preempted` where any rank was asked to stop during a training, unless all steps are done.

        Ranks ask each other every few steps, or `at_once`.
        """
        if done < num_steps and self.asked(0 if at_once else done):
            checkpoints.save(done)
            checkpoints.wait()
            barrier()  # a rank that ends takes the others with it: not before the save is whole
            raise Preempted(f"asked to stop; saved after step {done} of {num_steps}")

    @contextmanager
    def alone(self, kept: str) -> Iterator[Callable[[], None]]:
        """Work that each rank does by itself, and leaves where it was asked to stop: by calling often what it is given.

        At its end all ranks meet: where any left, each raises `Preempted`, saying what is `kept`.
        """
        left = False
        try:
            yield self._leave_if_asked
        except _Left:
            left = True
        if any_rank(left):
            raise Preempted(f"asked to stop; {kept}")

    def _leave_if_asked(self) -> None:
        if self._signalled:
            raise _Left

    def _remember(self, _signal: int, _frame: FrameType | None) -> None:
        self._signalled = True
