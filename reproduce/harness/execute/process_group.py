"""Run one command as a process group: keep its output, start it again if preempted, stop it, say why it failed."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

from reproduce.errors import ERROR_PREFIX, EXIT_TRAINING_FAILED, EXIT_USAGE, REQUEUE, describe_signal
from reproduce.files import write_json
from reproduce.forking import FORK_SERVER, ForkedProcess
from reproduce.system import POLL_SECONDS, without_launcher

GRACE_SECONDS = 20
"""Time for a process group to end after SIGTERM."""
DRAIN_SECONDS = 5
"""Time for the last lines of a run that has ended to come through a pipe."""
STOPPED = 128 + signal.SIGTERM
"""Exit status of a run that was stopped from outside."""


def run_process(
    command: list[str],
    folder: Path,
    attempt: int = 1,
    should_continue: Callable[[], bool] = lambda: True,
    echo: bool = False,
    may_requeue: Callable[[], bool] = lambda: True,
    job_description: str = "",
) -> int:
    """Run `command` and return its exit status. Its output is appended to the folder's log.txt, and shown with `echo`.

    A run that was preempted, saved and exits with REQUEUE is started again if `may_requeue` returns true; that is no
    new attempt. `job_description` goes to the log. SIGTERM, SIGINT, SIGHUP or a false `should_continue` end the process
    group: SIGTERM first, SIGKILL after `GRACE_SECONDS`. If the process dies without writing failure.json (out of
    memory, for example), the file is written here.
    """
    stop_requested = threading.Event()

    def request_stop(_signal: int, _frame: FrameType | None) -> None:
        stop_requested.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, request_stop)

    def stopping() -> bool:
        return stop_requested.is_set() or not should_continue()

    where = f", {job_description}" if job_description else ""
    title = f"attempt {attempt}{where}: {' '.join(command[1:])}"
    while (status := _run_once(command, folder, title, stopping, echo)) == REQUEUE:
        if not may_requeue():
            return STOPPED
    return status


def _run_once(command: list[str], folder: Path, title: str, stopping: Callable[[], bool], echo: bool) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "failure.json").unlink(missing_ok=True)
    with open(folder / "log.txt", "ab", buffering=0) as log:
        log.write(f"\n=== {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC, {title}\n".encode())
        process = _start(command, log, echo)
        echoer = threading.Thread(target=_echo, args=(process, log), daemon=True)
        if echo:
            echoer.start()
        while True:
            try:
                status = process.wait(timeout=POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                if stopping():
                    stop_process_group(process)
                    log.write(b"=== stopped from outside; the same command continues\n")
                    return STOPPED
        if status not in (0, REQUEUE):
            stop_process_group(process)  # what a launcher that was killed left behind
        if echo:
            echoer.join(timeout=DRAIN_SECONDS)  # not for ever: a process that the run left behind may hold the pipe
        if status == REQUEUE:
            if is_final_failure(folder / "failure.json"):  # one machine failed; the others were only stopped
                return int(json.loads((folder / "failure.json").read_text())["exit_status"])
            ending = stopping()
            log.write(f"=== preempted; {'the same command continues' if ending else 'to be started again'}\n".encode())
            return STOPPED if ending else REQUEUE
    if status < 0:
        write_failure(folder, 128 - status, f"the process was ended by {describe_signal(-status)}")
        return 128 - status
    if status != 0:
        write_failure(folder, status, last_error(folder / "log.txt") or f"exit status {status}; see its log")
    elif not (folder / "result.json").exists():
        write_failure(folder, 1, "the process exited with 0 but wrote no result.json")
        return 1
    return status


def is_module(command: list[str]) -> bool:
    """Return whether a command is `python -m MODULE ...`, which a fork can become."""
    return command[:2] == [sys.executable, "-m"]


def _start(command: list[str], log: BinaryIO, echo: bool) -> subprocess.Popen[bytes] | ForkedProcess:
    """Start `command` as a process group of its own, so that ranks and workers end with it; fork it if a server can."""
    environment = without_launcher(os.environ)
    server = environment.pop(FORK_SERVER, None)
    if server and is_module(command) and not echo:
        with suppress(OSError):  # without the server, or with a broken one, the run starts as any program
            return ForkedProcess(server, command[2], command[3:], environment, log)
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if echo else log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def stop_process_group(process: subprocess.Popen[Any] | ForkedProcess) -> None:
    """End a process group: SIGTERM, then SIGKILL once its leader is gone, or after `GRACE_SECONDS`."""
    for number, patience in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, None)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=patience)


def is_final_failure(failure: Path) -> bool:
    """Return whether another attempt would fail in the same way: a usage error, or a training that failed."""
    try:
        content = json.loads(failure.read_text())
    except (OSError, ValueError):
        return False
    return content.get("exit_status") in (EXIT_USAGE, EXIT_TRAINING_FAILED)


def run_module(module: str, *arguments: str) -> str:
    """Run a module of ours in a process of its own, which may import torch; return its error, or "" if it succeeds."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], check=False, stderr=subprocess.PIPE, text=True)
    if not done.returncode:
        return ""
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return lines[-1].removeprefix(ERROR_PREFIX)


def last_error(log: Path) -> str:
    """Return the last error message near the end of a log, or "" if there is none."""
    with open(log, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        lines = file.read().decode(errors="replace").splitlines()
    sentences = [line.removeprefix(ERROR_PREFIX) for line in lines if line.startswith(ERROR_PREFIX)]
    return sentences[-1] if sentences else ""


def _echo(process: subprocess.Popen[bytes], log: BinaryIO) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            log.write(line)
            sys.stdout.buffer.write(line)
            sys.stdout.flush()


def write_failure(folder: Path, status: int, message: str) -> None:
    """Write failure.json, unless the run itself has written it."""
    failure = folder / "failure.json"
    if not failure.exists():
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(failure, {"status": "failed", "exit_status": status, "message": message, "finished": finished})
