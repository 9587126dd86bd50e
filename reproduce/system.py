"""Facts about this checkout and this machine. Uses only the standard library, so that it works without .venv."""

import os
import platform
import re
import signal
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

REPO_ROOT = Path(__file__).resolve().parents[1]
CONF_DIR = REPO_ROOT / "reproduce/conf"
TIMEOUT_SECONDS = 30
POLL_SECONDS = 0.2
"""Time between two looks at a process, a lock or a file of this machine."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""Sent by a scheduler some time before it kills a run; SIGINT by Ctrl-C."""
SHARED_GPUS = "REPRODUCE_GPUS"
"""Environment variable with the GPUs that the harness shares among its runs, separated by commas."""
LAUNCHER = "REPRODUCE_LAUNCHER"
"""Environment variable with the process id of our launcher, for the ranks that it starts."""
LAUNCHER_VARIABLES = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "ROLE_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT"),
)
"""Environment variables by which launchers, ours and torchrun among them, tell a rank its place."""
TORCHRUN_PREFIX = "TORCHELASTIC_"
"""Start of the names of torchrun's own environment variables."""
MAX_WORKERS = 16
"""The most data-loader workers that a process starts unless the config says otherwise."""
PREFETCH_BATCHES, MIN_PREFETCH_BATCHES = 4, 2
"""The most and the fewest batches that each data-loader worker prepares ahead."""
PREFETCH_GB = 4
"""Host memory of a process's prepared batches, which `prefetch_batches` keeps to, down to the fewest batches."""


RUN_CODE_FOLDERS = ("evals", "models", "reproduce")
"""Folders of the code that runs execute."""
NOT_RUN_CODE = (
    *("reproduce/__main__.py", "reproduce/cli", "reproduce/harness", "reproduce/memory.py", "reproduce/conf"),
    *("reproduce/forking.py", "reproduce/pictures"),
)
"""Entries of these that runs do not execute, or that only start them. What a run takes from its config is in its name
already."""


OTHER_REPOSITORY = (
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES"),
    *("GIT_COMMON_DIR", "GIT_PREFIX", "GIT_NAMESPACE", "GIT_GRAFT_FILE", "GIT_SHALLOW_FILE", "GIT_REPLACE_REF_BASE"),
)
"""Variables by which git answers for another repository, as in a hook of one."""
SHOW_EVERYTHING = ("-c", "status.showUntrackedFiles=normal", "-c", "core.excludesFile=")
"""A user's own settings hide no new file of the code."""


def git(*arguments: str) -> str:
    """Run git in the checkout and return its output, or an empty string if git fails or there is no commit.

    An empty output may mean "nothing" or "unknown": `git_problem` tells them apart.
    """
    return _ask_git(*arguments)[0].strip()


def image_commit() -> str:
    """Return the commit that an image was built from, "-dirty" at its end if there was more; "" in a git repository."""
    return "" if (REPO_ROOT / ".git").exists() else os.environ.get("REPRODUCE_GIT_COMMIT", "")


def git_problem() -> str:
    """Return why git can't tell the checkout's state, e.g. because another user owns it; "" if it can.

    "" also if the checkout is no git repository, as in an image.
    """
    if not (REPO_ROOT / ".git").exists():
        return ""
    marked, problem = _ask_git("ls-files", "-v")
    hidden = [line[2:] for line in marked.splitlines() if line[0].islower() or line[0] == "S"]
    if there := [name for name in hidden if (REPO_ROOT / name).exists()]:  # a sparse checkout lacks what it skips
        return f"changes of {there[0]} are hidden from git: git update-index --no-assume-unchanged --no-skip-worktree"
    return problem


def _ask_git(*arguments: str) -> tuple[str, str]:
    """Run git in the checkout; return its output, and the first line of its error if it fails."""
    try:
        done = subprocess.run(
            ["git", *SHOW_EVERYTHING, "-C", str(REPO_ROOT), *arguments],
            env={name: value for name, value in os.environ.items() if name not in OTHER_REPOSITORY},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=TIMEOUT_SECONDS,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return "", f"git can't be run ({error})"
    if done.returncode:
        return "", (done.stderr.strip().splitlines() or [f"git ended with status {done.returncode}"])[0]
    return done.stdout, ""


def without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what another launcher left there: a process started in it is alone."""
    return {
        name: value
        for name, value in environment.items()
        if name not in (*LAUNCHER_VARIABLES, LAUNCHER) and not name.startswith(TORCHRUN_PREFIX)
    }


def cpu_name(root: Path = Path("/")) -> str:
    """Return the CPU's model name from `root`/proc/cpuinfo, or its architecture if that gives none."""
    try:
        cpuinfo = (root / "proc/cpuinfo").read_text()
    except OSError:
        cpuinfo = ""
    model = re.search(r"^model name\s*:[ \t]*(\S.*)", cpuinfo, re.MULTILINE)
    return model[1].strip() if model else platform.processor() or platform.machine()


def cpu_flags() -> set[str]:
    """Return the features of this machine's processor by Linux's names (avx2, avx512f, ...); empty elsewhere."""
    try:
        found = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return set()
    return set(found[1].split()) if found else set()


def usable_cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_cores(root: Path = Path("/")) -> int:
    """Return the number of cores whose time a container's quota grants this process, at least 1."""
    quota, period = cpu_quota(root)
    return int(max(1, min(usable_cores(), quota / period)))


def cpu_quota(root: Path) -> tuple[float, int]:
    """Return a container's CPU quota and its period in microseconds; the quota is infinite without a limit."""
    group = root / "sys/fs/cgroup"
    words = read_text(group / "cpu.max").split() or [
        read_text(group / "cpu/cpu.cfs_quota_us").strip(),
        read_text(group / "cpu/cpu.cfs_period_us").strip(),
    ]
    quota, period = (int(word) if word.isdigit() else 0 for word in words)
    return (quota, period) if quota and period else (float("inf"), 100_000)


def read_text(path: Path) -> str:
    """Return a file's text, or an empty string if it can't be read."""
    try:
        return path.read_text()
    except OSError:
        return ""


def free_port() -> int:
    """Return a free TCP port of this machine whose successor is free, too: a run's launchers connect there."""
    while True:
        with socket.socket() as probe, socket.socket() as successor:
            probe.bind(("", 0))
            port = int(probe.getsockname()[1])
            try:
                successor.bind(("", port + 1))
            except (OSError, OverflowError):
                continue
            return port


def pinned_bytes(*tensor_bytes: int) -> int:
    """Return the pinned memory that tensors of these sizes take: torch's allocator rounds up to powers of two."""
    return sum(1 << (size - 1).bit_length() for size in tensor_bytes if size)


def prefetch_batches(num_workers: int, batch_bytes: int) -> int:
    """Return how many batches of this many bytes each data-loader worker prepares ahead.

    On a GPU torch's thread pins a batch as soon as it comes through /dev/shm, and queues it without a limit. So all
    batches that were prepared and not yet used lie in the host's memory: this many for each worker.
    """
    affordable = int(PREFETCH_GB * 1e9 / max(1, num_workers * batch_bytes))
    return max(MIN_PREFETCH_BATCHES, min(PREFETCH_BATCHES, affordable))


def workers_per_gpu(num_gpus: int, root: Path = Path("/")) -> int:
    """Return how many data-loader workers feed each of this machine's GPUs: its share of the cores, less one."""
    return max(1, min(MAX_WORKERS, available_cores(root) // num_gpus - 1))
