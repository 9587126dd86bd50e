"""DETR's losses on this process' share of a fixed batch, in double precision; rank 0 writes what came out.

Started by test_detr.py, alone or by our launcher: `detr_ranks.py OUTPUT`.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[3]))

from evals.coco_detr.losses import LossWeights, Target, losses
from reproduce.engine.distributed.collectives import (
    all_gather,
    all_reduce_mean,
    is_main,
    process_group,
    rank,
    world_size,
)

BATCH, LAYERS, QUERIES, CLASSES = 8, 2, 5, 3
GROUP_SIZES = (None, 4, 2)


def main(output: str) -> None:
    torch.set_num_threads(1)
    with process_group():
        draw = torch.Generator().manual_seed(0)
        logits = torch.randn(LAYERS, BATCH, QUERIES, CLASSES + 1, generator=draw).double()
        boxes = (torch.rand(LAYERS, BATCH, QUERIES, 4, generator=draw) / 2 + 0.2).double()
        targets = [
            Target(
                torch.randint(CLASSES, (num,), generator=draw), (torch.rand(num, 4, generator=draw) / 2 + 0.2).double()
            )
            for num in (3, 0, 5, 1, 2, 2, 4, 0)
        ]
        share = BATCH // world_size()
        mine = slice(rank() * share, (rank() + 1) * share)
        outcome = {}
        for group_size in GROUP_SIZES:
            own_logits, own_boxes = (tensor[:, mine].clone().requires_grad_() for tensor in (logits, boxes))
            found = losses(own_logits, own_boxes, targets[mine], LossWeights(1, 5, 2, 0.1), group_size)
            found.sum().backward()
            gradients = [tensor.grad for tensor in (own_logits, own_boxes) if tensor.grad is not None]
            outcome[group_size] = {
                "loss": all_reduce_mean(found.detach().clone()),
                # DDP averages over ranks; shares stand side by side along the second dimension.
                "gradients": [all_gather(each).transpose(0, 1).flatten(1, 2) / world_size() for each in gradients],
            }
        if is_main():
            torch.save(outcome, output)


if __name__ == "__main__":
    main(sys.argv[1])
