"""Where a number comes from: code, packages, machine."""

import os
import platform
import resource
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "scikit-learn",
    "hydra-core",
    "omegaconf",
    "wandb",
    "detectron2",
    "apex",
)


CODE = ("evals", "models", "reproduce")


def code() -> dict[str, str | bool | None]:
    """The checkout's commit and whether it has uncommitted changes; the image's labels where there is no git."""
    commit = _git("rev-parse", "HEAD") or os.environ.get("REPRODUCE_GIT_COMMIT")
    # A new evaluation or experiment is a file that git does not know yet; elsewhere such files are the user's own.
    changes = _git("status", "--porcelain", "--untracked-files=no"), _git("status", "--porcelain", "--", *CODE)
    return {
        "git_commit": commit,
        "git_dirty": any(changes) or (commit or "").endswith("-dirty"),
        "image_digest": os.environ.get("REPRODUCE_IMAGE_DIGEST"),
    }


def _git(*arguments: str) -> str | None:
    checkout = Path(__file__).resolve().parents[2]
    try:
        return subprocess.run(
            ["git", "-C", str(checkout), *arguments], capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def packages() -> dict[str, str]:
    """Versions of what the numbers depend on, as far as it is installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def hardware() -> str:
    """The accelerators' names, or the processor's name and core count."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores"


def peak_memory_gb() -> float:
    """Peak memory of this process so far: of the GPU where there is one, else resident, with the largest child's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    largest_child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return (own + largest_child) * 1024 / 1e9
