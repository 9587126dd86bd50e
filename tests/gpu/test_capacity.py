"""The memory of a step at the paper's size, and the image's self-test on a GPU."""

import importlib.util
import subprocess
import sys

import pytest
import torch

from models.methods import registry
from models.methods.base import PretrainTask
from reproduce.config.compose import compose
from reproduce.config.schema import Optimizer
from reproduce.config.validate import to_dataclass
from reproduce.engine.loop import Trainer
from reproduce.engine.nan_guard import FiniteGuard
from reproduce.engine.optimizer import build_optimizer
from reproduce.engine.precision import loss_scaler
from reproduce.memory import estimate_memory
from reproduce.network import build_network
from reproduce.system import REPO_ROOT

NUM_IMAGES = 64
NUM_STEPS = 3


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_peak_memory_is_near_the_estimate(gpu: torch.device, checkpointing: bool) -> None:
    """R50, 2x224 + 6x96, bf16; convolution workspaces come on top of the estimate."""
    activation_checkpointing = f"cluster.activation_checkpointing={str(checkpointing).lower()}"
    cfg = compose("pretrain", ["experiment=swav_800ep", "scale=paper", "precision=bf16", activation_checkpointing])
    estimate = estimate_memory(cfg, cfg.batch_size // NUM_IMAGES, activation_checkpointing=checkpointing)
    assert estimate.images_per_gpu == NUM_IMAGES
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(gpu)
    config, build = registry.parse_config(cfg.method)
    net = build_network(cfg, config)
    sizes = [view.size_px for view in cfg.crops.views for _ in range(view.num)]
    crops = [
        torch.randn(NUM_IMAGES, 3, size, size, device=gpu).contiguous(memory_format=torch.channels_last)
        for size in sizes
    ]
    trainer = Trainer(
        task=PretrainTask(net, build(config, net, 100 * NUM_IMAGES, NUM_IMAGES), cfg.precision),
        optimizer=build_optimizer(net.parameters(), to_dataclass(cfg.optimizer, Optimizer, "optimizer")),
        learning_rates=lambda _: [0.3],
        scaler=loss_scaler(cfg.precision),
        guard=FiniteGuard(lambda _: pytest.fail("a loss is not finite")),
    )
    torch.cuda.reset_peak_memory_stats(gpu)
    trainer.train([(crops, torch.zeros(NUM_IMAGES, device=gpu))] * NUM_STEPS, 0, NUM_STEPS)
    measured_gb = (torch.cuda.max_memory_allocated(gpu) - before) / 1e9
    assert measured_gb == pytest.approx(estimate.sum_gb, rel=0.35)


def test_the_images_self_test(gpu: torch.device) -> None:
    """Of the CUDA image if its libraries are installed here, else of the CPU image, which computes on the GPU, too."""
    for library in ("sklearn", "wandb", "snakemake"):
        pytest.importorskip(library, reason="the libraries of the image are not installed")
    compiled = all(importlib.util.find_spec(name) for name in ("apex", "syncbn", "detectron2")) and bool(
        importlib.util.find_spec("detectron2._C")
    )
    checks = ["torch", "torchvision", *(["apex", "detectron2"] if compiled else [])]
    done = subprocess.run(
        [sys.executable, "docker/selftest.py", "cuda" if compiled else "cpu"],
        cwd=REPO_ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.endswith(": ok")] == [f"{name}: ok" for name in checks]
