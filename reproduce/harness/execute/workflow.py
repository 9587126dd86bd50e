"""Execute a plan with Snakemake, print its progress, and leave no process behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from types import FrameType
from typing import IO, Any

from reproduce.errors import UserError
from reproduce.files import file_lock, lock_file
from reproduce.forking import fork_server
from reproduce.harness.execute import gpus, kubernetes, slurm
from reproduce.harness.execute.events import EVENTS
from reproduce.harness.execute.job import SNAKEMAKE_DIR
from reproduce.harness.execute.process_group import GRACE_SECONDS, is_module, last_error, write_failure
from reproduce.harness.execute.progress import Progress
from reproduce.harness.execute.status_printer import StatusPrinter
from reproduce.harness.execute.supervision import SUPERVISOR
from reproduce.harness.plan import cost, plan_file
from reproduce.harness.plan.durations import cores_in_words, expected_seconds, format_duration
from reproduce.harness.plan.model import CACHE, Plan
from reproduce.harness.plan.run_state import run_states, sync_mtimes
from reproduce.system import POLL_SECONDS, REPO_ROOT, SHARED_GPUS

SNAKEFILE = Path(__file__).with_name("Snakefile")
RETRIES = 1
MALLOC = "GLIBC_TUNABLES"
HUGE_PAGES = "glibc.malloc.hugetlb=1"
"""Put large tensors in huge pages if the kernel allows it: a run on a CPU takes a tenth less time
(docs/performance.md)."""


@dataclass(frozen=True)
class PlanOutcome:
    """The runs without a result when the workflow ends, by run_id; `failed` are among the `missing`."""

    failed: list[str]
    missing: list[str]


def execute_plan(
    plan: Plan,
    cores: int,
    recorded_seconds: dict[str, float],
    printer: StatusPrinter,
    retries: int = RETRIES,
    whole: Plan | None = None,
) -> PlanOutcome:
    """Execute all runs of a plan that are not done. `whole` is the plan that it is a part of, if it is one.

    Raises `UserError` if another harness works in this checkout, `OSError` if results cannot be written, and
    `KeyboardInterrupt` on SIGINT and SIGTERM, after everything was stopped.
    """
    CACHE.mkdir(exist_ok=True)
    lock_file = CACHE / "harness.lock"
    with file_lock(lock_file, "a harness"), _workflow_lock(printer) as token, _signals_interrupt():
        states = run_states(plan)
        to_do = [name for name, state in states.items() if not state.settled]
        if not to_do:
            printer.line(f"all {len(states)} runs are done")
            return PlanOutcome([], [])
        executor = plan.cluster["executor"]
        in_slurm = executor == "slurm"
        if in_slurm:
            slurm.check_available()
            _cancel_orphaned_jobs(printer)
        elif executor == "kubernetes":
            kubernetes.check_available(plan.cluster)
        _check_writable(plan)
        _check_room(plan)
        own_gpus = gpus.visible_gpus() if executor == "local" else []
        beside = f" and {len(own_gpus)} GPU{'s' if len(own_gpus) > 1 else ''}" if own_gpus else ""
        where = f"on {cores_in_words(cores)}{beside}" if executor == "local" else f"as jobs of {executor}"
        printer.line(f"{len(to_do)} of {len(states)} runs to do {where}")
        if plan.generated_data_dir and not (Path(plan.generated_data_dir) / "manifest.json").exists():
            printer.line(f"first, images are generated in {plan.generated_data_dir}")
        _check_gpus(plan, to_do, len(own_gpus))
        sync_mtimes(plan)
        path = plan_file.write(plan, whole)
        events = path.with_name(EVENTS)
        events.write_bytes(b"")
        environment = os.environ | {
            SUPERVISOR: f"{os.getpid()}:{lock_file.resolve()}",
            SHARED_GPUS: ",".join(own_gpus),
            MALLOC: os.environ.get(MALLOC, HUGE_PAGES),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(REPO_ROOT), os.environ.get("PYTHONPATH")])),
        }
        progress = Progress(plan, cores, expected_seconds(plan, recorded_seconds), states)
        log = path.with_name("snakemake.log")
        forkable = [name for name in to_do if is_module(plan.runs[name].command())]
        may_fork = executor == "local" and not own_gpus and len(forkable) > 1  # one run imports as much by itself
        with open(log, "wb") as output, open(events) as new_events, _fork_server(may_fork, environment) as found:
            workflow = subprocess.Popen(
                _snakemake_command(path.resolve(), _executor_args(plan, cores, len(own_gpus)), retries),
                env=environment | found,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches us alone; we end the rest in order
                pass_fds=(token,),
            )
            began = time.monotonic()
            try:
                _follow(workflow, new_events, progress, printer)
            except KeyboardInterrupt as interrupt:
                printer.line(f"stopping ({interrupt}) ...")
                if in_slurm:
                    _cancel_jobs(workflow)
                _stop(workflow)
                _print_events(new_events, progress, printer)
                printer.line("stopped; the same command continues from there")
                raise
            finally:
                _stop(workflow)
                printer.close()
        if in_slurm:
            _write_failures_of_lost_jobs(plan)
        after = run_states(plan)
        missing = [name for name, state in after.items() if not state.settled]
        failed = [name for name in missing if plan.runs[name].failure.exists()]
        if missing and not failed:
            raise UserError(f"the workflow ended before its runs: {last_error(log) or 'its log says why'} (log: {log})")
        took = format_duration(time.monotonic() - began)
        printer.line(f"{len(to_do) - len(missing)} runs done, {len(failed)} failed in {took}")
        return PlanOutcome(failed, missing)


@contextmanager
def _fork_server(wanted: bool, environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Have a process that forks for each run while this context lasts; yield what tells jobs about it.

    Where none is wanted or possible, runs start as any program does. Runs on GPUs do: CUDA and forks do not mix.
    """
    with ExitStack() as server:
        found: dict[str, str] = {}
        if wanted and hasattr(os, "pidfd_open"):
            with suppress(OSError):  # no socket can be in this file system
                found = server.enter_context(fork_server(CACHE, environment))
        yield found


def _check_writable(plan: Plan) -> None:
    """Raise `OSError` if no result could be written, before anything starts."""
    for home in {Path(run.folder).parent for run in plan.runs.values()}:
        home.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=home):
            pass


def _check_gpus(plan: Plan, to_do: Sequence[str], num_gpus: int) -> None:
    """Raise `UserError` if a run has more processes than this machine has GPUs: it would fail days later."""
    too_large = [run for run in map(plan.runs.__getitem__, to_do) if num_gpus and run.num_processes > num_gpus]
    if too_large:
        largest = max(too_large, key=lambda run: run.num_processes)
        raise UserError(
            f"{largest.label} takes {largest.num_processes} processes, each with a GPU of its own, and there are "
            f'{num_gpus} GPUs: CLUSTER_OPTIONS="detector_processes=N num_processes=N" sets fewer (of a detector, of a '
            "pretraining)"
        )


def _check_room(plan: Plan) -> None:
    """Raise `UserError` if the disk has no room for what the runs to do will write: else it is full hours later."""
    costs = cost.plan_cost(plan)
    for home in {Path(run.folder).parent for run in plan.runs.values()}:
        needed = sum(costs.runs[name].disk_gb for name in costs.to_do if Path(plan.runs[name].folder).parent == home)
        free = shutil.disk_usage(home).free / 1e9
        if free < needed:
            raise UserError(
                f"{home.resolve()} has {free:.1f} GB free, and the runs to do write about {needed:.1f} GB of "
                "checkpoints and results: free some space there, or use another disk, and run the same command again"
            )


def _executor_args(plan: Plan, cores: int, num_gpus: int) -> list[str]:
    if plan.cluster["executor"] == "slurm":
        return slurm.snakemake_args(plan.cluster, SNAKEMAKE_DIR.resolve())
    gpus_to_share = ["--resources", f"gpus={num_gpus}"] if num_gpus else []
    return ["--cores", str(cores if plan.cluster["executor"] == "local" else plan.cluster["max_jobs"]), *gpus_to_share]


def _snakemake_command(plan_file: Path, executor: list[str], retries: int) -> list[str]:
    """Return Snakemake's argument vector. `--ignore-incomplete`: a result.json is complete or not there."""
    folder = SNAKEMAKE_DIR.resolve()
    folder.mkdir(exist_ok=True)
    shutil.rmtree(folder / "sources", ignore_errors=True)  # Snakemake would use its copy of the Snakefile, however old
    return [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE), "--directory", str(folder)),
        *("--config", f"plan={plan_file}", f"root={Path.cwd()}", f"retries={retries}"),
        *(*executor, "--keep-going", "--nolock", "--ignore-incomplete", "--rerun-triggers", "mtime"),
        *("--scheduler", "greedy", "--runtime-source-cache-path", str(folder / "sources")),
        *("--profile", "none", "--workflow-profile", "none", "--nocolor"),
    ]


def _follow(workflow: subprocess.Popen[bytes], new_events: IO[str], progress: Progress, printer: StatusPrinter) -> None:
    while workflow.poll() is None:
        _print_events(new_events, progress, printer)
        printer.status(progress.status(time.time()))
        with suppress(subprocess.TimeoutExpired):
            workflow.wait(timeout=POLL_SECONDS)
    _print_events(new_events, progress, printer)


def _print_events(new_events: IO[str], progress: Progress, printer: StatusPrinter) -> None:
    """Print what happened since the last look.

    Jobs on several nodes append to the file, so that a line may be there in part only, or be torn by another.
    """
    while True:
        position = new_events.tell()
        line = new_events.readline()
        if not line.endswith("\n"):
            new_events.seek(position)
            return
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if sentence := progress.update(event):
            printer.line(sentence)


def _stop(workflow: subprocess.Popen[Any]) -> None:
    """Stop Snakemake and its jobs: they stop their runs at SIGTERM, and get the time for it."""
    deadline = time.monotonic() + GRACE_SECONDS + 10
    while workflow.poll() is None:
        over = time.monotonic() > deadline
        os.killpg(workflow.pid, signal.SIGKILL if over else signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            workflow.wait(timeout=1)


def _cancel_orphaned_jobs(printer: StatusPrinter) -> None:
    """Cancel jobs left by a killed harness: a run must never have two."""
    if not (left := slurm.jobs(SNAKEMAKE_DIR.resolve())):
        return
    printer.line(f"{len(left)} jobs of a killed harness are cancelled; their runs resume from their checkpoints")
    slurm.cancel(left)
    while slurm.jobs(SNAKEMAKE_DIR.resolve()):
        time.sleep(POLL_SECONDS)


def _write_failures_of_lost_jobs(plan: Plan) -> None:
    """Write failure.json for runs whose jobs ended without one: cancelled, or lost with their machine."""
    endings = {job.run_id: job for job in slurm.jobs(SNAKEMAKE_DIR.resolve(), ended=True)}
    for run in plan.runs.values():
        job = endings.get(run.run_id)
        if job and not run.result.exists():
            log = slurm.logs_dir(SNAKEMAKE_DIR) / f"{slurm.RULE_PREFIX}{run.run_id}" / f"{job.number}.log"
            write_failure(Path(run.folder), 1, f"its SLURM job {job.number} ended as {job.state}; its own log: {log}")


def _cancel_jobs(workflow: subprocess.Popen[Any]) -> None:
    """Interrupt Snakemake, which then cancels its jobs (at SIGTERM it would wait for them); cancel what it missed."""
    workflow.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        workflow.wait(timeout=GRACE_SECONDS)
    workflow.kill()  # or it would submit more
    if left := slurm.jobs(SNAKEMAKE_DIR.resolve()):
        slurm.cancel(left)


@contextmanager
def _workflow_lock(printer: StatusPrinter, timeout_seconds: int = GRACE_SECONDS + 15) -> Iterator[int]:
    """Hold a lock that Snakemake inherits, so that a killed harness keeps it until its runs have stopped.

    Waits for the lock; yields its file descriptor.
    """
    with open(CACHE / "workflow.lock", "a") as file:
        deadline = time.monotonic() + timeout_seconds
        waiting = False
        while not lock_file(file, Path(file.name)):
            if time.monotonic() > deadline:
                raise UserError(
                    "runs of a killed harness are still going here. End them (ps lists them as"
                    " reproduce.harness.execute.job) and run the same command again"
                )
            if not waiting:
                printer.line("waiting for the runs of a killed harness to stop ...")
                waiting = True
            time.sleep(POLL_SECONDS)
        yield file.fileno()


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C; the exception names the signal."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
