"""A pretraining small enough for a test: real config, real files, real process, seconds."""

import contextlib
import fcntl
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from reproduce.config.compose import compose
from reproduce.data.prepare import synthetic
from reproduce.engine import checkpoint
from reproduce.engine.checkpoint import CheckpointManager
from reproduce.errors import run_cli
from reproduce.harness.plan.config_cache import FILE_NAME, read_summaries, write_summaries
from tests.forks import ForkedRun

REPO_ROOT = Path(__file__).parents[1]
TINY = (
    "scale=smoke", "data=generated", "network.width=0.0625", "network.head_hidden_dim=16", "network.embedding_dim=8",
    "batch_size=10", "epochs=3", "collapse.on_collapse=warn", "logging.every_steps=1",
    "checkpointing.sync_every_steps=1", "cluster.num_threads=1",
    "cluster.num_workers=0", "logging.wandb=false",
)  # fmt: skip
"""Overrides: three epochs of two steps."""
FEW_CLUSTERS = (
    "method.num_clusters=[12,14]", "method.num_negative_prototypes=2", "method.queue_length=30",
    "method.warmup_epochs=1",
)  # fmt: skip
"""Overrides of PCL that fit twenty pictures."""
FEW_NEIGHBORS = ("method.num_negatives=30", "method.num_neighbors=8", "method.num_clusters=6", "method.warmup_epochs=1")
"""Those of Local Aggregation."""
FEW_WORDS = ("method.num_words=10", "method.num_vocabulary_features=20", "method.rotation_epochs=1")
"""Those of BoWNet, whose second epoch begins with words."""


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that the first test to need it makes, for all workers of this session; nobody writes into it."""
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / name
    with open(shared / f"{name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not folder.exists():
            unfinished = factory.mktemp(name)
            make(unfinished)
            unfinished.rename(folder)
    return folder


@contextlib.contextmanager
def lent_configs(shared: Path, folder: Path) -> Iterator[Path]:
    """Copy the session's cache of configs to `folder`, and add to it what is composed meanwhile.

    Another worker may be replacing the cache, so nothing beside it is copied. A copy that was damaged adds nothing.
    """
    folder.mkdir()
    copy = Path(shutil.copy2(shared / FILE_NAME, folder / FILE_NAME))
    lent = copy.stat()
    yield folder
    with open(shared / f"{FILE_NAME}.lock", "w") as lock, contextlib.suppress(OSError, ValueError):
        if copy.stat() == lent:
            return
        fcntl.flock(lock, fcntl.LOCK_EX)
        (of_added, added), (fingerprint, known) = read_summaries(copy), read_summaries(shared / FILE_NAME)
        if of_added == fingerprint and added.keys() - known.keys():
            write_summaries(shared / FILE_NAME, fingerprint, known | added)


def tiny_pictures(root: Path, num_train: int = 2, num_voc: tuple[int, int] = (60, 30)) -> None:
    """The generated sets with few pictures of each class. (The fixture `data` has them already.)"""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            synthetic.SIZES, "full", synthetic.Sizes((num_train, 2), 64, voc=num_voc, voc0712=num_voc, coco=(60, 30))
        )
        patch.setattr(synthetic, "COCO_SCENES", replace(synthetic.COCO_SCENES, size_px=(128, 128)))
        synthetic.generate(root)


def command(module: str, *overrides: str, processes: int = 1) -> list[str]:
    """The argument vector of a run."""
    return [sys.executable, "-m", *_words(module, *overrides, processes=processes)]


def _words(module: str, *overrides: str, processes: int) -> list[str]:
    launcher = ["reproduce.engine.distributed.launch", f"--nproc-per-node={processes}"] if processes > 1 else []
    return [*launcher, module, *overrides]


def evaluation_of_bytes(name: str, data: Path, folder: Path, *more: str) -> DictConfig:
    """The config of an evaluation whose checkpoint nobody loads: some bytes in `folder`, where the results are, too."""
    checkpoint = folder / "own.pt"
    checkpoint.write_bytes(b"weights")
    common = ("scale=smoke", "data=generated", "logging.wandb=false", f"eval={name}", f"checkpoint={checkpoint}")
    return compose("evaluate", [*common, f"paths.data_root={data}", f"paths.results={folder}", *more])


def call(main: Callable[[], int], monkeypatch: pytest.MonkeyPatch, *overrides: str) -> tuple[int, str]:
    """An entry point in this process: exit status and stderr."""
    monkeypatch.setattr("sys.argv", ["run", *overrides])
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        status = run_cli(main)
    return status, stderr.getvalue()


def start(module: str, *overrides: str, processes: int = 1, **environment: str) -> ForkedRun:
    """Start a run in the background."""
    return ForkedRun(_words(module, *overrides, processes=processes), os.environ | environment)


def run(module: str, *overrides: str, processes: int = 1, **environment: str) -> subprocess.CompletedProcess[str]:
    """Start a run and wait for its end."""
    process = start(module, *overrides, processes=processes, **environment)
    out, err = process.communicate()
    assert process.returncode is not None
    return subprocess.CompletedProcess([module, *overrides], process.returncode, out, err)


def start_anew(module: str, *overrides: str, processes: int = 1) -> "subprocess.Popen[str]":
    """Start a run in the background as users do, with an interpreter of its own."""
    return subprocess.Popen(
        command(module, *overrides, processes=processes), cwd=REPO_ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def run_anew(module: str, *overrides: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """Run as users do, with an interpreter of its own."""
    with start_anew(module, *overrides, processes=processes) as process:
        out, err = process.communicate(timeout=240)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


Uninterrupted = Callable[..., Path]
"""The fixture `uninterrupted`: the results folder of a run, made once."""


class Killed(BaseException):
    """Stands for a SIGKILL: nothing catches it."""


@contextlib.contextmanager
def killed_after(step: int) -> Iterator[None]:
    """Runs in this process save after each step, and are killed after `step`."""

    def kill(self: CheckpointManager, done: int) -> None:
        self.save(done)
        self.wait()
        if done == step:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointManager, "save_if_due", kill)
        with pytest.raises(Killed):
            yield


MEASURED_ON_THE_MACHINE = ("images_per_second", "data_wait_share", "peak_memory_gb")


def curve(results: Path) -> list[dict[str, Any]]:
    """Return the curve points of the one run below `results`, without those that differ from run to run."""
    (path,) = results.glob("*/*/metrics.jsonl")
    points = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: point[name] for name in point if name not in MEASURED_ON_THE_MACHINE} for point in points]


def losses(results: Path) -> list[float]:
    """The losses of the one run below `results`."""
    return [point["loss"] for point in curve(results)]


def first_steps(results: Path) -> dict[str, list[float]]:
    """What the one run below `results` keeps of its first steps."""
    (path,) = results.glob("*/*/result.json")
    found: dict[str, list[float]] = json.loads(path.read_text())["first_steps"]
    assert found["loss"]
    return found


def weights(results: Path) -> dict[str, torch.Tensor]:
    """The network that the one run below `results` trained."""
    (path,) = results.glob("*/*/checkpoint.pt")
    return checkpoint.load(path)["model"]


def assert_same_training(results: Path, expected: Path, num_steps: int) -> None:
    """The same losses and weights as another run's, to the bit."""
    assert len(losses(expected)) == num_steps
    assert losses(results) == losses(expected)
    assert first_steps(results) == first_steps(expected)
    found, whole = weights(results), weights(expected)
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)
