"""Runs as SLURM jobs: what to request for a job, how a run starts inside it, and how it ended.

Snakemake's executor submits the jobs. In each of them `job` supervises the run, as it does on one machine. The run
itself is a step of the job (srun) on all machines, so that SLURM's signal before preemption reaches it.
"""

import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reproduce.errors import UserError
from reproduce.system import free_port

JOB_ID = "SLURM_JOB_ID"
"""The only environment variable of SLURM that Snakemake passes on to what it starts in a job."""
LAST_WAIT_SECONDS = 120
"""Time for the other machines when one has ended: the first process may still be saving a checkpoint."""
RULE_PREFIX = "rule_"
"""Snakemake comments a job with this prefix and the name of its rule, which is the run_id."""


@dataclass(frozen=True)
class Job:
    """A job of this checkout, as squeue lists it."""

    number: str
    run_id: str
    state: str


def snakemake_args(cluster: Mapping[str, Any], snakemake_dir: Path) -> list[str]:
    """Return the options of Snakemake's SLURM executor."""
    return [
        *("--executor", "slurm", "--jobs", str(cluster["max_jobs"]), "--latency-wait", "120"),
        *(
            "--slurm-requeue",
            "--slurm-keep-successful-logs",
            "--slurm-logdir",
            str(logs_dir(snakemake_dir)),
            "--slurm-status-command",
            _status_command(),
        ),
        *("--slurm-init-seconds-before-status-checks", str(cluster["slurm"]["poll_seconds"])),
    ]


def logs_dir(snakemake_dir: Path) -> Path:
    """Return the folder of the jobs' own logs; a run's output is in its folder."""
    return snakemake_dir / "slurm"


def resources(run: Mapping[str, Any], cluster: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the executor requests from SLURM, as Snakemake's resources."""
    site = cluster["slurm"]
    alone = run["kind"] == "measure"  # it measures time, so nothing may run beside it
    extra = [
        "--ntasks-per-node=1",
        f"--signal=USR1@{site['signal_before_end_seconds']}",
        *(["--exclusive"] if alone else []),
    ]
    requested = {
        "nodes": run["num_nodes"],
        "cpus_per_task": cpus_per_node(run, cluster),
        "mem_mb": round(1000 * site["memory_gb"]),  # 0 takes back what Snakemake would ask for by itself
        "slurm_extra": " ".join([*extra, site["extra_args"]]).strip(),
        # If this is set, the executor puts no srun around `job`; it is false, so that it requests no MPI either.
        "mpi": 0,
    }
    gpus = gpus_per_node(run, cluster)
    requested |= {"gres": f"{site['gres']}:{gpus}"} if gpus else {"tasks": run["num_nodes"]}
    requested |= {"runtime": max(1, round(60 * site["time_limit_hours"]))} if site["time_limit_hours"] else {}
    names = {"partition": "slurm_partition", "account": "slurm_account", "qos": "qos", "constraint": "constraint"}
    return requested | {theirs: site[ours] for ours, theirs in names.items() if site[ours]}


def cpus_per_node(run: Mapping[str, Any], cluster: Mapping[str, Any]) -> int:
    """Return the number of cores on each machine of a run: one per thread, or more for the loaders of its GPUs."""
    threads = cluster["num_threads"] * run["num_processes"] if run["kind"] == "measure" else run["cores"]
    return max(1, threads // run["num_nodes"], gpus_per_node(run, cluster) * cluster["cores_per_gpu"])


def gpus_per_node(run: Mapping[str, Any], cluster: Mapping[str, Any]) -> int:
    """Return the number of GPUs on each machine of a run."""
    return int(run["num_processes"] // run["num_nodes"] * cluster["gpus_per_process"])


def command(run: Mapping[str, Any], cluster: Mapping[str, Any]) -> list[str]:
    """Return the command that starts the run as a step of this process's job, once on each machine.

    Several machines meet at this one, the job's first. srun forwards the signals that it receives.
    """
    nodes, container = run["num_nodes"], shlex.split(cluster["slurm"]["container_command"])
    step = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", f"--cpus-per-task={cpus_per_node(run, cluster)}"]
    step += ["--kill-on-bad-exit=0", f"--wait={LAST_WAIT_SECONDS}"]
    if nodes > 1:
        step += [f"--export=ALL,MASTER_ADDR={socket.gethostname()},MASTER_PORT={free_port()}"]
    program, *rest = run["command"]
    return [*step, *container, cluster["image_python"] if container else program, *rest]


def command_of_tasks(cluster: Mapping[str, Any], num_tasks: int) -> list[str]:
    """Return how to start a Python program as `num_tasks` independent tasks of one job on one machine, and to wait."""
    site, container = cluster["slurm"], shlex.split(cluster["slurm"]["container_command"])
    job = ["srun", "--job-name=preflight", "--nodes=1", f"--ntasks={num_tasks}", "--kill-on-bad-exit=1"]
    job += [f"--{name}={site[name]}" for name in ("partition", "account", "qos", "constraint") if site[name]]
    job += [f"--mem={round(1000 * site['memory_gb'])}M"] if site["memory_gb"] else []
    job += [f"--time={round(60 * site['time_limit_hours'])}"] if site["time_limit_hours"] else []
    num_ranks = cluster["num_processes"]
    gpus = num_tasks * num_ranks * cluster["gpus_per_process"]
    cores = num_ranks * (cluster["cores_per_gpu"] if gpus else cluster["num_threads"])
    job += [f"--cpus-per-task={cores}", *([f"--gres={site['gres']}:{gpus}"] if gpus else [])]
    return [
        *job,
        *shlex.split(site["extra_args"]),
        *container,
        cluster["image_python"] if container else sys.executable,
    ]


def job_description(run_id: str, snakemake_dir: Path) -> str:
    """Return a description of this process's job for the run's log."""
    number = os.environ[JOB_ID]
    log = f"{logs_dir(snakemake_dir)}/{RULE_PREFIX}{run_id}/{number}.log"
    return f"SLURM job {number} on {socket.gethostname()}, its own log {log}"


def requeue() -> bool:
    """Requeue this process's job, which ends it; return False if the site does not allow it."""
    return subprocess.run(["scontrol", "requeue", os.environ[JOB_ID]], check=False).returncode == 0


def check_available() -> None:
    """Raise `UserError` if no job can be submitted from this machine."""
    missing = [name for name in ("sbatch", "squeue", "scancel", "scontrol") if shutil.which(name) is None]
    if missing:
        raise UserError(
            f"CLUSTER=slurm submits jobs, and {', '.join(missing)} of SLURM can't be found here: "
            "run the same command on a login node of the cluster"
        )
    _slurm_output("scontrol", "ping")


def jobs(snakemake_dir: Path, *, ended: bool = False) -> list[Job]:
    """Return this checkout's jobs, the latest last: waiting and running ones, with `ended` also finished ones."""
    which = ["--states=all"] if ended else []
    output = _slurm_output("squeue", "--me", "--noheader", "--sort=i", "--format=%i|%T|%Z|%k", *which)
    lines = [line.split("|", 3) for line in output.splitlines()]
    return [
        Job(number, comment.removeprefix(RULE_PREFIX), state)
        for number, state, folder, comment in lines
        if comment.startswith(RULE_PREFIX) and Path(folder).resolve() == snakemake_dir
    ]


def cancel(found: list[Job]) -> None:
    """Cancel jobs; runs that can save a checkpoint do so."""
    _slurm_output("scancel", *[job.number for job in found])


def _status_command() -> str:
    """Return the command that reports the jobs' status: without accounting, sacct knows nothing."""
    output = _slurm_output("scontrol", "show", "config")
    kept = [line for line in output.splitlines() if line.startswith("AccountingStorageType")]
    return "squeue" if any(line.endswith("none") for line in kept) else "sacct"


def _slurm_output(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
        raise UserError(f"SLURM does not answer ({' '.join(words[:2])}: {lines[-1]}); try the same command again later")
    return done.stdout
