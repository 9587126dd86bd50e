"""Official MoCo, DeepCluster-v2, DETR and apex beside ours on several processes.

`methods_ranks.py PART CHECKOUTS OUTPUT` runs one of `PARTS`.

Started by test_methods.py. Rank 0 writes what both sides made.
"""

import sys
import warnings
from collections.abc import Callable
from logging import getLogger
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix
from torch import Tensor, nn

from evals.coco_detr.losses import LossWeights, Target, losses
from models.methods.deepcluster import spherical_kmeans
from models.methods.moco import Moco, MocoConfig
from models.networks.heads import MultiCropNet, MultiPrototypes
from models.networks.resnet import ResNet
from reproduce.data.pipeline.sampler import StepSampler
from reproduce.engine.batchnorm import BatchNormGroups, convert_batchnorm
from reproduce.engine.distributed.collectives import (
    all_gather,
    all_reduce_mean,
    rank,
    world_size,
)
from tests.oracles.official import definitions, module, save_outcome

BATCH, WIDTH, DIM, SEED, TEMPERATURE, MOMENTUM, NUM_STEPS = 8, 0.0625, 8, 5, 0.2, 0.9, 3
QUEUE_LENGTH = 3 * BATCH
Pair = dict[str, Any]


class Encoder(nn.Module):
    """Our small trunk with the linear layer `fc` that MoCo's code expects of an encoder."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.trunk = ResNet(WIDTH, (1, 1, 1, 1))
        self.fc = nn.Linear(self.trunk.num_features, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return embeddings that are not normalized."""
        features: Tensor = self.fc(self.trunk(images))
        return features


def moco(folder: Path) -> Pair:
    """Losses, keys in the queue and key encoder after some steps without an optimizer, with shuffled keys."""
    torch.manual_seed(0)
    theirs = module(folder / "moco/moco/builder.py").MoCo(Encoder, DIM, QUEUE_LENGTH, MOMENTUM, TEMPERATURE, mlp=False)
    net = MultiCropNet(WIDTH, None, DIM, blocks=(1, 1, 1, 1))
    net.load_state_dict(as_ours(theirs.encoder_q))
    ours = Moco(MocoConfig("moco", QUEUE_LENGTH, MOMENTUM, TEMPERATURE), net, BATCH, BATCH)
    ours.queue.copy_(theirs.queue.T)
    ours.on_train_start(net, StepSampler(BATCH, BATCH, NUM_STEPS, SEED, 0, rank(), world_size()), [])
    for network in (net, ours.key_encoder):
        convert_batchnorm(network, BatchNormGroups(1))
    draw = torch.Generator().manual_seed(1)
    losses: dict[str, list[Tensor]] = {"theirs": [], "ours": []}
    for step in range(NUM_STEPS):
        crops = [torch.randn(BATCH, 3, 40, 40, generator=draw).chunk(world_size())[rank()] for _ in range(2)]
        with torch.no_grad():  # what an optimizer would do
            for mine, other in zip(net.parameters(), theirs.encoder_q.parameters(), strict=True):
                change = 0.1 * torch.randn(mine.shape, generator=draw)
                for weight in (mine, other):
                    weight.add_(change)
        order = torch.from_numpy(np.random.default_rng((SEED, step)).permutation(BATCH))
        with patch.object(torch, "randperm", lambda _, order=order: order.clone()):
            logits, labels = theirs(im_q=crops[0], im_k=crops[1])
        losses["theirs"].append(F.cross_entropy(logits, labels).detach())
        queries = ours.before_step(step, crops, torch.zeros(0))
        embeddings, _ = net(queries)
        losses["ours"].append(ours.loss(embeddings, None, 1, step)[0].detach())
        ours.after_backward(step)
    return {
        "theirs": {"loss": torch.stack(losses["theirs"]), "queue": theirs.queue.T, "keys": as_ours(theirs.encoder_k)},
        "ours": {"loss": torch.stack(losses["ours"]), "queue": ours.queue, "keys": ours.key_encoder.state_dict()},
    }


def as_ours(encoder: Encoder) -> dict[str, Tensor]:
    head = {f"projection_head.0.{part}": value.detach() for part, value in encoder.fc.state_dict().items()}
    return {**encoder.trunk.state_dict(), **head}


def kmeans(folder: Path) -> Pair:
    """Centroids and all images' labels of each head, from two banks that are spread over the ranks."""
    num_rows, sizes = 60, [7, 7, 7]
    bank = F.normalize(torch.randn(2, num_rows, DIM, generator=torch.Generator().manual_seed(rank())), dim=2)
    images = torch.arange(num_rows) * world_size() + rank()
    code = definitions(
        folder / "swav/main_deepclusterv2.py", "cluster_memory", "get_indices_sparse",
        torch=torch, nn=nn, np=np, dist=dist, csr_matrix=csr_matrix, logger=getLogger(),
    )  # fmt: skip
    code["args"] = SimpleNamespace(
        nmb_prototypes=sizes, crops_for_assign=[0, 1], feat_dim=DIM, rank=rank(), world_size=world_size()
    )
    prototypes = MultiPrototypes(DIM, sizes)
    torch.manual_seed(2)
    labels = code["cluster_memory"](
        SimpleNamespace(module=SimpleNamespace(prototypes=prototypes)), images, bank, num_rows * world_size()
    )
    theirs = {"labels": labels, "centroids": prototypes.weight.detach().unflatten(0, (len(sizes), -1))}
    torch.manual_seed(2)  # they start from random rows of rank 0, head by head
    found = []
    for head, size in enumerate(sizes):
        start = all_gather(bank[head % 2])[0][torch.randperm(num_rows)[:size]]
        dist.broadcast(start, 0)
        found.append(spherical_kmeans(bank[head % 2], start, 10))
    ours = [all_gather(labels).T.flatten() for _, labels in found]
    return {"theirs": theirs, "ours": {"labels": torch.stack(ours), "centroids": torch.stack([c for c, _ in found])}}


def batchnorm(folder: Path) -> Pair:
    """Outputs, gradients and running statistics over pairs of ranks: apex's, ours, and of groups in one process."""
    sys.path.insert(0, str(folder / "apex"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an apex without its compiled extensions
        from apex.parallel import convert_syncbn_model, create_syncbn_process_group
    draw = torch.Generator().manual_seed(3)
    whole, weights = (torch.randn(BATCH, 5, 6, 6, generator=draw) for _ in range(2))
    outcome: Pair = {}
    for name in ("theirs", "ours", "grouped"):
        net = nn.Sequential(nn.BatchNorm2d(5))
        if name == "theirs":
            net = convert_syncbn_model(net, process_group=create_syncbn_process_group(2))
        elif name == "ours":
            convert_batchnorm(net, BatchNormGroups(ranks=2))
        else:  # the whole batch in this process
            num_groups = world_size() // 2
            convert_batchnorm(net, BatchNormGroups(1, num_groups, BATCH // num_groups))
        mine = slice(None) if name == "grouped" else slice(*(BATCH // world_size() * (rank() + end) for end in (0, 1)))
        images = whole[mine].clone().requires_grad_()
        outputs = net(images)
        (outputs * weights[mine]).sum().backward()
        assert images.grad is not None
        made = {"outputs": outputs.detach(), "gradients": images.grad}
        if name != "grouped":
            made = {key: all_gather(value).flatten(0, 1) for key, value in made.items()}
        outcome[name] = made | {"mean": net[0].running_mean, "var": net[0].running_var}
    return outcome


def detr(folder: Path) -> Pair:
    """Losses of two decoder layers, averaged over ranks, and their gradients. A rank has a class loss of its own."""
    util = folder / "detr/util"
    box_ops = module(util / "box_ops.py")
    code = definitions(util / "misc.py", "accuracy", torch=torch)
    code = definitions(
        folder / "detr/models/matcher.py", "HungarianMatcher", **code | vars(box_ops),
        nn=nn, linear_sum_assignment=linear_sum_assignment,
    )  # fmt: skip
    code = definitions(
        folder / "detr/models/detr.py", "SetCriterion", **code,
        box_ops=box_ops, F=F, get_world_size=world_size, is_dist_avail_and_initialized=dist.is_initialized,
    )  # fmt: skip
    num_layers, num_queries, num_classes = 2, 7, 5
    weights = LossWeights(1, 5, 2, 0.1)
    matcher = code["HungarianMatcher"](weights.classes, weights.l1, weights.giou)
    criterion = code["SetCriterion"](num_classes, matcher, {}, weights.no_object, ["labels", "boxes"])
    draw = torch.Generator().manual_seed(4)
    share = BATCH // world_size()
    mine = slice(rank() * share, (rank() + 1) * share)
    drawn = [torch.randn(num_layers, BATCH, num_queries, size, generator=draw) for size in (num_classes + 1, 4)]
    targets = [
        Target(torch.randint(num_classes, (num,), generator=draw), torch.rand(num, 4, generator=draw) / 2 + 0.2)
        for num in (3, 1, 5, 2, 7, 0, 4, 2)
    ][mine]

    def theirs(logits: Tensor, boxes: Tensor) -> Tensor:
        layers = [{"pred_logits": each, "pred_boxes": box} for each, box in zip(logits, boxes, strict=True)]
        found = criterion({**layers[-1], "aux_outputs": layers[:-1]}, [vars(target) for target in targets])
        names = ("loss_ce", "loss_bbox", "loss_giou")
        factors = (weights.classes, weights.l1, weights.giou)
        rows = [[found[name + layer] * factor for name, factor in zip(names, factors, strict=True)]
                for layer in ("_0", "")]  # fmt: skip
        return torch.stack([torch.stack(row) for row in rows])

    def ours(logits: Tensor, boxes: Tensor) -> Tensor:
        return losses(logits, boxes, targets, weights, class_loss_group_size=share)

    outcome: Pair = {}
    for compute in (theirs, ours):
        logits, boxes = (each[:, mine].clone().requires_grad_() for each in drawn)
        found = compute(logits, boxes.sigmoid())
        found.sum().backward()
        gradients = [all_gather(each.grad) for each in (logits, boxes) if each.grad is not None]
        outcome[compute.__name__] = {
            "losses": all_reduce_mean(found.detach().clone()), "logits": gradients[0], "boxes": gradients[1],
        }  # fmt: skip
    return outcome


PARTS: dict[str, tuple[Callable[[Path], Pair], str]] = {
    "moco": (moco, "moco/moco/builder.py"),
    "kmeans": (kmeans, "swav/main_deepclusterv2.py"),
    "detr": (detr, "detr/models/detr.py"),
    "batchnorm": (batchnorm, "apex/apex/parallel/sync_batchnorm.py"),
}
"""Each part, and the official file that it needs, below the folder of checkouts."""


if __name__ == "__main__":
    save_outcome(PARTS[sys.argv[1]][0], *sys.argv[2:])
