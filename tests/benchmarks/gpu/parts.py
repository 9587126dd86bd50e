"""What a GPU does beside training steps: optimizer, features, neighbors, checkpoints, detectors."""

import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F

from evals.knn import neighbors
from models.networks.resnet import ResNet
from reproduce.engine.checkpoint import CheckpointManager
from reproduce.engine.distributed.collectives import device
from reproduce.engine.optimizer import Larc
from reproduce.engine.precision import autocast
from tests.benchmarks.detector_steps import detr_step, faster_rcnn_step, trunk_of
from tests.benchmarks.gpu.sizes import Size
from tests.benchmarks.gpu.steps import Training, synchronize

BANK_BLOCK_ROWS = 65_536
WEIGHT_DECAY = 1e-6


def seconds_per_call(work: Callable[[], object], num_calls: int, num_warmup_calls: int) -> float:
    """Return the mean time of a call after the warm-up."""
    for _ in range(num_warmup_calls):
        work()
    synchronize()
    started = time.perf_counter()
    for _ in range(num_calls):
        work()
    synchronize()
    return (time.perf_counter() - started) / num_calls


def optimizers(size: Size) -> dict[str, float]:
    """Return the milliseconds of an optimizer step on R50: LARC, and torch's fused SGD."""
    weights = list(Training(size, size.num_images[0]).net.parameters())
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    made = {
        "larc_ms": Larc(weights, 0.3, 0.9, WEIGHT_DECAY, 0.001),
        "fused_sgd_ms": torch.optim.SGD(weights, 0.3, 0.9, weight_decay=WEIGHT_DECAY, fused=True),
    }
    calls = size.num_steps, size.num_warmup_steps
    return {name: 1e3 * seconds_per_call(optimizer.step, *calls) for name, optimizer in made.items()}


def features(size: Size) -> dict[str, float]:
    """Return how many images the trunk turns into features in a second, in fp32 and bf16; they lie on the device."""
    trunk: ResNet = trunk_of(size.scale).to(device()).to(memory_format=torch.channels_last).eval()
    pixels = torch.randn(size.feature_images, 3, size.feature_px, size.feature_px, device=device())
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    found = {}
    for precision in ("fp32", "bf16"):
        with torch.no_grad(), autocast(precision):
            seconds = seconds_per_call(lambda: trunk(pixels), size.num_steps, size.num_warmup_steps)
        found[f"features_{precision}_per_second"] = size.feature_images / seconds
    return found


class RepeatedRows:
    """A bank of `num_rows` rows on the host that repeats the rows of one block, so that it needs no 10 GB."""

    def __init__(self, num_rows: int, num_features: int) -> None:
        self._num_rows = num_rows
        draw = np.random.default_rng(0)
        self._block = draw.standard_normal((min(num_rows, BANK_BLOCK_ROWS), num_features), np.float32)

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Return a block of rows; `neighbors` asks for no other."""
        start, end, _ = rows.indices(self._num_rows)
        if end - start <= len(self._block):
            return self._block[: end - start]
        return self._block[np.arange(start, end) % len(self._block)]


def knn(size: Size) -> dict[str, float]:
    """Return the seconds that the kNN of all queries against the whole bank takes, uploads of the bank included."""
    num_features = trunk_of(size.scale).num_features
    queries = F.normalize(torch.randn(size.num_queries, num_features, device=device()), dim=1)
    bank = cast(np.ndarray, RepeatedRows(size.num_bank_rows, num_features))
    synchronize()
    started = time.perf_counter()
    neighbors(queries, bank, size.num_neighbors)
    synchronize()
    return {"knn_seconds": time.perf_counter() - started}


def checkpoint_halt(size: Size) -> dict[str, float]:
    """Return for how many milliseconds the loop halts for a checkpoint, and how many its writing takes besides."""
    training = Training(size, size.num_images[0])
    training.train(training.resident(), 1)  # the optimizer has its momentum from here on
    states: dict[str, Any] = {
        "model": training.net, "method": training.method, "optimizer": training.trainer.optimizer,
    }  # fmt: skip
    halts, writes = [], []
    with tempfile.TemporaryDirectory() as folder:
        manager = CheckpointManager(Path(folder) / "checkpoint.pt", states, save_every_seconds=0)
        for step in range(1, 4):
            synchronize()
            started = time.perf_counter()
            manager.save(step)
            halts.append(time.perf_counter() - started)
            manager.wait()
            writes.append(time.perf_counter() - started - halts[-1])
    return {"checkpoint_halt_ms": 1e3 * min(halts), "checkpoint_write_ms": 1e3 * min(writes)}


def detector(make: Callable[..., Callable[[], None]], name: str, num_images: int, size: Size) -> dict[str, float]:
    """Return how many images a detector trains on in a second, in fp32 and bf16."""
    found = {}
    for precision in ("fp32", "bf16"):
        step = make(num_images, *size.detection_px, scale=size.scale, precision=precision)
        seconds = seconds_per_call(step, size.num_steps, size.num_warmup_steps)
        found[f"{name}_{precision}_per_second"] = num_images / seconds
    return found


def detr(size: Size) -> dict[str, float]:
    """Return the speed of DETR."""
    return detector(detr_step, "detr", size.detr_images, size)


def faster_rcnn(size: Size) -> dict[str, float]:
    """Return the speed of Faster R-CNN; {} without Detectron2."""
    if importlib.util.find_spec("detectron2") is None:
        return {}
    return detector(faster_rcnn_step, "faster_rcnn", size.rcnn_images, size)
