"""Diagnose the hardware of this machine from its own files and commands, in seconds.

Uses the standard library only, so that it works without .venv. A command that fails is a diagnosis, not an error.
"""

import math
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reproduce.system import (
    REPO_ROOT,
    available_cores,
    cpu_name,
    cpu_quota,
    pinned_bytes,
    prefetch_batches,
    read_text,
    usable_cores,
    workers_per_gpu,
)

TIMEOUT_SECONDS = 10
MIN_FREE_GB = 2
"""Disk space that the runs of scale smoke take, with their caches."""
MIN_SHARED_MEMORY_GB = 1
"""Data-loader workers pass batches through /dev/shm; containers have 64 MB there by default."""
BATCH_BYTES = 64 * 3 * 2 * 224**2, 64 * 3 * 6 * 96**2
"""Crops of 64 images, 2x224 and 6x96: one GPU's share of a step with the paper's 64 GPUs."""
FEWER_WORKERS = "lower cluster.num_workers"

Level = Literal["ok", "note", "missing"]
"""missing: scale smoke cannot run without it. note: something else cannot, or is slow."""


@dataclass(frozen=True)
class Diagnosis:
    """One line of the doctor's report."""

    subject: str
    text: str
    level: Level = "ok"


@dataclass(frozen=True)
class GpuInfo:
    """A GPU as its driver describes it."""

    name: str
    memory_gb: float
    driver: str
    uuid: str = ""


VERSIONS_FILE = REPO_ROOT / "docker/versions.env"
"""The images' pins, one NAME=VALUE a line."""


def pinned_version(name: str) -> str:
    """Return a value of `docker/versions.env`."""
    return dict(line.split("=", 1) for line in VERSIONS_FILE.read_text().splitlines() if re.match(r"\w+=", line))[name]


def run_command(*command: str, timeout_seconds: float = TIMEOUT_SECONDS) -> tuple[int, str] | None:
    """Return the exit status and the output of a command (stderr if stdout is empty); None if it is not installed."""
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=timeout_seconds, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        return None
    except subprocess.TimeoutExpired:
        return 1, f"no answer within {timeout_seconds:g} s"
    except OSError as error:
        return 1, str(error.strerror)
    return done.returncode, done.stdout.strip() or done.stderr.strip()


def hardware(root: Path = Path("/")) -> Iterator[Diagnosis]:
    """Diagnose processor, memory, disk and GPUs within a container's limits. `root` is the parent of /proc and /sys."""
    release = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    yield Diagnosis("system", release + (", in a container" if (root / ".dockerenv").exists() else ""))
    yield _processor(root)
    yield _memory(root)
    yield _disk()
    yield _shared_memory(root)
    yield from _gpu_findings()


def _processor(root: Path) -> Diagnosis:
    num_cores = usable_cores()
    words = f"{cpu_name(root)}, {num_cores} cores"
    quota, period = cpu_quota(root)
    if quota < num_cores * period:
        words += f", of whose time {quota / period:g} are granted (say CORES={available_cores(root)})"
    return Diagnosis("processor", words)


def _memory(root: Path) -> Diagnosis:
    fields = dict(re.findall(r"^(\w+): +(\d+) kB", read_text(root / "proc/meminfo"), re.MULTILINE))
    if not fields:
        return Diagnosis("memory", "unknown", "note")
    total, free = (int(fields.get(name, 0)) * 1024 for name in ("MemTotal", "MemAvailable"))
    group = root / "sys/fs/cgroup"
    limit = (read_text(group / "memory.max") or read_text(group / "memory/memory.limit_in_bytes")).strip()
    words = f"{total / 1e9:.1f} GB, {free / 1e9:.1f} GB of them free"
    if limit.isdigit() and int(limit) < total:
        words = f"{int(limit) / 1e9:.1f} GB, the container's limit, of {total / 1e9:.1f} GB"
        total = int(limit)
    use, needed_gb = _prepared_batches(pinned_bytes(*BATCH_BYTES), root)
    if total < needed_gb * 1e9:
        return Diagnosis("memory", f"{words}: {use} pinned (batches of 64 images per GPU); {FEWER_WORKERS}", "note")
    return Diagnosis("memory", words)


def _prepared_batches(batch_bytes: int, root: Path) -> tuple[str, float]:
    """Return how many GB of batches the data-loader workers of all GPUs hold, in words and as a number."""
    found = list_gpus()
    if not isinstance(found, list) or not found:
        return "", 0.0
    num_workers = workers_per_gpu(len(found), root)
    # The number is that of pinned batches, which are a little larger than those in /dev/shm.
    num_ahead = num_workers * prefetch_batches(num_workers, pinned_bytes(*BATCH_BYTES))
    gb = len(found) * num_ahead * batch_bytes / 1e9
    return f"{num_workers} data-loader workers for each of {len(found)} GPUs hold {gb:.1f} GB", gb


def _disk() -> Diagnosis:
    folder = Path("results") if Path("results").is_dir() else Path.cwd()
    free_gb = shutil.disk_usage(folder).free / 1e9
    if not os.access(folder, os.W_OK):
        return Diagnosis("disk", f"{folder.resolve()} can't be written to: results have no place", "missing")
    words = f"{free_gb:.1f} GB free for results"
    short = f"{words}: scale smoke needs {MIN_FREE_GB} GB"
    return Diagnosis("disk", words) if free_gb >= MIN_FREE_GB else Diagnosis("disk", short, "missing")


def _shared_memory(root: Path) -> Diagnosis:
    folder = root / "dev/shm"
    if not folder.is_dir():
        return Diagnosis("shared memory", "there is no /dev/shm: set the cluster's num_workers to 0", "note")
    size_gb = shutil.disk_usage(folder).total / 1e9
    words = f"{size_gb:.2g} GB in /dev/shm"
    more = "give a container more, as with --shm-size={:.0f}g or --ipc=host"
    if size_gb < MIN_SHARED_MEMORY_GB:
        return Diagnosis("shared memory", f"{words}: {more.format(8)}", "note")
    use, needed_gb = _prepared_batches(sum(BATCH_BYTES), root)
    if size_gb < needed_gb:
        advice = f"{more.format(math.ceil(needed_gb))}, or {FEWER_WORKERS}"
        return Diagnosis("shared memory", f"{words}: {use} there (batches of 64 images per GPU); {advice}", "note")
    return Diagnosis("shared memory", words)


def list_gpus() -> list[GpuInfo] | str:
    """Return the GPUs, or a phrase on why there are none."""
    query = "--query-gpu=name,memory.total,driver_version,uuid", "--format=csv,noheader,nounits"
    answer = run_command("nvidia-smi", *query)
    if answer is None:
        return "nvidia-smi is not there"
    status, text = answer
    lines = [line.split(", ") for line in text.splitlines()]
    if status or any(len(line) != 4 for line in lines):
        return f"nvidia-smi says: {text.splitlines()[0] if text else 'nothing'}"
    return [
        GpuInfo(name, float(megabytes) * 2**20 / 1e9 if megabytes.isdigit() else 0.0, driver, uuid)
        for name, megabytes, driver, uuid in lines
    ]


def hardware_name() -> str:
    """Return what a result's provenance calls this machine: its GPUs, or its processor and the number of cores."""
    gpus = list_gpus()
    return (
        f"{cpu_name()}, {os.cpu_count()} cores"
        if isinstance(gpus, str) or not gpus
        else f"{len(gpus)} x {gpus[0].name}"
    )


def _gpu_findings() -> Iterator[Diagnosis]:
    found = list_gpus()
    if isinstance(found, str) or not found:
        yield Diagnosis("GPU", f"none ({found or 'nvidia-smi lists none'}): runs use the processor", "note")
        return
    for name in dict.fromkeys(gpu.name for gpu in found):
        alike = [gpu for gpu in found if gpu.name == name]
        yield Diagnosis("GPU", f"{len(alike)} x {name}, {alike[0].memory_gb:.0f} GB, driver {alike[0].driver}")
    major = found[0].driver.split(".")[0]
    if major.isdigit() and int(major) < int(pinned_version("MIN_DRIVER")):
        needs = f"torch {pinned_version('TORCH_VERSION')} needs driver {pinned_version('MIN_DRIVER')} or newer"
        yield Diagnosis("driver", f"{found[0].driver} is too old, runs use the processor: {needs}", "note")
