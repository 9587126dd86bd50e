"""Diagnose the packages, services and network that this machine has. Uses the standard library only, like `machine`."""

import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version

from reproduce.harness.machine import Diagnosis, list_gpus, run_command
from reproduce.system import REPO_ROOT

NETWORK_TIMEOUT_SECONDS = 3


def packages() -> Iterator[Diagnosis]:
    """Diagnose the packages of the lock, and those that only the images have."""
    name = ".venv" if sys.prefix != sys.base_prefix else sys.executable
    pins = re.findall(r"^([\w.-]+)==([\w.!+]+)", (REPO_ROOT / "requirements/run.txt").read_text(), re.MULTILINE)
    others = [package for package, wanted in pins if _version(package).split("+")[0] != wanted]
    if len(others) == len(pins):
        yield Diagnosis("packages", f"{name} holds none of requirements/run.txt: make setup installs them", "missing")
        return
    if others:
        few = ", ".join(others[:3]) + (", ..." if others[3:] else "")
        words = f"{len(others)} of {len(pins)} pinned in requirements/run.txt are missing or of another version"
        yield Diagnosis("packages", f"{words} ({few}): make setup installs them", "note")
    else:
        yield Diagnosis("packages", f"all {len(pins)} of requirements/run.txt, as pinned")
    yield _torch()
    apex, detectron2 = _version("apex"), _version("detectron2")
    yield Diagnosis("apex", apex or "none: it is in the CUDA image (docker/)")
    python_only = _version("pb1-detectron2")
    without = f"{python_only}, its Python sources only" if python_only else "none: it is in the CUDA image (docker/)"
    yield Diagnosis("Detectron2", detectron2 or without)


TRY_GPUS = """
import torch
usable = 0
for number in range(torch.cuda.device_count()):
    try:
        usable += int((torch.ones(1, device=("cuda", number)) + 0).item())
    except (RuntimeError, AssertionError) as error:
        print(str(error).splitlines()[0])
print(usable)
"""
"""Adds two numbers on each GPU: torch finds GPUs for which it has no program, such as older ones."""


def _torch() -> Diagnosis:
    if not (installed := _version("torch")):
        return Diagnosis("torch", "none: make setup installs it", "missing")
    words = f"{installed}, torchvision {_version('torchvision') or 'none'}"
    if not isinstance(found := list_gpus(), list) or not found:
        return Diagnosis("torch", words)
    status, text = run_command(sys.executable, "-c", TRY_GPUS, timeout_seconds=120) or (1, "")
    last, *errors = reversed(text.splitlines() or ["nothing"])
    if status or last != str(len(found)):
        why = f" ({errors[0]})" if errors and not status else ""
        return Diagnosis("torch", f"{words}; of {len(found)} GPUs it can use {last}{why}", "note")
    return Diagnosis("torch", f"{words}; it can use all {last} GPUs")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def services() -> Iterator[Diagnosis]:
    """Diagnose Docker and SLURM."""
    for subject, command in (
        ("docker", ("docker", "version", "--format", "{{.Server.Version}}")),
        ("SLURM", ("sinfo", "--noheader", "--format", "%D nodes %t in partition %P")),
    ):
        answer = run_command(*command)
        if answer is None:
            yield Diagnosis(subject, f"none ({command[0]} is not there)")
        elif answer[0]:
            yield Diagnosis(subject, f"{command[0]} is there, its service is not: {answer[1].splitlines()[-1]}", "note")
        else:
            yield Diagnosis(subject, "; ".join(" ".join(line.split()) for line in answer[1].splitlines()) or "no nodes")


def network(urls: dict[str, str]) -> Iterator[Diagnosis]:
    """Diagnose whether https addresses answer, through the proxies of the environment. `urls` are by subject."""
    with ThreadPoolExecutor() as pool:
        for subject, reached in zip(urls, pool.map(_answers, urls.values()), strict=True):
            yield Diagnosis(subject, "answers" if reached else "can't be reached", "ok" if reached else "note")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(  # noqa: S310  # callers pass https only
            urllib.request.Request(url, method="HEAD"),  # noqa: S310
            timeout=NETWORK_TIMEOUT_SECONDS,
        ):
            return True
    except urllib.error.HTTPError:
        return True  # it answers, though not with this page
    except (OSError, ValueError):
        return False
