"""Stop signals become a flag; a second Ctrl-C ends the process by itself."""

import signal
from collections.abc import Iterator

import pytest

from reproduce.engine import preemption
from reproduce.engine.preemption import Preempted, Preemption
from reproduce.system import STOP_SIGNALS


@pytest.fixture(autouse=True)
def before() -> Iterator[object]:
    """Ctrl-C as an interactive shell leaves it: the tests may run in the background of a script, which ignores it."""
    own = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, own)


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_a_stop_signal_stops_between_steps(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Preemption(1) as stopping:
        assert not stopping.stop_requested()
        signal.raise_signal(number)
        with pytest.raises(Preempted, match="stop requested; the features are saved"):
            stopping.stop_if_requested("the features are saved")
    assert signal.getsignal(number) == before


def test_the_second_ctrl_c_is_the_systems_own(capfd: pytest.CaptureFixture[str]) -> None:
    """It ends the process even inside a collective, where no handler in Python is called."""
    with Preemption(1):
        assert signal.getsignal(signal.SIGINT) != signal.SIG_DFL
        signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    assert capfd.readouterr().err == preemption.INTERRUPTED.decode()


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Preemption(1) as stopping:
        signal.raise_signal(signal.SIGINT)
        assert not stopping.stop_requested()


def test_the_checkpoint_is_written_before_any_rank_may_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that exits takes the others with it, and with them the thread that writes."""
    done: list[str] = []

    class Checkpoints:
        def save(self, step: int) -> None:
            done.append(f"save {step}")

        def wait(self) -> None:
            done.append("wait")

    monkeypatch.setattr(preemption, "barrier", lambda: done.append("barrier"))
    asked = preemption.Preemption(1)
    asked._signalled = True
    asked.checkpoint_and_stop_if_requested(Checkpoints(), 5, 5)  # type: ignore[arg-type]
    assert not done  # after the last step there is nothing to stop
    with pytest.raises(preemption.Preempted, match="saved after step 3 of 5"):
        asked.checkpoint_and_stop_if_requested(Checkpoints(), 3, 5)  # type: ignore[arg-type]
    assert done == ["save 3", "wait", "barrier"]
