"""On a real SLURM, of this machine or of a login node: `make cluster-test`. Skipped where there is none.

It needs three machines (they may be three names of one), a default partition, and a job's right to requeue; to bring a
machine down it must be SLURM's administrator. Nothing here is part of `make test`.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reproduce.harness.execute import slurm as ours
from reproduce.harness.execute.job import SNAKEMAKE_DIR
from reproduce.harness.spec import tables
from reproduce.system import REPO_ROOT
from tests.runs import TINY, curve, run, tiny_pictures

PATIENCE_SECONDS = 600
OPTIONS = "gpus_per_process=0 slurm.poll_seconds=2"
TWO_MACHINES = f"{OPTIONS} num_processes=2 processes_per_node=1"
LONG = ("epochs=200",)
STARTED = " UTC, attempt "
"""What stands in a run's log once for each start."""


def slurm(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def num_machines() -> int:
    return int(slurm("sinfo", "--noheader", "--states=idle,mixed", "--format=%D") or 0) if shutil.which("sinfo") else 0


pytestmark = pytest.mark.skipif(num_machines() < 3, reason="no SLURM with three machines to spare answers here (sinfo)")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    tiny_pictures(root)
    return root


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that the machines of SLURM see."""
    (tmp_path / "tables").symlink_to(tables.TABLES_DIR.resolve())
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Harness:
    """`python -m reproduce pretrain` of a tiny run, under way."""

    def __init__(self, pictures: Path, options: str, *overrides: str) -> None:
        given = ["--cluster", "slurm", "--cluster-options", options, "--data", str(pictures)]
        wanted = [item for item in TINY if not item.startswith(("scale=", "data="))]
        command = [sys.executable, "-m", "reproduce", "pretrain", *given, "--data-config", "generated", "--"]
        self.process = subprocess.Popen(
            [*command, "swav_800ep", *wanted, *overrides],
            env=os.environ | {"PYTHONPATH": str(REPO_ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def until(self, happened: Callable[[], Any]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not happened():
            assert time.monotonic() < deadline, log()
            if self.process.poll() is not None:
                raise AssertionError(self.process.communicate()[0] + log())
            time.sleep(0.2)

    def end(self) -> tuple[int, str]:
        out, _ = self.process.communicate(timeout=PATIENCE_SECONDS)
        return self.process.returncode, out


def log() -> str:
    return "".join(path.read_text() for path in Path("results").glob("*/*/log.txt"))


def jobs() -> list[str]:
    return [job.number for job in ours.jobs(SNAKEMAKE_DIR.resolve())]


def trains(number: int = 1) -> Callable[[], bool]:
    """Whether the run was started so often, and has made a step since."""
    return lambda: log().count(STARTED) >= number and "\nstep " in log().rpartition(STARTED)[2]


def start_again_now(job: str) -> bool:
    """A job that was requeued waits for a while, but for an administrator's word."""
    waits = slurm("squeue", "--noheader", "--job", job, "--format=%T") == "PENDING"
    if waits:
        slurm("scontrol", "update", f"JobId={job}", "StartTime=now")
    return waits


def points(folder: Path) -> list[tuple[float, float]]:
    return [(point["step"], point["loss"]) for point in curve(folder)]


def test_two_nodes_equal_two_processes_on_one(pictures: Path, checkout: Path) -> None:
    status, out = Harness(pictures, TWO_MACHINES).end()
    assert status == 0, out + log()
    assert "--nodes=2" in log() and "SLURM job" in log()
    here = run("reproduce.pretrain", *TINY, "experiment=swav_800ep", f"paths.data_root={pictures}",
               f"paths.results={checkout / 'here'}", processes=2)  # fmt: skip
    assert here.returncode == 0, here.stderr
    (alone,), (theirs,) = checkout.glob("here/*/*/result.json"), checkout.glob("results/*/*/result.json")
    assert alone.parent.name == theirs.parent.name
    assert points(checkout / "here") == points(checkout / "results")
    assert json.loads(theirs.read_text())["provenance"]["world_size"] == 2


@pytest.mark.parametrize("how", ["USR1", "requeue", "down"])
def test_requeued_job_resumes(pictures: Path, how: str) -> None:
    harness = Harness(pictures, TWO_MACHINES, "epochs=12")
    harness.until(trains())
    (job,) = jobs()
    # The last, which does not keep the run: a name of this machine lives on, and would still have the keeper's job.
    machine = slurm(
        "scontrol", "show", "hostnames", slurm("squeue", "--noheader", "--job", job, "--format=%N")
    ).split()[-1]
    if how == "down":
        slurm("scontrol", "update", f"NodeName={machine}", "State=down", "Reason=test")
    elif how == "requeue":
        slurm("scontrol", "requeue", job)
    else:
        slurm("scancel", "--signal=USR1", job)
    try:
        if how != "down":  # what is left on a machine that is no longer SLURM's takes its time to end
            harness.until(lambda: start_again_now(job))
        harness.until(trains(2))
    finally:
        if how == "down":
            back = ["scontrol", "update", f"NodeName={machine}", "State=resume"]
            subprocess.run(back, check=False, capture_output=True)  # a site may bring it back by itself
    status, out = harness.end()
    assert status == 0, out + log()
    assert "resuming from step" in log()
    assert [step for step, _ in points(Path("results"))] == list(range(1, 25))


def test_job_cancelled_twice_fails_with_its_log(pictures: Path) -> None:
    harness = Harness(pictures, OPTIONS, *LONG)
    for number in (1, 2):
        harness.until(trains(number))
        (job,) = jobs()
        slurm("scancel", job)
    status, _ = harness.end()
    assert status == 3
    (failure,) = Path("results").glob("*/*/failure.json")
    message = json.loads(failure.read_text())["message"]
    assert message.startswith(f"its SLURM job {job} ended as CANCELLED")
    assert Path(message.rpartition(": ")[2]).is_file()


def test_usage_error_is_not_retried(pictures: Path) -> None:
    status, out = Harness(pictures, OPTIONS, "cluster.compile_backend=inductr").end()
    assert status == 3
    assert "did you mean 'inductor'" in out
    assert log().count(STARTED) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_jobs_end_with_their_harness(pictures: Path, number: signal.Signals) -> None:
    harness = Harness(pictures, OPTIONS, *LONG)
    harness.until(trains())
    harness.process.send_signal(number)
    status, _ = harness.end()
    assert status == (-9 if number == signal.SIGKILL else 130)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while jobs() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not jobs() and "stop requested; saved after step" in log()


def test_a_table(checkout: Path) -> None:
    """Every cell agrees with the numbers that were recorded on one machine."""
    made = subprocess.run(
        [sys.executable, "-m", "reproduce", "reproduce", "table3", "--cluster", "slurm", "--cluster-options", OPTIONS],
        env=os.environ | {"PYTHONPATH": str(REPO_ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stdout + made.stderr + log()
    assert "SLURM job" in Path("reports/smoke/index.html").read_text()
