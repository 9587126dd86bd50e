"""Where a number comes from: code, packages, machine."""

import os
import resource
from importlib.metadata import PackageNotFoundError, version

import torch

from reproduce.system import cpu_name, git

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
    commit = git("rev-parse", "HEAD") or os.environ.get("REPRODUCE_GIT_COMMIT")
    # A new evaluation or experiment is a file that git does not know yet; elsewhere such files are the user's own.
    changes = git("status", "--porcelain", "--untracked-files=no"), git("status", "--porcelain", "--", *CODE)
    return {
        "git_commit": commit,
        "git_dirty": any(changes) or (commit or "").endswith("-dirty"),
        "image_digest": os.environ.get("REPRODUCE_IMAGE_DIGEST"),
    }


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
    return f"{cpu_name()}, {os.cpu_count()} cores"


def peak_memory_gb() -> float:
    """Peak memory of this process so far: of the GPU where there is one, else resident, with the largest child's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    largest_child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return (own + largest_child) * 1024 / 1e9
