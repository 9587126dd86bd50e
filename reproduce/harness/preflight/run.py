"""Run rehearsals on this machine, in several processes that share them, and collect what they wrote."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from reproduce.errors import UserError
from reproduce.files import read_json, write_json
from reproduce.harness.execute.process_group import last_error, stop_process_group
from reproduce.harness.preflight.rehearsals import Rehearsal
from reproduce.rehearsal import REHEARSALS_FILE

POLL_SECONDS = 0.2


def generate_images(scale: str) -> str:
    """Generate the rehearsals' images of a scale, unless they are there; return their folder."""
    root = Path(".cache", "rehearsals", f"images-{scale}").absolute()
    command = [sys.executable, "-m", "reproduce.data.prepare.synthetic"]
    if subprocess.run([*command, "--root", str(root), "--size", f"rehearsal_{scale}"], check=False).returncode:
        raise UserError(f"the images in {root} could not be generated; see the lines above")
    return str(root)


def run_rehearsals(
    rehearsals: Sequence[Rehearsal],
    folder: Path,
    num_processes: int,
    environment: Mapping[str, str] | None = None,
    num_ranks: int = 1,
    python: Sequence[str] = (sys.executable,),
    on_result: Callable[[Rehearsal, dict[str, Any]], None] = lambda *_: None,
) -> dict[str, dict[str, Any]]:
    """Do rehearsals in `folder`, which is emptied first; return the content of each one's file, by name.

    Each of the processes is one, or `num_ranks` that train together; `python` starts one. `on_result` is called with
    each as soon as it ends. If a process ends before its work, what is
    left has an error.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_json(folder / REHEARSALS_FILE, [each.request() for each in rehearsals])
    # The first makes the trunk that others evaluate, in each process, and has no result.
    waiting = {each.name: each for each in rehearsals[1:]}
    found: dict[str, dict[str, Any]] = {}
    launcher = ["reproduce.engine.distributed.launch", f"--nproc-per-node={num_ranks}"] if num_ranks > 1 else []

    def collect() -> None:
        for name in [name for name in waiting if (folder / f"{name}.json").exists()]:
            found[name] = read_json(folder / f"{name}.json")
            on_result(waiting.pop(name), found[name])

    with ExitStack() as stack:
        stack.enter_context(_sigterm_interrupts())
        started = []
        for number in range(min(num_processes, len(waiting))):
            log = stack.enter_context(open(folder / f"log-{number}.txt", "wb"))
            process = subprocess.Popen(
                [*python, "-m", *launcher, "reproduce.rehearse", str(folder)],
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            stack.callback(stop_process_group, process)  # of an interrupted preflight; others have ended
            started.append(process)
        while any(process.poll() is None for process in started):
            collect()
            _wait_a_moment(started)
        collect()
    if waiting:
        number = next((number for number, each in enumerate(started) if each.returncode), 0)
        log_file = folder / f"log-{number}.txt"
        reason = last_error(log_file) or f"exit status {started[number].returncode}"
        for name in list(waiting):
            found[name] = {
                "error": f"not rehearsed, because a process ended ({reason}; see {log_file})",
                "seconds": 0.0,
            }
            on_result(waiting.pop(name), found[name])
    return found


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Within the block, SIGTERM does what Ctrl-C does: without, the processes would go on."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _wait_a_moment(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Wait for a moment, or until the first process ends."""
    try:
        processes[0].wait(POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return
    for process in processes[1:]:
        try:
            process.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            return
