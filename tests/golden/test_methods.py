"""Ten steps of each method on drawn crops: losses as recorded (fp32, one process, CPU), so that no change goes unseen.

`make gpu-test` takes the steps on a GPU.

To take a change up: `python -m tests.golden.test_methods`, and read the diff. No other implementation's numbers: SwAV's
are in test_reference.py.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.methods import registry
from reproduce.config.schema import Network, Optimizer
from reproduce.data.pipeline.sampler import StepSampler
from reproduce.engine.optimizer import build_optimizer

RECORDED = Path(__file__).parent / "methods.json"
BATCH, NUM_STEPS = 8, 10
CLUSTERING = {"num_prototypes": 6, "num_heads": 3, "num_banks": 2, "temperature": 0.1}
CONFIGS: dict[str, dict[str, Any]] = {
    "deepcluster_v2": {**CLUSTERING, "num_kmeans_iterations": 10},
    "sela_v2": {
        **CLUSTERING, "epsilon": 0.05, "sinkhorn_tolerance": 1e-3, "max_sinkhorn_iterations": 1000,
        "freeze_prototypes_epochs": 1,
    },
    "simclr": {"temperature": 0.1},
    "moco": {"queue_length": 16, "momentum": 0.9, "temperature": 0.2},
    "pcl": {
        "queue_length": 16, "momentum": 0.9, "temperature": 0.2, "num_clusters": [12, 14], "num_negative_prototypes": 4,
        "warmup_epochs": 1, "num_kmeans_iterations": 5, "num_kmeans_restarts": 2, "resize_px": 46, "size_px": 40,
    },
    "npid": {"num_negatives": 12, "temperature": 0.07, "bank_momentum": 0.5},
    "cmc": {"num_negatives": 12, "temperature": 0.07, "bank_momentum": 0.5},
    "pirl": {
        "num_negatives": 12, "temperature": 0.07, "bank_momentum": 0.5, "num_patches": 3, "jigsaw_weight": 0.5,
    },
    "local_aggregation": {
        "num_negatives": 12, "temperature": 0.07, "bank_momentum": 0.5, "num_neighbors": 8, "num_clusters": 5,
        "num_clusterings": 2, "num_kmeans_iterations": 5, "warmup_epochs": 2,
    },
    "bownet": {
        "rotation_epochs": 2, "num_words": 12, "stage": 2, "num_vocabulary_features": 16, "num_kmeans_iterations": 5,
        "resize_px": 46, "size_px": 40,
    },
    "supervised": {},
    "rotnet": {},
}  # fmt: skip
NUM_CROPS = {
    "bownet": 1,
    "cmc": 1,
    "local_aggregation": 1,
    "moco": 2,
    "npid": 1,
    "pcl": 2,
    "supervised": 1,
    "rotnet": 1,
}
"""Of those that are drawn; else all four."""
SIZES_PX = {"pirl": (40, 24, 24, 24)}
"""Where they are not two of 40 and two of 24."""


def ten_losses(name: str, device: torch.device) -> list[float]:
    """Five epochs of two steps, each picture's crops drawn anew in each step."""
    rng, sizes = np.random.default_rng(0), SIZES_PX.get(name, (40, 40, 24, 24))

    def draw() -> list[torch.Tensor]:
        drawn = [torch.from_numpy(rng.standard_normal((BATCH, 3, s, s), np.float32)) for s in sizes]
        return [crop.to(device) for crop in drawn[: NUM_CROPS.get(name)]]

    config, build = registry.parse_config({"name": name, **CONFIGS[name]})
    torch.manual_seed(0)
    net = registry.build_network(
        Network(width=0.125, depth=14, head_hidden_dim=32, head_batchnorm=True, embedding_dim=16), config, num_classes=4
    ).to(device)
    method = build(config, net, 2 * BATCH, BATCH)
    optimizer = build_optimizer(net.parameters(), Optimizer(lr=0.3))
    method.reset_optimizer = optimizer.state.clear
    images = torch.randn(2 * BATCH, 3, 40, 40, generator=torch.Generator().manual_seed(1)).to(device)
    method.center_crops = lambda _resize_px, size_px: [(torch.arange(2 * BATCH), images[:, :, :size_px, :size_px])]
    method.on_train_start(net, StepSampler(2 * BATCH, BATCH, NUM_STEPS // 2, seed=0), (draw() for _ in range(2)))
    labels = (torch.arange(BATCH) % 4).to(device)
    losses = []
    for step in range(NUM_STEPS):
        crops = method.before_step(step, draw(), labels)
        method.before_forward()
        embeddings, scores = net(crops)
        loss, _ = method.loss(embeddings, scores, len(crops), step)
        optimizer.zero_grad()
        loss.backward()
        method.after_backward(step)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", sorted(registry.METHODS.keys() - {"swav"}))
def test_ten_losses(device: torch.device, name: str) -> None:
    assert_as_recorded(ten_losses(name, device), json.loads(RECORDED.read_text())[name])


def assert_as_recorded(found: list[float], recorded: list[float]) -> None:
    """Training multiplies rounding, which differs between processors."""
    np.testing.assert_allclose(found[:5], recorded[:5], rtol=1e-4)
    np.testing.assert_allclose(found[5:], recorded[5:], rtol=1e-2)


def taken_up(name: str, recorded: list[float]) -> list[float]:
    """Return a method's losses of now; the recorded ones if only rounding tells them apart, so that a diff has none."""
    found = ten_losses(name, torch.device("cpu"))
    try:
        assert_as_recorded(found, recorded)
    except AssertionError:
        return found
    return recorded


def test_a_loss_that_rounding_alone_has_changed_stays_as_it_was() -> None:
    found = ten_losses("simclr", torch.device("cpu"))
    rounded, another = [loss * (1 + 1e-6) for loss in found], [loss * 1.01 for loss in found]
    assert taken_up("simclr", rounded) == rounded
    assert taken_up("simclr", another) == taken_up("simclr", []) == found


if __name__ == "__main__":
    torch.set_num_threads(1)  # so small networks only wait for more
    before = json.loads(RECORDED.read_text())
    RECORDED.write_text(json.dumps({name: taken_up(name, before.get(name, [])) for name in CONFIGS}, indent=2) + "\n")
