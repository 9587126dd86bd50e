"""Runs of several processes: what becomes of them where one fails, dies, or all are asked to stop."""

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reproduce.data.datasets.image_folder import read_image_folder
from reproduce.data.pipeline.sampler import epoch_permutation
from reproduce.engine import preemption
from reproduce.engine.distributed import launch
from reproduce.engine.distributed.launch import MAX_RESTARTS
from reproduce.errors import EXIT_INTERRUPTED, EXIT_TRAINING_FAILED, EXIT_USAGE, REQUEUE
from reproduce.files import read_json
from tests.runs import REPO_ROOT, TINY, call, losses, made_once, run, run_anew, start, start_anew

FAKE = "tests.faults.fake_rank"


def starts(folder: Path) -> dict[str, int]:
    return Counter((folder / "starts.txt").read_text().split())


@pytest.mark.parametrize(
    ("modes", "status", "said"),
    [
        (("ok", "ok"), 0, ""),
        (("waits", "wrong"), 2, "error: rank 1: the pictures of 1 are gone\n"),
        (("wrong", "wrong", "everywhere"), 2, "error: everywhere\n"),
        (("failed", "waits"), EXIT_TRAINING_FAILED, "error: rank 0: the pictures of 0 are gone\n"),
    ],
)
def test_final_errors_end_the_run_without_a_restart(
    tmp_path: Path, modes: tuple[str, ...], status: int, said: str
) -> None:
    done = run_anew(FAKE, str(tmp_path), *modes, processes=2)
    assert (done.returncode, done.stderr) == (status, said)
    assert starts(tmp_path) == {"0": 1, "1": 1}


def test_a_killed_rank_restarts_with_the_others(tmp_path: Path) -> None:
    done = run_anew(FAKE, str(tmp_path), "ok", "killed-once", processes=2)
    assert done.returncode == 0
    assert done.stderr.startswith("warning: rank 1 of 2 was ended by SIGKILL; the machine may have run out of memory;")
    assert done.stderr.endswith(f"restarting all ranks from the last checkpoint (restart 1 of {MAX_RESTARTS})\n")
    assert starts(tmp_path) == {"0": 2, "1": 2}


@pytest.mark.parametrize(
    ("mode", "status", "how"), [("killed", 137, "was ended by SIGKILL"), ("bug", 1, "crashed: RuntimeError: a bug")]
)
def test_a_rank_that_crashes_every_time_ends_the_run(tmp_path: Path, mode: str, status: int, how: str) -> None:
    done = run_anew(FAKE, str(tmp_path), "waits", mode, processes=2)
    assert done.returncode == status
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: rank 1 of 2 {how}") and last.endswith("resumes from the last checkpoint")
    assert done.stderr.count("error: ") == 1
    assert starts(tmp_path) == {"0": 1 + MAX_RESTARTS, "1": 1 + MAX_RESTARTS}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_reaches_every_rank(tmp_path: Path, number: signal.Signals) -> None:
    launcher = start_anew(FAKE, str(tmp_path), "preempted", "preempted", processes=2)
    assert launcher.stdout is not None
    assert {launcher.stdout.readline(), launcher.stdout.readline()} == {"rank 0 waits\n", "rank 1 waits\n"}
    launcher.send_signal(number)
    _, said = launcher.communicate(timeout=60)
    assert (launcher.returncode, said) == (REQUEUE, "")
    assert [(tmp_path / f"signal-{rank}").read_text() for rank in (0, 1)] == [number.name] * 2


def test_a_second_ctrl_c_kills_every_rank(tmp_path: Path) -> None:
    """Ranks that no signal but SIGKILL ends, as in a collective that never returns."""
    launcher = start_anew(FAKE, str(tmp_path), "stuck", "stuck", processes=2)
    assert launcher.stdout is not None
    for said in ("waits", "was asked to stop"):
        assert {launcher.stdout.readline(), launcher.stdout.readline()} == {f"rank {rank} {said}\n" for rank in (0, 1)}
        launcher.send_signal(signal.SIGINT)
    _, said = launcher.communicate(timeout=60)  # returns once the ranks, which hold its pipes, are gone
    assert (launcher.returncode, said) == (EXIT_INTERRUPTED, "interrupted\n")
    assert starts(tmp_path) == {"0": 1, "1": 1}


@pytest.fixture(scope="module")
def common(data: Path) -> tuple[str, ...]:
    """Four epochs of two steps, saved after each."""
    return (
        *TINY, "experiment=swav_800ep", "epochs=4", f"paths.data_root={data}", "checkpointing.save_every_seconds=0",
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(common: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of two processes that nobody disturbs."""

    def make(results: Path) -> None:
        done = run("reproduce.pretrain", *common, f"paths.results={results}", processes=2)
        assert done.returncode == 0, done.stderr

    return losses(made_once(tmp_path_factory, "two-processes", make))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_resumed_two_processes_equal_uninterrupted(
    common: tuple[str, ...], undisturbed: list[float], tmp_path: Path, number: signal.Signals
) -> None:
    """One rank is killed, and the launcher starts both again; or the run is stopped, and started again.

    Ctrl-C on a terminal reaches the launcher, which passes SIGTERM on, and every rank.
    """
    arguments = (*common, f"paths.results={tmp_path}")
    launcher = start("reproduce.pretrain", *arguments, processes=2)
    while not launcher.stdout.readline().startswith("step 2/"):
        assert launcher.returncode is None
    if number == signal.SIGKILL:
        os.kill(process_of_rank(1, launcher.pid), number)
    else:
        os.killpg(launcher.pid, number)
    out, said = launcher.communicate(timeout=120)
    if number == signal.SIGINT:
        assert launcher.returncode == REQUEUE
        assert said.count("stop requested; saved after step") == 1 and "error" not in said
        assert said.count(preemption.INTERRUPTED.decode()) == 1
        out = run("reproduce.pretrain", *arguments, processes=2).stdout
    else:
        assert launcher.returncode == 0, said
        assert "warning: rank 1 of 2 was ended by SIGKILL" in said
    assert "resuming from step" in out
    assert losses(tmp_path) == undisturbed
    (result,) = tmp_path.glob("smoke/*/result.json")
    assert read_json(result)["num_attempts"] == 2


def process_of_rank(rank: int, launcher: int) -> int:
    """The process id of a rank: the launcher starts them in their order."""
    return int(Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()[rank])


def test_a_launcher_does_not_restart_without_a_machine_that_has_left(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    peers: Any = SimpleNamespace(round=0, final_status=0, left_status=137, fail=lambda *_: None)
    started: list[launch.RankProcess] = []

    def start_one() -> list[launch.RankProcess]:
        started.append(launch.RankProcess(["false"], rank=1, local_rank=0, environment={}))
        return started[-1:]

    assert launch.Launcher(start_one, 2, peers).run() == 1
    (process,) = (each.process for each in started)
    assert process.stderr is not None
    process.stderr.close()
    said = capfd.readouterr().err
    assert "rank 1 of 2 crashed: exit status 1; the launcher of another machine has ended (status 137)" in said
    assert "restarting" not in said


def test_unreadable_image_is_named_by_its_rank(own_data: Path, tmp_path: Path) -> None:
    pictures = read_image_folder(own_data / "imagenet" / "train")
    broken = Path(pictures.paths[epoch_permutation(len(pictures), 0, 0)[7]])  # in the second half of the first batch
    broken.write_bytes(broken.read_bytes()[:300])
    done = run(
        "reproduce.pretrain", *TINY, "experiment=swav_800ep", f"paths.data_root={own_data}",
        f"paths.results={tmp_path}", "seed=0", processes=2,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("error: rank 1: can't decode image") == 1
    assert done.stderr.count(str(broken)) == 1
    assert "Traceback" not in done.stderr
    (failure,) = tmp_path.glob("smoke/*/failure.json")
    said = read_json(failure)
    assert (said["status"], said["exit_status"]) == ("failed", 2)
    assert said["message"].startswith("rank 1: can't decode image")
    assert str(broken) in said["message"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--nproc-per-node=0", "--nproc-per-node: '0' is not a number of 1 or more"),
        ("--nproc-per-node=-2", "--nproc-per-node: '-2' is not a number of 1 or more"),
        ("--nproc-per-node=two", "--nproc-per-node: 'two' is not a number of 1 or more"),
        ("", "required: --nproc-per-node"),
        ("--nproc-per-node=1 --nnodes=0", "--nnodes: '0' is not a number of 1 or more"),
        ("--nproc-per-node=1 --nnodes=2", "--nnodes needs --node-rank, and --rdzv-endpoint HOST:PORT"),
        ("--nproc-per-node=1 --nnodes=2 --node-rank=2 --rdzv-endpoint=a:1", "--node-rank: 2 is not one of 0 to 1"),
        ("--nproc-per-node=1 --nnodes=2 --node-rank=0 --rdzv-endpoint=a", "--rdzv-endpoint: 'a' is not HOST:PORT"),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch, options: str, said: str) -> None:
    for name in (*launch.NODE_RANK_VARIABLES, "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    status, sentence = call(launch.main, monkeypatch, *options.split(), FAKE)
    assert status == EXIT_USAGE
    assert sentence.startswith("error: ") and sentence.count("\n") == 1
    assert said in sentence


def test_node_rank_from_the_scheduler(tmp_path: Path) -> None:
    asked = [
        sys.executable,
        "-m",
        "reproduce.engine.distributed.launch",
        "--nproc-per-node=1",
        "--nnodes=2",
        FAKE,
        str(tmp_path),
        "ok",
        "ok",
    ]
    told = {"MASTER_ADDR": "first", "MASTER_PORT": "29500"}
    for name, number in (("SLURM_PROCID", "1"), ("JOB_COMPLETION_INDEX", "0")):
        subprocess.run(asked, cwd=REPO_ROOT, env={**os.environ, **told, name: number}, check=True)
    assert starts(tmp_path) == {"1": 1, "0": 1}
