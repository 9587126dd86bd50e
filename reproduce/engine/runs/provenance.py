"""The code, packages and machine behind a result."""

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
"""Packages that the numbers depend on."""
SOURCE_FOLDERS = ("evals", "models", "reproduce")


def code_version() -> dict[str, str | bool | None]:
    """Return the git commit, whether there are uncommitted changes, and the image digest.

    Without git, the commit is that of the image's label.
    """
    commit = git("rev-parse", "HEAD") or os.environ.get("REPRODUCE_GIT_COMMIT")
    # Untracked files count only among our sources, where a new evaluation may be; elsewhere they are the user's own.
    changes = git("status", "--porcelain", "--untracked-files=no"), git("status", "--porcelain", "--", *SOURCE_FOLDERS)
    return {
        "git_commit": commit,
        "git_dirty": any(changes) or (commit or "").endswith("-dirty"),
        "image_digest": os.environ.get("REPRODUCE_IMAGE_DIGEST"),
    }


def package_versions() -> dict[str, str]:
    """Return the version of each of `PACKAGES` that is installed."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def hardware_name() -> str:
    """Return the number and name of the GPUs, or the CPU's name and core count."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{cpu_name()}, {os.cpu_count()} cores"


def peak_memory_gb() -> float:
    """Return this process's peak memory in GB (1e9 bytes): allocated on its GPU, or resident with its largest child."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    largest_child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return (own + largest_child) * 1024 / 1e9
