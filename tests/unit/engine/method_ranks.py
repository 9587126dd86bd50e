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
from reproduce.data.loader import StepSampler
from reproduce.engine.distributed import all_reduce_mean, is_main, process_group, rank, shared, world_size
from reproduce.engine.optimizer import Larc

BATCH = 12
NUM_STEPS = 4
CLUSTERING = {"num_prototypes": 5, "num_heads": 3, "num_banks": 2, "temperature": 0.1}
CONFIGS: dict[str, dict[str, Any]] = {
    "deepcluster_v2": {**CLUSTERING, "num_kmeans_iterations": 3},
    "sela_v2": {
        **CLUSTERING, "epsilon": 0.05, "sinkhorn_tolerance": 1e-3, "max_sinkhorn_iterations": 1000,
        "freeze_prototypes_epochs": 1,
    },
    "simclr": {"temperature": 0.1},
}  # fmt: skip


def steps(name: str) -> dict[str, Any]:
    """Losses of two epochs of two steps, gradients of the first, and the method's state after the last."""
    config, build = methods.find({"name": name, **CONFIGS[name]})
    torch.manual_seed(0)
    net = MultiCropNet(0.0625, 16, 8, config.prototypes, blocks=(1, 1, 1, 1)).double()
    num_pictures = 2 * BATCH + 1
    method = build(config, net, num_pictures, BATCH)
    draw = torch.Generator().manual_seed(1)
    share = BATCH // world_size()

    def my_crops() -> list[Tensor]:
        crops = [torch.randn(BATCH, 3, size, size, generator=draw).double() for size in (40, 40, 24, 24)]
        return [crop[rank() * share : (rank() + 1) * share] for crop in crops]

    trained = shared(net, world_size())
    method.begin(
        trained, StepSampler(num_pictures, BATCH, 2, 0, 0, rank(), world_size()), (my_crops() for _ in range(2))
    )
    optimizer = Larc(net.parameters(), lr=0.5, momentum=0.9, weight_decay=1e-6, trust_coefficient=0.001)
    losses: list[Tensor] = []
    gradients: dict[str, Tensor] = {}
    for step in range(NUM_STEPS):
        mine = my_crops()
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
    state = method.state_dict()
    method.load_state_dict(state)
    assert_equal(method.state_dict(), state)  # each rank has taken its own share
    return {"loss": torch.stack(losses), "gradients": gradients, "state": state}


def assert_equal(one: Any, other: Any) -> None:
    """Nested states, to the bit."""
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def main(output: str) -> None:
    torch.set_num_threads(1)
    with process_group():
        outcome = {name: steps(name) for name in CONFIGS}
        if is_main():
            torch.save(outcome, output)


if __name__ == "__main__":
    main(sys.argv[1])
