"""Run one run of a plan, again whenever it was preempted, until it ends or the harness does.

Snakemake calls this: python -m reproduce.harness.execute.job PLAN RUN_ID ATTEMPT
"""

import json
import os
import sys
import time
from pathlib import Path

from reproduce.errors import EXIT_USAGE, run_cli
from reproduce.harness.execute import gpus, slurm
from reproduce.harness.execute.events import EVENTS, append_event
from reproduce.harness.execute.process_group import STOPPED, is_final_failure, run_process
from reproduce.harness.execute.supervision import is_locked, is_supervised
from reproduce.system import POLL_SECONDS

SNAKEMAKE_DIR = Path(".cache/snakemake")
"""Snakemake's working directory."""


def main(plan_file: str, run_id: str, attempt: int) -> int:
    """Run it and return its exit status, or `STOPPED` if the harness ended."""
    plan = json.loads(Path(plan_file).read_text())
    run = next(run for run in plan["runs"] if run["run_id"] == run_id)
    folder = Path(run["folder"])
    if not is_supervised():
        return STOPPED
    if attempt > 1 and is_final_failure(folder / "failure.json"):
        return EXIT_USAGE
    events = Path(plan_file).with_name(EVENTS)
    if is_locked(folder / ".lock"):
        append_event(events, run_id, event="wait")
        while is_locked(folder / ".lock") and is_supervised():
            time.sleep(POLL_SECONDS)
    append_event(events, run_id, event="start", attempt=attempt)
    if (folder / "result.json").exists():  # another process has done it
        append_event(events, run_id, event="end", attempt=attempt, exit_status=0)
        return 0
    executor = plan["cluster"]["executor"]
    in_slurm = executor == "slurm"
    command = run["command"]
    if in_slurm:
        command = slurm.command(run, plan["cluster"])
    elif executor == "kubernetes":
        command = [sys.executable, "-m", "reproduce.harness.execute.kubernetes", plan_file, run_id]

    def may_requeue() -> bool:
        append_event(events, run_id, event="requeue")
        return not (in_slurm and slurm.requeue())

    with gpus.acquire(gpus.shared_gpus(), run["num_processes"], is_supervised) as mine:
        if mine is None:
            return STOPPED
        if mine:
            os.environ[gpus.VISIBLE_GPUS] = ",".join(mine)
        status = run_process(
            command,
            folder,
            attempt,
            should_continue=is_supervised,
            may_requeue=may_requeue,
            job_description=slurm.job_description(run_id, Path.cwd() / SNAKEMAKE_DIR) if in_slurm else "",
        )
    append_event(events, run_id, event="stop" if status == STOPPED else "end", attempt=attempt, exit_status=status)
    return status


if __name__ == "__main__":
    raise SystemExit(run_cli(lambda: main(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
