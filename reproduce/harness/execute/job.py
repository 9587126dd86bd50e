"""Start one run of a plan as a process, keep its log, and stop it when the harness is gone.

Snakemake calls this: python -m reproduce.harness.execute.job PLAN RUN_ID ATTEMPT
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from reproduce.errors import ERROR_PREFIX, EXIT_TRAINING_FAILED, EXIT_USAGE, REQUEUE, describe_signal, run_cli
from reproduce.files import write_json
from reproduce.harness.execute import gpus, slurm

SUPERVISOR = "REPRODUCE_SUPERVISOR"
"""Environment variable with the process id of the harness, a colon, and the lock file that it holds."""

EVENTS = "events.jsonl"
"""Beside the plan: what started and what ended, a line each."""

STATE = Path(".cache/snakemake")
"""Snakemake's own folder."""

GRACE_SECONDS = 20
HEAR_OUT_SECONDS = 5
"""Time for the last lines of a run that has ended to come through a pipe."""
POLL_SECONDS = 0.5
STOPPED = 128 + signal.SIGTERM


def main(plan_file: str, run_id: str, attempt: int) -> int:
    """Run it, again whenever it was preempted; the exit status is the run's own."""
    plan = json.loads(Path(plan_file).read_text())
    run = next(run for run in plan["runs"] if run["run_id"] == run_id)
    folder = Path(run["folder"])
    if not supervised():
        return STOPPED
    if attempt > 1 and is_final(folder / "failure.json"):
        return EXIT_USAGE
    events = Path(plan_file).with_name(EVENTS)
    if is_held(folder / ".lock"):
        tell(events, run_id, event="wait")
        while is_held(folder / ".lock") and supervised():
            time.sleep(POLL_SECONDS)
    tell(events, run_id, event="start", attempt=attempt)
    if (folder / "result.json").exists():  # the other process has done it
        tell(events, run_id, event="end", attempt=attempt, exit_status=0)
        return 0
    executor = plan["cluster"]["executor"]
    in_slurm = executor == "slurm"
    command = run["command"]
    if in_slurm:
        command = slurm.command(run, plan["cluster"])
    elif executor == "kubernetes":
        command = [sys.executable, "-m", "reproduce.harness.execute.kubernetes", plan_file, run_id]

    def again() -> bool:
        tell(events, run_id, event="requeue")
        return not (in_slurm and slurm.requeue())

    with gpus.held(gpus.shared(), run["num_processes"], supervised) as mine:
        if mine is None:
            return STOPPED
        if mine:
            os.environ[gpus.ALLOWED] = ",".join(mine)
        status = execute(
            command,
            folder,
            attempt,
            keep_on=supervised,
            again=again,
            place=slurm.place(run_id, Path.cwd() / STATE) if in_slurm else "",
        )
    tell(events, run_id, event="stop" if status == STOPPED else "end", attempt=attempt, exit_status=status)
    return status


def is_final(failure: Path) -> bool:
    """Whether trying again would fail in the same way: the request was wrong, or the training failed."""
    try:
        said = json.loads(failure.read_text())
    except (OSError, ValueError):
        return False
    return said.get("exit_status") in (EXIT_USAGE, EXIT_TRAINING_FAILED)


def execute(
    command: list[str],
    folder: Path,
    attempt: int = 1,
    keep_on: Callable[[], bool] = lambda: True,
    echo: bool = False,
    again: Callable[[], bool] = lambda: True,
    place: str = "",
) -> int:
    """Run `command` with its output appended to the folder's log.txt (and shown, with `echo`); return its exit status.

    A run that was preempted, saved and asks to be requeued is started again, which is no new attempt, as long as
    `again` says so. `place` is where this is, for the log. SIGTERM, SIGINT, or `keep_on` turning false end it and its
    children: politely first, by force after a while. A process that died without a word (out of memory, say) gets a
    failure.json that says so.
    """
    asked_to_stop = threading.Event()

    def ask(_signal: int, _frame: FrameType | None) -> None:
        asked_to_stop.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, ask)

    def stopping() -> bool:
        return asked_to_stop.is_set() or not keep_on()

    what = f"attempt {attempt}{f', {place}' if place else ''}: {' '.join(command[1:])}"
    while (status := _execute_once(command, folder, what, stopping, echo)) == REQUEUE:
        if not again():
            return STOPPED
    return status


def _execute_once(command: list[str], folder: Path, what: str, stopping: Callable[[], bool], echo: bool) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "failure.json").unlink(missing_ok=True)
    with open(folder / "log.txt", "ab", buffering=0) as log:
        log.write(f"\n=== {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC, {what}\n".encode())
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if echo else log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # its own process group: all ranks and data-loader workers end with it
        )
        copier = threading.Thread(target=_copy, args=(process, log), daemon=True)
        if echo:
            copier.start()
        while True:
            try:
                status = process.wait(timeout=POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                if stopping():
                    stop(process)
                    log.write(b"=== stopped from outside; the same command continues\n")
                    return STOPPED
        if status not in (0, REQUEUE):
            stop(process)  # what a launcher that was killed left behind
        if echo:
            copier.join(timeout=HEAR_OUT_SECONDS)  # not for ever: what the run left running may hold the pipe
        if status == REQUEUE:
            if is_final(folder / "failure.json"):  # one machine said why; the others were only asked to end
                return int(json.loads((folder / "failure.json").read_text())["exit_status"])
            ending = stopping()
            log.write(f"=== preempted; {'the same command continues' if ending else 'to be started again'}\n".encode())
            return STOPPED if ending else REQUEUE
    if status < 0:
        say_failure(folder, 128 - status, f"the process was ended by {describe_signal(-status)}")
        return 128 - status
    if status != 0:
        say_failure(folder, status, last_error(folder / "log.txt") or f"exit status {status}; its log says more")
    elif not (folder / "result.json").exists():
        say_failure(folder, 1, "the process ended well but left no result.json")
        return 1
    return status


def stop(process: subprocess.Popen[Any]) -> None:
    """End a process group: SIGTERM; once its leader is gone, or after `GRACE_SECONDS`, SIGKILL for all that is left."""
    for number, patience in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, None)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=patience)


def supervised() -> bool:
    """Whether the harness that started all this still lives. (SIGKILL leaves it no time to stop its runs.)

    It lives as long as it holds its lock, which the kernel takes back from the dead.
    """
    supervisor = os.environ.get(SUPERVISOR)
    if supervisor is None:
        return True
    process_id, _, lock_file = supervisor.partition(":")
    return is_held(Path(lock_file)) and Path(lock_file).read_text().strip() == process_id


def end_with_supervisor() -> None:
    """Watch, beside what this process does, for the end of the harness; then interrupt this process, too."""

    def watch() -> None:
        while supervised():
            time.sleep(POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGINT)  # SIGTERM would let Snakemake wait for its jobs

    threading.Thread(target=watch, daemon=True).start()


def is_held(lock_file: Path) -> bool:
    """Whether a process holds a lock (`reproduce.files.lock`)."""
    try:
        with open(lock_file) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def tell(events: Path, run_id: str, **what: Any) -> None:
    """Append one event; short appends are whole."""
    line = json.dumps({"time": time.time(), "run_id": run_id, **what}) + "\n"
    with open(events, "ab", buffering=0) as file:
        file.write(line.encode())


def last_error(log: Path) -> str:
    """The sentence of the last `UserError` near the end of a log; empty where there is none."""
    with open(log, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        lines = file.read().decode(errors="replace").splitlines()
    sentences = [line.removeprefix(ERROR_PREFIX) for line in lines if line.startswith(ERROR_PREFIX)]
    return sentences[-1] if sentences else ""


def _copy(process: subprocess.Popen[bytes], log: Any) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            log.write(line)
            sys.stdout.buffer.write(line)
            sys.stdout.flush()


def say_failure(folder: Path, status: int, message: str) -> None:
    """Write failure.json, unless the run itself has said more."""
    failure = folder / "failure.json"
    if not failure.exists():
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(failure, {"status": "failed", "exit_status": status, "message": message, "finished": finished})


if __name__ == "__main__":
    raise SystemExit(run_cli(lambda: main(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
