"""The code, packages and machine behind a result.

Code is identified when a run starts, and compared when it ends: an edit in between is named, and so is one while
Python was still importing it. What git can't tell counts as changed.
"""

import hashlib
import os
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import reproduce
from reproduce import system
from reproduce.system import NOT_RUN_CODE, RUN_CODE_FOLDERS, cpu_name, git, git_problem

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
CODE_SUFFIXES = (".py", ".yaml", ".json")


def code_version() -> dict[str, str | bool | None]:
    """Return git's commit, whether there are uncommitted changes, the image digest, and why git can't tell if so.

    Without a git repository, the commit is that of the image's label.
    """
    problem = git_problem()
    commit = git("rev-parse", "HEAD") or (None if problem else os.environ.get("REPRODUCE_GIT_COMMIT"))
    # Untracked files count only among our sources, where a new evaluation may be; elsewhere they are the user's own.
    changes = (
        git("status", "--porcelain", "--untracked-files=no"),
        git("status", "--porcelain", "--", *RUN_CODE_FOLDERS),
    )
    found: dict[str, str | bool | None] = {
        "git_commit": commit or None,
        "git_dirty": bool(problem) or not commit or any(changes) or commit.endswith("-dirty"),
        "image_digest": os.environ.get("REPRODUCE_IMAGE_DIGEST"),
    }
    return found | ({"git_problem": problem} if problem else {})


def _code_files(root: Path) -> list[Path]:
    skipped = tuple(root / name for name in NOT_RUN_CODE)
    paths = (path for folder in RUN_CODE_FOLDERS for path in (root / folder).rglob("*"))
    return [
        path
        for path in paths
        if path.suffix in CODE_SUFFIXES and path.is_file() and not any(path.is_relative_to(each) for each in skipped)
    ]


@dataclass(frozen=True)
class CodeState:
    """The code that a process runs, as it was when the process looked."""

    version: dict[str, str | bool | None]
    """What `code_version` returned."""
    files: dict[str, str]
    """SHA-256 of each file that runs execute or read, by its path in the checkout."""
    changed_during_import: tuple[str, ...]
    """Files that were changed after this process began to import the code: it may have read either version."""

    @classmethod
    def now(cls) -> "CodeState":
        """Look at the checkout."""
        paths = {path.relative_to(system.REPO_ROOT).as_posix(): path for path in _code_files(system.REPO_ROOT)}
        recent = [name for name, path in paths.items() if path.stat().st_ctime > reproduce.IMPORT_STARTED]
        files = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items()}
        return cls(code_version(), files, tuple(sorted(recent)))

    @property
    def sha256(self) -> str:
        """A hash of all files."""
        return hashlib.sha256(repr(sorted(self.files.items())).encode()).hexdigest()

    def changed_files(self, later: "CodeState") -> list[str]:
        """Return the files that are not the same now and `later`, or were changed while they were imported."""
        paths = self.files.keys() | later.files.keys()
        changed = {path for path in paths if self.files.get(path) != later.files.get(path)}
        return sorted(changed | set(self.changed_during_import))

    def summary(self) -> dict[str, Any]:
        """Return the state as plain data, with one hash for all files."""
        return {
            "git_commit": self.version["git_commit"],
            "git_dirty": self.version["git_dirty"],
            "code_sha256": self.sha256,
        }


@dataclass(frozen=True)
class Origin:
    """The code, packages and hardware of a run, as they were at its start."""

    code: CodeState
    packages: dict[str, str]
    hardware: str

    @classmethod
    def now(cls) -> "Origin":
        """Look at this process."""
        return cls(CodeState.now(), package_versions(), hardware_name())

    def entries(self, later: CodeState, resumed: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the entries of a result's provenance.

        `later` is the code at the run's end, `resumed` has the code of the attempts whose checkpoints were gone on
        with (`CodeState.summary`).
        """
        changed = self.code.changed_files(later)
        others = [each for each in resumed if each != self.code.summary()]
        dirty = self.code.version["git_dirty"] or bool(changed) or any(each["git_dirty"] for each in others)
        found: dict[str, Any] = {**self.code.version, "git_dirty": dirty, "code_sha256": self.code.sha256}
        found |= {"code_changed": changed} if changed else {}
        found |= {"resumed_code": others} if others else {}
        return found | {"packages": self.packages, "hardware": self.hardware}


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
    """Return the peak memory in GB (1e9 bytes): allocated on this process's GPU, or resident on the CPU.

    On the CPU it is that of this process or of its largest child, whichever is more: a data loader's worker is a fork,
    whose resident pages are for the most part its parent's.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    largest_child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return max(own, largest_child) * 1024 / 1e9
