"""How a run ends: result.json, or failure.json with the reason."""

import contextlib
import datetime
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from reproduce.engine import arithmetic
from reproduce.engine.distributed.collectives import device, rank, world_size
from reproduce.engine.runs import provenance
from reproduce.engine.runs.attempts import Attempts
from reproduce.engine.runs.provenance import CodeState, Origin
from reproduce.errors import RetryableError, TrainingFailed, Unavailable, UserError
from reproduce.files import write_json


def build_result(
    cfg: DictConfig,
    run_id: str,
    config_hash: str,
    metrics: Mapping[str, float],
    counts: Mapping[str, int],
    parents: list[str],
    attempts: Attempts,
    first_steps: Mapping[str, list[float]],
    origin: Origin,
    run_provenance: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the content of result.json for a run that finishes now (docs/tables.md).

    `run_id`, `config_hash` and `origin` are those of the start: a checkpoint file may be gone by now, code be edited.
    """
    finished = time.time()
    wall_seconds, device_seconds = attempts.totals(finished)
    return {
        "run_id": run_id,
        "kind": cfg.kind,
        "name": cfg.name,
        "seed": cfg.seed,
        "scale": cfg.scale,
        "metrics": dict(metrics),
        "counts": dict(counts),
        "first_steps": dict(first_steps),
        "parents": parents,
        "status": "done",
        "started": _iso(attempts.first_started),
        "finished": _iso(finished),
        "wall_seconds": round(wall_seconds, 2),
        "device_hours": device_seconds / 3600,
        "num_attempts": attempts.number,
        "peak_memory_gb": round(provenance.peak_memory_gb(), 3),
        "provenance": {
            **origin.entries(CodeState.now(), attempts.resumed_code),
            "config_hash": config_hash,
            "data_root": cfg.paths.data_root,
            "world_size": world_size(),
            "precision": cfg.precision,
            "arithmetic": arithmetic.describe(),
            **run_provenance,
        },
    }


def write_failure(folder: Path, status: str, exit_status: int, message: str) -> None:
    """Write failure.json, unless another rank already has or the disk has no room for it.

    The first rank to fail knows the reason; the others fail because they miss it. The next attempt deletes the file.
    """
    record = {
        "status": status,
        "exit_status": exit_status,
        "message": message if world_size() == 1 else f"rank {rank()}: {message}",
        "finished": _iso(time.time()),
        "pid": os.getpid(),
    }
    own = folder / f".failure-{rank()}.json"
    with contextlib.suppress(UserError, OSError):
        write_json(own, record)
        with contextlib.suppress(FileExistsError):
            os.link(own, folder / "failure.json")  # atomic, and fails if another rank was first
        own.unlink()


def failure_status(error: Exception) -> str:
    """Return the `status` of failure.json for an error: "failed", "unavailable", or a training's own."""
    if isinstance(error, TrainingFailed):
        return error.status
    return "unavailable" if isinstance(error, Unavailable) else "failed"


def translate_error(error: Exception) -> Exception | None:
    """Return our own error in place of torch's on full GPU memory, determinism or a dead worker; None for others."""
    if isinstance(error, torch.OutOfMemoryError):
        return UserError(
            f"a GPU's memory is full ({str(error).splitlines()[0].rstrip('.')}): use more GPUs, precision=bf16, or "
            "cluster.activation_checkpointing=true (docs/memory.md lists what recipes need). Gradient accumulation is "
            "not offered: BatchNorm and Sinkhorn would see the smaller batch"
        )
    if "does not have a deterministic implementation" in str(error):
        return UserError(
            f"cluster.deterministic=true is not possible here: torch's {str(error).split()[0]} has no deterministic "
            f"version on {device().type}; leave it out, and repeated runs may differ in the order of sums"
        )
    from_torch = str(error).startswith("DataLoader worker")
    if not from_torch and not isinstance(error, ConnectionError | EOFError):
        return None
    reason = str(error).splitlines()[0].rstrip(" .") if from_torch else type(error).__name__
    return RetryableError(
        f"a data-loader worker died ({reason}); if memory ran out, lower cluster.num_workers; the same command resumes "
        "from the last checkpoint"
    )


def _iso(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")
