"""Runs as jobs of SLURM: what is asked for a job, how a run starts inside of it, and what became of it.

Snakemake's executor submits the jobs. In each of them `start` keeps the run, as it does on one machine; the run itself
is a step of the job (srun) on all of its machines, so that what SLURM signals before it takes them back reaches it.
"""

import os
import shlex
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reproduce.errors import UserError

JOB = "SLURM_JOB_ID"
"""Environment variable that Snakemake leaves to what it starts in a job; it takes all the others away."""
LAST_WAIT_SECONDS = 120
"""Time for the other machines once one has ended: the first process may still be saving."""
RULE = "rule_"
"""Snakemake's comment on a job is this and the name of its rule, which is the run_id."""


@dataclass(frozen=True)
class Job:
    """One job of this checkout, as squeue tells."""

    number: str
    run_id: str
    state: str


def arguments(cluster: Mapping[str, Any], state: Path) -> list[str]:
    """Options of Snakemake, whose own folder is `state`."""
    return [
        *("--executor", "slurm", "--jobs", str(cluster["max_jobs"]), "--latency-wait", "120"),
        *(
            "--slurm-requeue",
            "--slurm-keep-successful-logs",
            "--slurm-logdir",
            str(logs(state)),
            "--slurm-status-command",
            _status_command(),
        ),
        *("--slurm-init-seconds-before-status-checks", str(cluster["slurm"]["poll_seconds"])),
    ]


def logs(state: Path) -> Path:
    """Where the jobs' own logs go; a run's output is in its folder."""
    return state / "slurm"


def resources(run: Mapping[str, Any], cluster: Mapping[str, Any]) -> dict[str, Any]:
    """What the executor asks SLURM for, as Snakemake's resources."""
    site = cluster["slurm"]
    alone = run["kind"] == "measure"  # it measures time: nothing may run beside it
    extra = [
        "--ntasks-per-node=1",
        f"--signal=USR1@{site['signal_before_end_seconds']}",
        *(["--exclusive"] if alone else []),
    ]
    asked = {
        "nodes": run["num_nodes"],
        "cpus_per_task": cpus(run, cluster),
        "mem_mb": round(1000 * site["memory_gb"]),  # 0 takes back what Snakemake would ask for by itself
        "slurm_extra": " ".join([*extra, site["extra_args"]]).strip(),
        # Where this stands, the executor puts no srun around the run's keeper; false, so it asks for no MPI either.
        "mpi": 0,
    }
    gpus = run["num_processes"] // run["num_nodes"] * cluster["gpus_per_process"]
    asked |= {"gres": f"{site['gres']}:{gpus}"} if gpus else {"tasks": run["num_nodes"]}
    asked |= {"runtime": max(1, round(60 * site["time_limit_hours"]))} if site["time_limit_hours"] else {}
    names = {"partition": "slurm_partition", "account": "slurm_account", "qos": "qos", "constraint": "constraint"}
    return asked | {theirs: site[ours] for ours, theirs in names.items() if site[ours]}


def cpus(run: Mapping[str, Any], cluster: Mapping[str, Any]) -> int:
    """Cores on each machine of a run."""
    threads = cluster["num_threads"] * run["num_processes"] if run["kind"] == "measure" else run["cores"]
    return max(1, threads // run["num_nodes"])


def command(run: Mapping[str, Any], cluster: Mapping[str, Any]) -> list[str]:
    """The run as a step of the job that this process is in, started once on each machine.

    Where they are several they meet at this one, which is the job's first. srun sends on the signals that it gets.
    """
    nodes, container = run["num_nodes"], shlex.split(cluster["slurm"]["container_command"])
    step = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", f"--cpus-per-task={cpus(run, cluster)}"]
    step += ["--kill-on-bad-exit=0", f"--wait={LAST_WAIT_SECONDS}"]
    if nodes > 1:
        step += [f"--export=ALL,MASTER_ADDR={socket.gethostname()},MASTER_PORT={_free_port()}"]
    program, *rest = run["command"]
    return [*step, *container, cluster["image_python"] if container else program, *rest]


def place(run_id: str, state: Path) -> str:
    """The job that this process is in, in words for the run's log."""
    number = os.environ[JOB]
    return f"SLURM job {number} on {socket.gethostname()}, its own log {logs(state)}/{RULE}{run_id}/{number}.log"


def requeue() -> bool:
    """Put this process' job back into the queue: it will be ended. False where the site does not allow it."""
    return subprocess.run(["scontrol", "requeue", os.environ[JOB]], check=False).returncode == 0


def check() -> None:
    """Raise `UserError` where no job could be submitted from here."""
    missing = [name for name in ("sbatch", "squeue", "scancel", "scontrol") if shutil.which(name) is None]
    if missing:
        raise UserError(
            f"CLUSTER=slurm submits jobs, and {', '.join(missing)} of SLURM can't be found here: "
            "run the same command on a login node of the cluster"
        )
    _ask("scontrol", "ping")


def jobs(state: Path, *, ended: bool = False) -> list[Job]:
    """This checkout's jobs that wait or run, the latest last; with `ended` also those that SLURM still remembers."""
    which = ["--states=all"] if ended else []
    told = _ask("squeue", "--me", "--noheader", "--sort=i", "--format=%i|%T|%Z|%k", *which)
    lines = [line.split("|", 3) for line in told.splitlines()]
    return [
        Job(number, comment.removeprefix(RULE), said)
        for number, said, folder, comment in lines
        if comment.startswith(RULE) and Path(folder).resolve() == state
    ]


def cancel(found: list[Job]) -> None:
    """Have jobs end; runs that can save do so."""
    _ask("scancel", *[job.number for job in found])


def _status_command() -> str:
    """Without accounting sacct knows nothing."""
    told = _ask("scontrol", "show", "config")
    kept = [line for line in told.splitlines() if line.startswith("AccountingStorageType")]
    return "squeue" if any(line.endswith("none") for line in kept) else "sacct"


def _ask(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
        raise UserError(f"SLURM does not answer ({' '.join(words[:2])}: {said[-1]}); try the same command again later")
    return done.stdout


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
