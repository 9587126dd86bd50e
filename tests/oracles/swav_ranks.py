"""SwAV's official training loop beside ours on this process's share of fixed batches: `swav_ranks.py CHECKOUTS OUTPUT`.

Started by test_swav.py with two or four processes. Rank 0 writes both sides' losses, weights, statistics and queues.
"""

import sys
import time
import warnings
from logging import getLogger
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models.methods.swav import Swav, SwavConfig
from models.networks.heads import MultiCropNet
from reproduce.engine.batchnorm import batchnorm_groups, wrap_for_distributed
from reproduce.engine.distributed.collectives import all_reduce_mean, is_main, process_group, rank, world_size
from reproduce.engine.optimizer import Larc
from tests.oracles.official import definitions, module, stay_on_the_cpu

BATCH, SIZES, NUM_CROPS, DIM, PROTOTYPES, HIDDEN = 8, (40, 24), (2, 2), 8, 6, 16
NUM_FROZEN, LR, QUEUE_LENGTH = 2, (0.3, 0.6, 0.9, 0.6), 2 * BATCH
Batches = list[list[Tensor]]


def train_official(folder: Path, batches: Batches, group_ranks: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Train by main_swav.py's own `train`, with apex's LARC and SyncBatchNorm; return initial weights and outcome."""
    sys.path.insert(0, str(folder / "apex"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an apex without its compiled extensions
        from apex.parallel import convert_syncbn_model, create_syncbn_process_group
        from apex.parallel.LARC import LARC
    resnet = module(folder / "swav/src/resnet50.py")
    torch.manual_seed(0)
    net = resnet.ResNet(
        resnet.Bottleneck, [1, 1, 1, 1], normalize=True, hidden_mlp=HIDDEN, output_dim=DIM, nmb_prototypes=PROTOTYPES
    )
    initial = {name: value.clone() for name, value in net.state_dict().items()}
    net = convert_syncbn_model(net, process_group=create_syncbn_process_group(group_ranks))
    sgd = torch.optim.SGD(net.parameters(), lr=1.0, momentum=0.9, weight_decay=1e-6)
    code = definitions(folder / "swav/src/utils.py", "AverageMeter")
    code = definitions(
        folder / "swav/main_swav.py", "train", "distributed_sinkhorn",
        **code | {"torch": torch, "nn": nn, "F": F, "np": np, "dist": dist, "time": time, "logger": getLogger()},
    )  # fmt: skip
    code["args"] = SimpleNamespace(
        crops_for_assign=[0, 1], nmb_crops=list(NUM_CROPS), temperature=0.1, epsilon=0.05, sinkhorn_iterations=3,
        use_fp16=False, freeze_prototypes_niters=NUM_FROZEN, rank=rank(), world_size=world_size(),
    )  # fmt: skip
    (_, loss), queue = code["train"](
        batches, DistributedDataParallel(net, find_unused_parameters=True),
        LARC(sgd, trust_coefficient=0.001, clip=False), 0, LR, torch.zeros(2, QUEUE_LENGTH // world_size(), DIM),
    )  # fmt: skip
    return initial, {"loss": mean_over_ranks(loss), "state": net.state_dict(), "queue": queue}


def train_ours(initial: dict[str, Tensor], batches: Batches, group_ranks: int) -> dict[str, Any]:
    """Train the same network by the same recipe, with our parts."""
    net = MultiCropNet(1, HIDDEN, DIM, PROTOTYPES, blocks=(1, 1, 1, 1))
    net.load_state_dict(initial)
    config = SwavConfig("swav", PROTOTYPES, 0.1, 0.05, 3, NUM_FROZEN, True, False, QUEUE_LENGTH, 0)
    method = Swav(config, net, BATCH, BATCH)
    trained = wrap_for_distributed(net, batchnorm_groups(BATCH, BATCH // world_size() * group_ranks))
    optimizer = Larc(net.parameters(), lr=1.0, momentum=0.9, weight_decay=1e-6, trust_coefficient=0.001)
    losses = []
    for step, crops in enumerate(batches):
        optimizer.param_groups[0]["lr"] = LR[step]
        method.before_forward()
        embeddings, scores = trained(crops)
        loss, _ = method.loss(embeddings, scores, len(crops), step)
        optimizer.zero_grad()
        loss.backward()
        method.after_backward(step)
        optimizer.step()
        losses.append(loss.item())
    assert method.queue is not None
    return {"loss": mean_over_ranks(sum(losses) / len(losses)), "state": net.state_dict(), "queue": method.queue.blocks}


def mean_over_ranks(value: float) -> float:
    return float(all_reduce_mean(torch.tensor(value)))


def main(checkouts: str, output: str) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    stay_on_the_cpu()
    with process_group():
        draw = torch.Generator().manual_seed(1)
        share = BATCH // world_size()
        mine = slice(rank() * share, (rank() + 1) * share)
        sizes = [size for size, num in zip(SIZES, NUM_CROPS, strict=True) for _ in range(num)]
        batches = [[torch.randn(BATCH, 3, size, size, generator=draw)[mine] for size in sizes] for _ in LR]
        outcome = {}
        for name, group_ranks in (("all", world_size()), ("pairs", 2)):
            initial, theirs = train_official(Path(checkouts), batches, group_ranks)
            outcome[name] = {"theirs": theirs, "ours": train_ours(initial, batches, group_ranks)}
        if is_main():
            torch.save(outcome, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
