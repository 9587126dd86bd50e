"""What this machine is, by its own files and commands, in seconds. Standard library only: it answers without .venv.

Every question has an answer in plain words, and no command's failure is an error here.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from reproduce.system import REPO_ROOT, cpu_name

VERSIONS = REPO_ROOT / "docker/versions.env"
"""The images' pins, one NAME=VALUE a line."""

PATIENCE_SECONDS = 10
NETWORK_PATIENCE_SECONDS = 3
MIN_FREE_GB = 2
"""What the runs of scale smoke leave, with their caches."""
MIN_SHARED_GB = 1
"""Data-loader workers hand batches over in /dev/shm; containers get 64 MB unless they ask for more."""

Mark = Literal["ok", "note", "missing"]
"""Missing: scale smoke can't run without. Note: something else can't, or will be slow."""


@dataclass(frozen=True)
class Finding:
    """One answer."""

    subject: str
    words: str
    mark: Mark = "ok"


@dataclass(frozen=True)
class Gpu:
    """One GPU, as its driver tells it."""

    name: str
    memory_gb: float
    driver: str


def pin(name: str) -> str:
    """A value of `docker/versions.env`."""
    return dict(line.split("=", 1) for line in VERSIONS.read_text().splitlines() if re.match(r"\w+=", line))[name]


def ask(*command: str, patience_seconds: float = PATIENCE_SECONDS) -> tuple[int, str] | None:
    """Exit status and output of a command (of stderr, where stdout is empty); None where there is none of its name."""
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=patience_seconds, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        return None
    except subprocess.TimeoutExpired:
        return 1, f"no answer within {patience_seconds:g} s"
    except OSError as error:
        return 1, str(error.strerror)
    return done.returncode, done.stdout.strip() or done.stderr.strip()


def hardware(root: Path = Path("/")) -> Iterator[Finding]:
    """Processor, memory, disk and GPUs, within the limits of a container. `root` is where /proc and /sys lie."""
    release = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    yield Finding("system", release + (", in a container" if (root / ".dockerenv").exists() else ""))
    yield _processor(root)
    yield _memory(root)
    yield _disk()
    yield _shared_memory(root)
    yield from _gpu_findings()


def _processor(root: Path) -> Finding:
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    words = f"{cpu_name(root)}, {num_cores} cores"
    quota, period = cpu_quota(root)
    if quota < num_cores * period:
        words += f", of whose time {quota / period:g} are granted (say CORES={max(1, quota // period)})"
    return Finding("processor", words)


def cpu_quota(root: Path) -> tuple[float, int]:
    """Microseconds of processor time that a container gets, and in how many; infinite where there is no limit."""
    group = root / "sys/fs/cgroup"
    words = _text(group / "cpu.max").split() or [
        _text(group / "cpu/cpu.cfs_quota_us").strip(),
        _text(group / "cpu/cpu.cfs_period_us").strip(),
    ]
    quota, period = (int(word) if word.isdigit() else 0 for word in words)
    return (quota, period) if quota and period else (float("inf"), 100_000)


def _memory(root: Path) -> Finding:
    told = dict(re.findall(r"^(\w+): +(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE))
    if not told:
        return Finding("memory", "unknown", "note")
    total, free = (int(told.get(name, 0)) * 1024 for name in ("MemTotal", "MemAvailable"))
    group = root / "sys/fs/cgroup"
    limit = (_text(group / "memory.max") or _text(group / "memory/memory.limit_in_bytes")).strip()
    if limit.isdigit() and int(limit) < total:
        return Finding("memory", f"{int(limit) / 1e9:.1f} GB, the container's limit, of {total / 1e9:.1f} GB")
    return Finding("memory", f"{total / 1e9:.1f} GB, {free / 1e9:.1f} GB of them free")


def _disk() -> Finding:
    folder = Path("results") if Path("results").is_dir() else Path.cwd()
    free_gb = shutil.disk_usage(folder).free / 1e9
    if not os.access(folder, os.W_OK):
        return Finding("disk", f"{folder.resolve()} can't be written to: results have no place", "missing")
    words = f"{free_gb:.1f} GB free for results"
    short = f"{words}: scale smoke needs {MIN_FREE_GB} GB"
    return Finding("disk", words) if free_gb >= MIN_FREE_GB else Finding("disk", short, "missing")


def _shared_memory(root: Path) -> Finding:
    folder = root / "dev/shm"
    if not folder.is_dir():
        return Finding("shared memory", "there is no /dev/shm: set the cluster's num_workers to 0", "note")
    size_gb = shutil.disk_usage(folder).total / 1e9
    words = f"{size_gb:.2g} GB in /dev/shm"
    if size_gb < MIN_SHARED_GB:
        return Finding("shared memory", f"{words}: give a container more, as with --shm-size=8g or --ipc=host", "note")
    return Finding("shared memory", words)


def gpus() -> list[Gpu] | str:
    """The GPUs, or why there are none."""
    asked = "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"
    answer = ask("nvidia-smi", *asked)
    if answer is None:
        return "nvidia-smi is not there"
    status, text = answer
    lines = [line.split(", ") for line in text.splitlines()]
    if status or any(len(line) != 3 for line in lines):
        return f"nvidia-smi says: {text.splitlines()[0] if text else 'nothing'}"
    return [
        Gpu(name, float(megabytes) * 2**20 / 1e9 if megabytes.isdigit() else 0.0, driver)
        for name, megabytes, driver in lines
    ]


def _gpu_findings() -> Iterator[Finding]:
    found = gpus()
    if isinstance(found, str) or not found:
        yield Finding("GPU", f"none ({found or 'nvidia-smi lists none'}): runs use the processor", "note")
        return
    for name in dict.fromkeys(gpu.name for gpu in found):
        alike = [gpu for gpu in found if gpu.name == name]
        yield Finding("GPU", f"{len(alike)} x {name}, {alike[0].memory_gb:.0f} GB, driver {alike[0].driver}")
    major = found[0].driver.split(".")[0]
    if major.isdigit() and int(major) < int(pin("MIN_DRIVER")):
        needs = f"torch {pin('TORCH')} needs driver {pin('MIN_DRIVER')} or newer"
        yield Finding("driver", f"{found[0].driver} is too old, runs use the processor: {needs}", "note")


def packages() -> Iterator[Finding]:
    """What is installed of the lock, and what the images alone bring."""
    name = ".venv" if sys.prefix != sys.base_prefix else sys.executable
    pins = re.findall(r"^([\w.-]+)==([\w.!+]+)", (REPO_ROOT / "requirements/run.txt").read_text(), re.MULTILINE)
    others = [package for package, wanted in pins if _version(package).split("+")[0] != wanted]
    if len(others) == len(pins):
        yield Finding("packages", f"{name} holds none of requirements/run.txt: make setup installs them", "missing")
        return
    if others:
        few = ", ".join(others[:3]) + (", ..." if others[3:] else "")
        words = f"{len(others)} of {len(pins)} pinned in requirements/run.txt are missing or of another version"
        yield Finding("packages", f"{words} ({few}): make setup installs them", "note")
    else:
        yield Finding("packages", f"all {len(pins)} of requirements/run.txt, as pinned")
    yield _torch()
    apex, detectron2 = _version("apex"), _version("detectron2")
    yield Finding("apex", apex or "none: it is in the CUDA image (docker/)")
    python_only = _version("pb1-detectron2")
    without = f"{python_only}, its Python sources only" if python_only else "none: it is in the CUDA image (docker/)"
    yield Finding("Detectron2", detectron2 or without)


def _torch() -> Finding:
    if not (installed := _version("torch")):
        return Finding("torch", "none: make setup installs it", "missing")
    words = f"{installed}, torchvision {_version('torchvision') or 'none'}"
    if not isinstance(found := gpus(), list) or not found:
        return Finding("torch", words)
    script = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"
    status, text = ask(sys.executable, "-c", script, patience_seconds=60) or (1, "")
    last = text.splitlines()[-1] if text else "nothing"
    if status or last != str(len(found)):
        return Finding("torch", f"{words}; of {len(found)} GPUs it can use {last}", "note")
    return Finding("torch", f"{words}; it can use all {last} GPUs")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def services() -> Iterator[Finding]:
    """Engines that can run images and jobs."""
    for subject, command in (
        ("docker", ("docker", "version", "--format", "{{.Server.Version}}")),
        ("SLURM", ("sinfo", "--noheader", "--format", "%D nodes %t in partition %P")),
    ):
        answer = ask(*command)
        if answer is None:
            yield Finding(subject, f"none ({command[0]} is not there)")
        elif answer[0]:
            yield Finding(subject, f"{command[0]} is there, its service is not: {answer[1].splitlines()[-1]}", "note")
        else:
            yield Finding(subject, "; ".join(" ".join(line.split()) for line in answer[1].splitlines()) or "no nodes")


def network(addresses: dict[str, str]) -> Iterator[Finding]:
    """Whether https `addresses`, by what they are, answer. Proxies are those of the environment."""
    with ThreadPoolExecutor() as pool:
        for subject, reached in zip(addresses, pool.map(_answers, addresses.values()), strict=True):
            yield Finding(subject, "answers" if reached else "can't be reached", "ok" if reached else "note")


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(  # noqa: S310 - https only, by those who ask
            urllib.request.Request(address, method="HEAD"),  # noqa: S310
            timeout=NETWORK_PATIENCE_SECONDS,
        ):
            return True
    except urllib.error.HTTPError:
        return True  # it answers, though this page is not for everyone
    except (OSError, ValueError):
        return False


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
