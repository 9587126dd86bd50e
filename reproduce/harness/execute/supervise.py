"""Carry out a plan under Snakemake, tell how it goes, and leave nothing running behind."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from types import FrameType
from typing import IO, Any

from reproduce.errors import UserError
from reproduce.files import file_lock
from reproduce.harness.execute import gpus, kubernetes, slurm
from reproduce.harness.execute.job import EVENTS, GRACE_SECONDS, STATE, SUPERVISOR, last_error, say_failure
from reproduce.harness.execute.progress import Progress, Screen
from reproduce.harness.plan import plan_file
from reproduce.harness.plan.durations import expected_seconds, format_duration
from reproduce.harness.plan.model import CACHE, Plan
from reproduce.harness.plan.run_state import run_states, sync_mtimes
from reproduce.system import REPO_ROOT

SNAKEFILE = Path(__file__).with_name("Snakefile")
POLL_SECONDS = 0.3
RETRIES = 1
MALLOC = "GLIBC_TUNABLES"
HUGE_PAGES = "glibc.malloc.hugetlb=1"
"""Large tensors in huge pages, where the kernel leaves it to those who ask: a run on a CPU takes a tenth less time
(docs/performance.md)."""


@dataclass(frozen=True)
class Outcome:
    """What is left when the workflow ends, by run_id."""

    failed: list[str]
    missing: list[str]


def carry_out(
    plan: Plan, cores: int, recorded_seconds: dict[str, float], screen: Screen, retries: int = RETRIES
) -> Outcome:
    """Do all runs of a plan that are not done.

    Raises `UserError` where another harness works in this checkout, `OSError` where results can't be kept, and
    `KeyboardInterrupt` (after everything was stopped) on SIGINT and SIGTERM.
    """
    CACHE.mkdir(exist_ok=True)
    lock_file = CACHE / "harness.lock"
    with file_lock(lock_file, "a harness"), _sole_workflow(screen) as token, _signals_interrupt():
        states = run_states(plan)
        to_do = [name for name, state in states.items() if not state.settled]
        if not to_do:
            screen.line(f"all {len(states)} runs are done")
            return Outcome([], [])
        executor = plan.cluster["executor"]
        in_slurm = executor == "slurm"
        if in_slurm:
            slurm.check()
            _end_jobs(screen)
        elif executor == "kubernetes":
            kubernetes.check(plan.cluster)
        _refuse_unwritable(plan)
        own_gpus = gpus.visible() if executor == "local" else []
        beside = f" and {len(own_gpus)} GPU{'s' if len(own_gpus) > 1 else ''}" if own_gpus else ""
        where = f"on {cores} cores{beside}" if executor == "local" else f"as jobs of {executor}"
        screen.line(f"{len(to_do)} of {len(states)} runs to do {where}")
        if plan.generated_data_dir and not (Path(plan.generated_data_dir) / "manifest.json").exists():
            screen.line(f"first, pictures are generated in {plan.generated_data_dir}")
        sync_mtimes(plan)
        path = plan_file.write(plan)
        events = path.with_name(EVENTS)
        events.write_bytes(b"")
        environment = os.environ | {
            SUPERVISOR: f"{os.getpid()}:{lock_file.resolve()}",
            gpus.SHARED: ",".join(own_gpus),
            MALLOC: os.environ.get(MALLOC, HUGE_PAGES),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(REPO_ROOT), os.environ.get("PYTHONPATH")])),
        }
        progress = Progress(plan, cores, expected_seconds(plan, recorded_seconds), states)
        log = path.with_name("snakemake.log")
        with open(log, "wb") as noise, open(events) as news:
            workflow = subprocess.Popen(
                _command(path.resolve(), _executor(plan, cores, len(own_gpus)), retries),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=noise,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches us alone; we end the rest in order
                pass_fds=(token,),
            )
            began = time.monotonic()
            try:
                _watch(workflow, news, progress, screen)
            except KeyboardInterrupt as interrupt:
                screen.line(f"stopping ({interrupt}) ...")
                if in_slurm:
                    _end_with_jobs(workflow)
                _end(workflow)
                _tell(news, progress, screen)
                screen.line("stopped; what was done is kept, and the same command continues from there")
                raise
            finally:
                _end(workflow)
                screen.close()
        if in_slurm:
            _say_endings(plan)
        after = run_states(plan)
        missing = [name for name, state in after.items() if not state.settled]
        failed = [name for name in missing if plan.runs[name].failure.exists()]
        if missing and not failed:
            raise UserError(f"the workflow ended before its runs: {last_error(log) or 'its log says why'} (log: {log})")
        took = format_duration(time.monotonic() - began)
        screen.line(f"{len(to_do) - len(missing)} runs done, {len(failed)} failed in {took}")
        return Outcome(failed, missing)


def _refuse_unwritable(plan: Plan) -> None:
    """Raise the `OSError` that names the place, where no result could be kept: before anything starts."""
    for home in {Path(run.folder).parent for run in plan.runs.values()}:
        home.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=home):
            pass


def _executor(plan: Plan, cores: int, num_gpus: int) -> list[str]:
    if plan.cluster["executor"] == "slurm":
        return slurm.arguments(plan.cluster, STATE.resolve())
    gpus_to_share = ["--resources", f"gpus={num_gpus}"] if num_gpus else []
    return ["--cores", str(cores if plan.cluster["executor"] == "local" else plan.cluster["max_jobs"]), *gpus_to_share]


def _command(plan_file: Path, executor: list[str], retries: int) -> list[str]:
    """Snakemake's argument vector. A result.json is whole or not there, so none is ever held for incomplete."""
    state = STATE.resolve()
    state.mkdir(exist_ok=True)
    shutil.rmtree(state / "sources", ignore_errors=True)  # Snakemake takes its copy of the Snakefile, however old
    return [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE), "--directory", str(state)),
        *("--config", f"plan={plan_file}", f"root={Path.cwd()}", f"retries={retries}"),
        *(*executor, "--keep-going", "--nolock", "--ignore-incomplete", "--rerun-triggers", "mtime"),
        *("--scheduler", "greedy", "--runtime-source-cache-path", str(state / "sources")),
        *("--profile", "none", "--workflow-profile", "none", "--nocolor"),
    ]


def _watch(workflow: subprocess.Popen[bytes], news: IO[str], progress: Progress, screen: Screen) -> None:
    while workflow.poll() is None:
        _tell(news, progress, screen)
        screen.status(progress.status(time.time()))
        with suppress(subprocess.TimeoutExpired):
            workflow.wait(timeout=POLL_SECONDS)
    _tell(news, progress, screen)


def _tell(news: IO[str], progress: Progress, screen: Screen) -> None:
    for line in news:
        if sentence := progress.take(json.loads(line)):
            screen.line(sentence)


def _end(workflow: subprocess.Popen[Any]) -> None:
    """End Snakemake and the keepers of its runs: they stop their runs at SIGTERM, and have the time to."""
    deadline = time.monotonic() + GRACE_SECONDS + 10
    while workflow.poll() is None:
        over = time.monotonic() > deadline
        os.killpg(workflow.pid, signal.SIGKILL if over else signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            workflow.wait(timeout=1)


def _end_jobs(screen: Screen) -> None:
    """End the jobs that a harness left behind which had no time to: two of one run must not be."""
    if not (left := slurm.jobs(STATE.resolve())):
        return
    screen.line(f"{len(left)} jobs of a harness that was killed are cancelled; their runs go on from where they saved")
    slurm.cancel(left)
    while slurm.jobs(STATE.resolve()):
        time.sleep(POLL_SECONDS)


def _say_endings(plan: Plan) -> None:
    """Say of runs whose jobs ended without a word (cancelled, lost with their machine) how they did."""
    endings = {job.run_id: job for job in slurm.jobs(STATE.resolve(), ended=True)}
    for run in plan.runs.values():
        job = endings.get(run.run_id)
        if job and not run.result.exists():
            log = slurm.logs(STATE) / f"{slurm.RULE}{run.run_id}" / f"{job.number}.log"
            say_failure(Path(run.folder), 1, f"its SLURM job {job.number} ended as {job.state}; its own log: {log}")


def _end_with_jobs(workflow: subprocess.Popen[Any]) -> None:
    """Have Snakemake cancel its jobs, as it does at SIGINT (at SIGTERM it would wait for them), and what it missed."""
    workflow.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        workflow.wait(timeout=GRACE_SECONDS)
    workflow.kill()  # or it would submit more
    if left := slurm.jobs(STATE.resolve()):
        slurm.cancel(left)


@contextmanager
def _sole_workflow(screen: Screen, patience_seconds: int = GRACE_SECONDS + 15) -> Iterator[int]:
    """Hold a lock that Snakemake inherits, and so keeps after a harness that was killed, until its runs have stopped.

    Waits for it; gives the lock's file descriptor.
    """
    with open(CACHE / "workflow.lock", "a") as file:
        deadline = time.monotonic() + patience_seconds
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise UserError(
                        "runs of a harness that was killed are still going here; end them (ps lists them as"
                        " reproduce.harness.execute.job) and run the same command again"
                    ) from error
            if not told:
                screen.line("waiting for the runs of a harness that was killed to stop ...")
                told = True
            time.sleep(POLL_SECONDS)
        yield file.fileno()


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, and let the exception say which of the two it was."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
