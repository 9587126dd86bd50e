"""A pretraining small enough for a test: real config, real files, real process, seconds."""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reproduce.data.prepare import synthetic
from reproduce.errors import run_cli

REPO_ROOT = Path(__file__).parents[1]
TINY = (
    "scale=smoke", "data=generated", "network.width=0.0625", "network.head_hidden_dim=16", "network.embedding_dim=8",
    "batch_size=10", "epochs=3", "collapse.on_collapse=warn", "logging.every_steps=1",
    "checkpointing.sync_every_steps=1", "cluster.num_threads=1",
    "cluster.num_workers=0", "logging.wandb=false",
)  # fmt: skip
"""Overrides: three epochs of two steps."""


def tiny_pictures(root: Path, num_train: int = 2, num_voc: dict[str, int] | None = None) -> None:
    """The generated sets with few pictures of each class."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            synthetic, "CLASS_SETS", tuple(replace(s, num_train=num_train, num_val=2) for s in synthetic.CLASS_SETS)
        )
        patch.setattr(synthetic, "VOC_SPLITS", num_voc or {"trainval": 60, "test": 30})
        patch.setattr(synthetic, "COCO_SPLITS", {"train2017": 60, "val2017": 30})
        patch.setattr(synthetic, "COCO_SCENES", replace(synthetic.COCO_SCENES, size_px=(128, 128)))
        synthetic.generate(root)


def command(module: str, *overrides: str, processes: int = 1) -> list[str]:
    """The argument vector of a run."""
    launcher = (
        ["-m", "reproduce.engine.distributed.launch", f"--nproc-per-node={processes}"] if processes > 1 else ["-m"]
    )
    return [sys.executable, *launcher, module, *overrides]


def call(main: Callable[[], int], monkeypatch: pytest.MonkeyPatch, *overrides: str) -> tuple[int, str]:
    """An entry point in this process: exit status and stderr."""
    monkeypatch.setattr("sys.argv", ["run", *overrides])
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        status = run_cli(main)
    return status, stderr.getvalue()


def run(module: str, *overrides: str, processes: int = 1, **environment: str) -> subprocess.CompletedProcess[str]:
    """Start a run and wait for its end."""
    return subprocess.run(
        command(module, *overrides, processes=processes),
        cwd=REPO_ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


MEASURED_ON_THE_MACHINE = ("images_per_second", "data_wait_share", "peak_memory_gb")


def curve(results: Path) -> list[dict[str, Any]]:
    """Return the curve points of the one run below `results`, without those that differ from run to run."""
    (path,) = results.glob("*/*/metrics.jsonl")
    points = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: point[name] for name in point if name not in MEASURED_ON_THE_MACHINE} for point in points]
