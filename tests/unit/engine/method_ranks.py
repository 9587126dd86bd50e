"""A few steps of each method on this process' share of fixed batches, in double precision; rank 0 writes what came out.

Started by test_methods_distributed.py, alone or under torchrun: `method_ranks.py OUTPUT`. SwAV has its own, ranks.py.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[3]))

from models import methods
from models.heads import MultiCropNet
from reproduce.engine.distributed import all_reduce_mean, is_main, process_group, rank, shared, world_size
from reproduce.engine.optimizer import Larc

BATCH = 12
NUM_STEPS = 4
CONFIGS: dict[str, dict[str, Any]] = {"simclr": {"temperature": 0.1}}


def steps(name: str) -> dict[str, Any]:
    """Losses of all steps, gradients of the first, weights after the last."""
    config, build = methods.find({"name": name, **CONFIGS[name]})
    torch.manual_seed(0)
    net = MultiCropNet(0.0625, 16, 8, config.prototypes, blocks=(1, 1, 1, 1)).double()
    method = build(config, net, BATCH, BATCH)
    draw = torch.Generator().manual_seed(1)
    crops = [torch.randn(BATCH, 3, size, size, generator=draw).double() for size in (40, 40, 24, 24)]
    share = BATCH // world_size()
    mine = [crop[rank() * share : (rank() + 1) * share] for crop in crops]
    trained = shared(net, world_size())
    optimizer = Larc(net.parameters(), lr=0.5, momentum=0.9, weight_decay=1e-6, trust_coefficient=0.001)
    losses: list[Tensor] = []
    gradients: dict[str, Tensor] = {}
    for step in range(NUM_STEPS):
        method.before_step(step, mine)
        method.before_forward()
        embeddings, scores = trained(mine)
        loss, _ = method.loss(embeddings, scores, len(mine), step)
        optimizer.zero_grad()
        loss.backward()
        method.after_backward(step)
        gradients = gradients or {k: p.grad.clone() for k, p in net.named_parameters() if p.grad is not None}
        optimizer.step()
        losses.append(all_reduce_mean(loss.detach().clone()))
    return {"loss": torch.stack(losses), "gradients": gradients, "state": method.state_dict()}


def main(output: str) -> None:
    torch.set_num_threads(1)
    with process_group():
        outcome = {name: steps(name) for name in CONFIGS}
        if is_main():
            torch.save(outcome, output)


if __name__ == "__main__":
    main(sys.argv[1])
