"""Small trainings of every method, on any device and in any precision, on crops that are drawn on the CPU."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from models.methods import registry
from models.methods.base import Method, PretrainTask
from reproduce.config.schema import Network, Optimizer
from reproduce.data.pipeline.sampler import StepSampler
from reproduce.engine.batchnorm import BatchNormGroups, convert_batchnorm, wrap_for_distributed
from reproduce.engine.distributed.collectives import rank, world_size
from reproduce.engine.loop import Trainer
from reproduce.engine.nan_guard import FiniteGuard
from reproduce.engine.optimizer import build_optimizer
from reproduce.engine.precision import autocast, loss_scaler
from tests.host_sync import NoHostSync
from tests.networks import gradients_of

Batch = tuple[list[Tensor], Tensor]

BATCH, STEPS_PER_EPOCH, NUM_EPOCHS = 8, 4, 8
NUM_IMAGES = BATCH * STEPS_PER_EPOCH
CLUSTERING = {"num_prototypes": 6, "num_heads": 3, "num_banks": 2, "temperature": 0.1}
NPID = {"num_negatives": 12, "temperature": 0.07, "bank_momentum": 0.5}
CONFIGS: dict[str, dict[str, Any]] = {
    "swav": {
        "num_prototypes": 12, "temperature": 0.1, "epsilon": 0.05, "num_sinkhorn_iterations": 3,
        "freeze_prototypes_epochs": 1, "train_prototypes": True, "hard_assignments": False, "queue_length": 2 * BATCH,
        "queue_start_epochs": 0,
    },
    "deepcluster_v2": {**CLUSTERING, "num_kmeans_iterations": 10},
    "sela_v2": {
        **CLUSTERING, "epsilon": 0.05, "sinkhorn_tolerance": 1e-3, "max_sinkhorn_iterations": 1000,
        "freeze_prototypes_epochs": 1,
    },
    "simclr": {"temperature": 0.1},
    "moco": {"queue_length": 3 * BATCH, "momentum": 0.9, "temperature": 0.2},
    "pcl": {
        "queue_length": 3 * BATCH, "momentum": 0.9, "temperature": 0.2, "num_clusters": [20, 24],
        "num_negative_prototypes": 8, "warmup_epochs": 0, "num_kmeans_iterations": 5, "num_kmeans_restarts": 2,
        "resize_px": 46, "size_px": 40,
    },
    "local_aggregation": {
        "num_negatives": 12, "temperature": 0.07, "bank_momentum": 0.5, "num_neighbors": 16, "num_clusters": 6,
        "num_clusterings": 2, "num_kmeans_iterations": 5, "warmup_epochs": 0,
    },
    "bownet": {
        "rotation_epochs": 0, "num_words": 12, "stage": 2, "num_vocabulary_features": 32, "num_kmeans_iterations": 5,
        "resize_px": 46, "size_px": 40,
    },
    "rotnet": {},
    "supervised": {},
    "npid": NPID,
    "cmc": NPID,
    "pirl": {**NPID, "num_patches": 4, "jigsaw_weight": 0.5},
}  # fmt: skip
assert CONFIGS.keys() == registry.METHODS.keys(), "every method is tested: it needs a small config here"
SIZES_PX = {
    "moco": (40, 40), "pcl": (40, 40), "pirl": (40, 24, 24, 24, 24),
    **dict.fromkeys(("local_aggregation", "bownet", "rotnet", "supervised", "npid", "cmc"), (40,)),
}  # fmt: skip
"""Sizes of a method's crops, unless they are `MULTI_CROP`."""
MULTI_CROP = (40, 40, 24, 24)


@dataclass
class Training:
    """A method's network under its trainer, with a batch for each step."""

    net: nn.Module
    """The network as built; the trained one may be wrapped in DDP."""
    method: Method
    trainer: Trainer[Batch]
    batches: list[Batch]

    def losses(self, first_step: int, num_steps: int) -> list[Tensor]:
        """Take the steps from `first_step` on, and return their losses, which stay on the device."""
        steps = range(first_step, first_step + num_steps)
        return [self.trainer.train_step(self.batches[step], step)[0].loss.detach() for step in steps]


def sizes_px(name: str) -> tuple[int, ...]:
    """The size of each of a method's crops."""
    return SIZES_PX.get(name, MULTI_CROP)


def draw_batches(sizes: Sequence[int], num: int, device: torch.device, dtype: torch.dtype, seed: int) -> list[Batch]:
    """Crops of noise of the given sides, channels-last, and labels; the same on every device."""
    draw = torch.Generator().manual_seed(seed)
    labels = (torch.arange(BATCH) % 4).to(device)

    def crop(size: int) -> Tensor:
        drawn = torch.randn(BATCH, 3, size, size, generator=draw).to(device, dtype)
        return drawn.contiguous(memory_format=torch.channels_last)

    return [([crop(size) for size in sizes], labels) for _ in range(num)]


def build_training(
    name: str,
    device: torch.device,
    *,
    precision: str = "fp32",
    dtype: torch.dtype = torch.float32,
    sizes: Sequence[int] = (),
    num_batches: int = 4,
    lr: float = 0.02,
    groups: BatchNormGroups | None = None,
    activation_checkpointing: bool = False,
    **changes: Any,
) -> Training:
    """A training before its first step. `dtype` is that of weights and crops; `changes` are of the method's config.

    The learning rate is low: noise has nothing to learn, and every difference in rounding would grow.
    """
    sizes = sizes or sizes_px(name)
    config, build = registry.parse_config({"name": name, **CONFIGS[name], **changes})
    torch.manual_seed(0)
    net = registry.build_network(
        Network(width=0.125, depth=14, head_hidden_dim=32, head_batchnorm=True, embedding_dim=16), config, num_classes=4
    )
    net = net.to(device, dtype).to(memory_format=torch.channels_last)
    net.activation_checkpointing = activation_checkpointing
    method = build(config, net, NUM_IMAGES, BATCH)
    groups = groups or BatchNormGroups(world_size())
    trained = wrap_for_distributed(net, groups)  # in DDP, if there is a process group
    for network in method.extra_networks:
        convert_batchnorm(network, groups)
    sampler = StepSampler(NUM_IMAGES, BATCH, NUM_EPOCHS, seed=0)
    optimizer = build_optimizer(net.parameters(), Optimizer(lr=lr))
    method.reset_optimizer = lambda: optimizer.state.clear()  # noqa: PLW0108, a checkpoint replaces the state
    images = torch.randn(NUM_IMAGES, 3, 40, 40, generator=torch.Generator().manual_seed(3)).to(device, dtype)
    read = torch.arange(NUM_IMAGES).tensor_split(world_size())[rank()]
    method.center_crops = lambda _resize_px, _size_px: [(read, images[read.to(device)])]
    extra_epoch = (crops for crops, _ in draw_batches(sizes, STEPS_PER_EPOCH, device, dtype, seed=2))
    with autocast(precision, device.type):
        method.on_train_start(trained, sampler, extra_epoch)
    trainer: Trainer[Batch] = Trainer(
        task=PretrainTask(trained, method, precision),
        optimizer=optimizer,
        learning_rates=lambda _: [lr],
        scaler=loss_scaler(precision),
        guard=FiniteGuard(lambda _: pytest.fail("a loss is not finite")),
    )
    return Training(net, method, trainer, draw_batches(sizes, num_batches, device, dtype, seed=1))


def gradients(net: nn.Module) -> dict[str, Tensor]:
    """The gradient of each parameter that has one, on the CPU in double precision."""
    return {name: value.cpu().double() for name, value in gradients_of(net).items()}


def assert_close_to(found: Tensor, exact: Tensor, tolerance: float) -> None:
    """Assert that the difference is at most `tolerance` of the exact value's norm."""
    found, exact = found.detach().cpu().double(), exact.detach().cpu().double()
    assert found.shape == exact.shape
    assert float((found - exact).norm()) <= tolerance * float(exact.norm()), f"{found} is not {exact}"


@contextmanager
def no_host_sync(device: torch.device, num_waits: int = 0) -> Iterator[None]:
    """A context in which whatever makes the host wait for the device is an error, except for `num_waits` waits."""
    if device.type != "cuda":
        check = FiniteGuard.check

        def on_the_host(guard: FiniteGuard) -> None:
            """On a GPU, the flag that it reads was copied to the host during the step before."""
            with _disable_current_modes():
                check(guard)

        with mock.patch.object(FiniteGuard, "check", on_the_host), NoHostSync(num_waits):
            yield
        return
    torch.cuda.set_sync_debug_mode("warn" if num_waits else "error")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(each.message) for each in caught if "synchronizing" in str(each.message)]
    assert len(waits) == num_waits, waits
