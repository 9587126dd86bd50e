"""Launchers of several machines, here on one: a crash on one of them stops and restarts the ranks on all."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reproduce.engine.distributed.launch import MAX_RESTARTS
from reproduce.errors import REQUEUE
from reproduce.system import free_port
from tests.faults.test_launch import FAKE, starts
from tests.runs import REPO_ROOT

STARTED: list["subprocess.Popen[str]"] = []


def wait_until_connected(port: int) -> None:
    """Wait until one launcher has connected to the other; on a busy machine the ranks may start first."""
    established = re.compile(rf":{port:04X} [0-9A-F]+:[0-9A-F]+ 01 ")
    while not established.search(Path("/proc/net/tcp").read_text()):
        time.sleep(0.01)


def launched(folder: Path, *modes: str, port: int | None = None) -> list["subprocess.Popen[str]"]:
    """The launchers of two machines, with a process each."""
    port = port or free_port()
    return [launched_on(node, folder, *modes, port=port) for node in range(2)]


def launched_on(node: int, folder: Path, *modes: str, port: int) -> "subprocess.Popen[str]":
    """The launcher of one of two machines."""
    launcher = subprocess.Popen(
        [
            *(sys.executable, "-m", "reproduce.engine.distributed.launch", "--nproc-per-node=1", "--nnodes=2"),
            *(f"--node-rank={node}", f"--rdzv-endpoint=127.0.0.1:{port}", FAKE, str(folder), *modes),
        ],
        cwd=REPO_ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    STARTED.append(launcher)
    return launcher


@pytest.fixture(autouse=True)
def _no_launcher_outlives_its_test() -> Iterator[None]:
    yield
    while STARTED:
        with STARTED.pop() as launcher:
            launcher.kill()  # does nothing if it has ended


@pytest.mark.parametrize(
    "modes", [("waits-once", "killed-once"), ("killed-once", "waits-once")], ids=["on the second", "on the first"]
)
def test_a_killed_rank_restarts_the_ranks_of_other_machines(tmp_path: Path, modes: tuple[str, str]) -> None:
    """The other rank waits for ever, as in a collective with the dead one."""
    launchers = launched(tmp_path, *modes)
    said = [launcher.communicate(timeout=60)[1] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], said
    assert starts(tmp_path) == {"0": 2, "1": 2}
    waiting = modes.index("waits-once")
    assert said[waiting].startswith("warning: a rank on another machine crashed; restarting all ranks")
    assert f"rank {1 - waiting} of 2 was ended by SIGKILL" in said[1 - waiting]
    assert said[0].endswith(f"(restart 1 of {MAX_RESTARTS})\n") and said[1].endswith(f"(restart 1 of {MAX_RESTARTS})\n")


@pytest.mark.parametrize("modes", [("waits", "wrong"), ("wrong", "waits")])
def test_a_final_error_on_one_machine_ends_the_run_on_all(tmp_path: Path, modes: tuple[str, str]) -> None:
    launchers = launched(tmp_path, *modes)
    said = [launcher.communicate(timeout=60)[1] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [2, 2], said
    wrong = modes.index("wrong")
    assert said[wrong] == f"error: the pictures of {wrong} are gone\n"
    assert said[1 - wrong] == ""
    assert starts(tmp_path) == {"0": 1, "1": 1}


@pytest.mark.parametrize("lost", [0, 1], ids=["the first", "the second"])
def test_a_machine_that_is_lost_and_replaced_restarts_the_ranks_of_all(tmp_path: Path, lost: int) -> None:
    """The other's rank waits for ever, and restarts once, together with the replacement's."""
    port, modes = free_port(), ["waits-once", "waits-once"]
    modes[lost] = "waits-for-restart"  # also in the replacement, until that has heard of the others' round
    launchers = launched(tmp_path, *modes, port=port)
    wait_until_connected(port + 1)
    for node, launcher in enumerate(launchers):
        assert launcher.stdout is not None
        assert launcher.stdout.readline() == f"rank {node} waits\n"
    (rank,) = Path(f"/proc/{launchers[lost].pid}/task/{launchers[lost].pid}/children").read_text().split()
    launchers[lost].send_signal(signal.SIGKILL)
    os.kill(int(rank), signal.SIGKILL)
    launchers[lost].communicate()
    remaining = launchers[1 - lost]
    assert remaining.stderr is not None
    watchdog = threading.Timer(60, remaining.kill)
    watchdog.start()
    assert remaining.stderr.readline().startswith("warning: a rank on another machine crashed; restarting all ranks")
    watchdog.cancel()
    launchers[lost] = launched_on(lost, tmp_path, *modes, port=port)
    said = [launcher.communicate(timeout=60)[1] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], said
    noted = starts(tmp_path)
    assert noted.pop(str(lost)) in (2, 3)  # what the replacement starts first may be stopped before it notes so
    assert noted == {str(1 - lost): 2}
    assert f"(restart 1 of {MAX_RESTARTS})" in said[lost] and "restart 2" not in "".join(said)


def test_the_end_of_the_first_machine_is_no_failure_of_the_others(tmp_path: Path) -> None:
    port = free_port()
    first, second = launched(tmp_path, "preempted", "preempted", port=port)
    wait_until_connected(port + 1)
    for launcher in (first, second):
        assert launcher.stdout is not None
        launcher.stdout.readline()
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=60)
    second.send_signal(signal.SIGUSR1)  # not the signal that a launcher sends its ranks after a failure
    said = second.communicate(timeout=60)[1]
    assert (first.returncode, second.returncode, said) == (REQUEUE, REQUEUE, "")
    assert (tmp_path / "signal-1").read_text() == "SIGUSR1"
