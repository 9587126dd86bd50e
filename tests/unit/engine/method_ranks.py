"""A few steps of each method on this process' share of fixed batches, in double precision; rank 0 writes what came out.

Started by test_methods_distributed.py, alone or by our launcher: `method_ranks.py OUTPUT`. SwAV has its own, ranks.py.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[3]))

from models.methods import registry
from models.methods.moco import Moco, MocoConfig
from models.networks.heads import MultiCropNet
from reproduce.config.schema import Network, Optimizer
from reproduce.data.pipeline.sampler import StepSampler
from reproduce.engine.batchnorm import BatchNormGroups, convert_batchnorm, wrap_for_distributed
from reproduce.engine.distributed.collectives import (
    all_gather,
    all_reduce_mean,
    device,
    is_main,
    process_group,
    rank,
    world_size,
)
from reproduce.engine.optimizer import build_optimizer
from tests.networks import gradients_of

BATCH, SEED, STEP = 12, 5, 3
NUM_STEPS = 4
CLUSTERING = {"num_prototypes": 5, "num_heads": 3, "num_banks": 2, "temperature": 0.1}
CONFIGS: dict[str, dict[str, Any]] = {
    "deepcluster_v2": {**CLUSTERING, "num_kmeans_iterations": 3},
    "sela_v2": {
        **CLUSTERING, "epsilon": 0.05, "sinkhorn_tolerance": 1e-3, "max_sinkhorn_iterations": 1000,
        "freeze_prototypes_epochs": 1,
    },
    "simclr": {"temperature": 0.1},
    "moco": {"queue_length": 3 * BATCH, "momentum": 0.9, "temperature": 0.2},
    "pcl": {
        "queue_length": 3 * BATCH, "momentum": 0.9, "temperature": 0.2, "num_clusters": [20, 16],
        "num_negative_prototypes": 4, "warmup_epochs": 1, "num_kmeans_iterations": 5, "num_kmeans_restarts": 2,
        "resize_px": 40, "size_px": 40,
    },
    "npid": {"num_negatives": 9, "temperature": 0.07, "bank_momentum": 0.5},
    "cmc": {"num_negatives": 9, "temperature": 0.07, "bank_momentum": 0.5},
    "pirl": {
        "num_negatives": 9, "temperature": 0.07, "bank_momentum": 0.5, "num_patches": 3, "jigsaw_weight": 0.5,
    },
    "local_aggregation": {
        "num_negatives": 9, "temperature": 0.07, "bank_momentum": 0.5, "num_neighbors": 10, "num_clusters": 6,
        "num_clusterings": 2, "num_kmeans_iterations": 5, "warmup_epochs": 1,
    },
    "bownet": {
        "rotation_epochs": 1, "num_words": 10, "stage": 2, "num_vocabulary_features": 20, "num_kmeans_iterations": 5,
        "resize_px": 40, "size_px": 40,
    },
    "supervised": {},
    "rotnet": {},
}  # fmt: skip
NUM_CROPS = {"bownet": 1, "cmc": 1, "local_aggregation": 1, "moco": 2, "npid": 1, "pcl": 2, "rotnet": 2}
"""Where it is not all four."""
SIZES_PX = {"pirl": (40, 24, 24, 24), "supervised": (24, 24)}


def steps(name: str) -> dict[str, Any]:
    """Losses of two epochs of two steps, gradients of the first, and the method's state after the last."""
    config, build = registry.parse_config({"name": name, **CONFIGS[name]})
    torch.manual_seed(0)
    net = registry.build_network(
        Network(width=0.0625, depth=14, head_hidden_dim=16, head_batchnorm=True, embedding_dim=8), config, num_classes=3
    ).double()
    net = net.to(device())
    num_images = 2 * BATCH + 1
    method = build(config, net, num_images, BATCH)
    draw = torch.Generator().manual_seed(1)
    share = BATCH // world_size()
    mine = slice(rank() * share, (rank() + 1) * share)
    labels = (torch.arange(BATCH) % 3).to(device())

    def my_crops() -> list[Tensor]:
        sizes = SIZES_PX.get(name, (40, 40, 24, 24)[: NUM_CROPS.get(name)])
        return [torch.randn(BATCH, 3, size, size, generator=draw).double()[mine].to(device()) for size in sizes]

    images = torch.randn(num_images, 3, 40, 40, generator=torch.Generator().manual_seed(2)).double().to(device())
    read = torch.arange(num_images).tensor_split(world_size())[rank()]
    method.center_crops = lambda _resize_px, _size_px: [(read, images[read])]
    trained = wrap_for_distributed(net)
    for own in method.extra_networks:
        convert_batchnorm(own, BatchNormGroups(world_size()))
    optimizer = build_optimizer(net.parameters(), Optimizer(lr=0.5))
    method.reset_optimizer = optimizer.state.clear
    method.on_train_start(
        trained, StepSampler(num_images, BATCH, 2, 0, 0, rank(), world_size()), (my_crops() for _ in range(2))
    )
    losses: list[Tensor] = []
    gradients: dict[str, Tensor] = {}
    for step in range(NUM_STEPS):
        crops = method.before_step(step, my_crops(), labels[mine])
        method.before_forward()
        embeddings, scores = trained(crops)
        loss, _ = method.loss(embeddings, scores, len(crops), step)
        optimizer.zero_grad()
        loss.backward()
        method.after_backward(step)
        gradients = gradients or gradients_of(net)
        optimizer.step()
        losses.append(all_reduce_mean(loss.detach().clone()))
    state = method.state_dict()
    method.load_state_dict(state)
    assert_equal(method.state_dict(), state)  # each rank has taken its own share
    return {"loss": torch.stack(losses), "gradients": gradients, "state": state}


def keys_of_halves() -> dict[str, Tensor]:
    """MoCo's keys where BatchNorm sees only a share of the batch: as two ranks make them, and as they should be.

    The shares are those of the shuffled order, which is drawn from seed and step alike everywhere.
    """
    torch.manual_seed(0)
    net = MultiCropNet(0.0625, 16, 8, blocks=(1, 1, 1, 1)).double().to(device())
    method = Moco(MocoConfig("moco", **CONFIGS["moco"]), net, BATCH, BATCH)
    method.on_train_start(net, StepSampler(BATCH, BATCH, 1, SEED, 0, rank(), world_size()), [])
    crops = torch.randn(BATCH, 3, 40, 40, generator=torch.Generator().manual_seed(1)).double().to(device())
    if world_size() == 1:
        order = torch.from_numpy(np.random.default_rng((SEED, STEP)).permutation(BATCH))
        shuffled = torch.cat([method.key_encoder([half])[0] for half in crops[order].chunk(2)])
        in_order = method.key_encoder([crops[: BATCH // 2]])[0]
        convert_batchnorm(method.key_encoder, BatchNormGroups(1, per_rank=2, images=BATCH // 2))
        method.before_step(STEP, [crops, crops], torch.zeros(0))
        torch.testing.assert_close(method.keys, shuffled[order.argsort()])  # so does one process with two groups
        return {"keys": shuffled[order.argsort()].detach(), "in_order": in_order}
    mine = crops.chunk(world_size())[rank()]
    method.before_step(STEP, [mine, mine], torch.zeros(0))
    method.after_backward(STEP)
    queues = all_gather(method.queue)
    assert_equal(queues, queues[:1].expand_as(queues))  # the same on every rank
    return {"keys": method.queue[:BATCH]}


def assert_equal(one: Any, other: Any) -> None:
    """Nested states, to the bit."""
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def main(output: str) -> None:
    torch.set_num_threads(1)
    with process_group():
        outcome: dict[str, Any] = {name: steps(name) for name in CONFIGS}
        outcome["keys_of_halves"] = keys_of_halves()
        if is_main():
            torch.save(outcome, output)


if __name__ == "__main__":
    main(sys.argv[1])
