"""A few steps of SwAV on this process' share of a fixed batch, in double precision; rank 0 writes what came out.

Started by test_distributed.py, alone, by our launcher or under torchrun: `ranks.py OUTPUT`.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[3]))

from models.methods.sinkhorn import sinkhorn
from models.methods.swav import Swav, SwavConfig
from models.networks.heads import MultiCropNet
from reproduce.engine.batchnorm import batchnorm_groups, wrap_for_distributed
from reproduce.engine.distributed.collectives import (
    all_reduce_mean,
    any_rank,
    device,
    gather_union,
    is_main,
    process_group,
    rank,
    world_size,
)
from reproduce.engine.optimizer import Larc
from reproduce.engine.runs.counts import Counts
from tests.networks import gradients_of

BATCH = 12
NUM_STEPS = 4


def main(output: str) -> None:
    torch.set_num_threads(1)
    with process_group():
        assert any_rank(rank() == world_size() - 1) and not any_rank(False)  # the last alone, and every rank knows
        assert gather_union({str(rank())}) == {str(each) for each in range(world_size())}
        counts = Counts()
        counts.skipped_images.add(str(rank()))
        skipped = counts.state_dict()["skipped_images"]
        torch.manual_seed(0)
        net = MultiCropNet(0.0625, 16, 8, 8, blocks=(1, 1, 1, 1)).double().to(device())
        method = Swav(SwavConfig("swav", 8, 0.1, 0.05, 3, 0, True, False, 24, 0), net, BATCH, BATCH)
        draw = torch.Generator().manual_seed(1)
        sizes = (40, 40, 24, 24)
        crops = [torch.randn(BATCH, 3, size, size, generator=draw).double().to(device()) for size in sizes]
        queue = torch.randn(2, 2, BATCH, 8, generator=draw).to(device())  # per large crop, two batches
        share = BATCH // world_size()
        mine = slice(rank() * share, (rank() + 1) * share)
        method.load_state_dict({"queue": queue.flatten(1, 2), "num_filled": 2 * BATCH})
        kept = method.state_dict()
        assert torch.equal(kept["queue"], queue.flatten(1, 2))
        assert kept["num_filled"] == 2 * BATCH
        assert method.queue is not None
        assert torch.equal(method.queue.blocks, queue[:, :, mine].flatten(1, 2))

        trained = wrap_for_distributed(net)  # DDP averages gradients only while it lives
        optimizer = Larc(net.parameters(), lr=0.5, momentum=0.9, weight_decay=1e-6, trust_coefficient=0.001)
        losses: list[torch.Tensor] = []
        gradients: dict[str, torch.Tensor] = {}
        for step in range(NUM_STEPS):
            method.before_forward()
            embeddings, scores = trained([crop[mine] for crop in crops])
            loss, _ = method.loss(embeddings, scores, len(crops), step)
            optimizer.zero_grad()
            loss.backward()
            gradients = gradients or gradients_of(net)
            optimizer.step()
            losses.append(all_reduce_mean(loss.detach().clone()))

        groups = batchnorm_of_halves(draw, mine)
        running = {name: value for name, value in net.state_dict().items() if "running" in name}
        alone = sinkhorn(torch.randn(BATCH, 8, generator=draw)[mine].to(device()), 0.05, 3)
        if is_main():
            outcome = {
                "loss": torch.stack(losses),
                "running": running,
                "gradients": gradients,
                "assignments": alone,
                "skipped": skipped,
            } | groups
            torch.save(outcome, output)


def batchnorm_of_halves(draw: torch.Generator, mine: slice) -> dict[str, torch.Tensor]:
    """BatchNorm over each half of the batch by itself: rank 0's share of output and input gradient."""
    norm = torch.nn.BatchNorm1d(5).double().to(device())
    images = torch.randn(BATCH, 5, generator=draw).double().to(device())
    weights = torch.randn(BATCH, 5, generator=draw).double().to(device())
    if world_size() == 1:
        images, weights = images[: BATCH // 2].requires_grad_(), weights[: BATCH // 2]
    else:
        images, weights = images[mine].clone().requires_grad_(), weights[mine]
        wrap_for_distributed(norm, batchnorm_groups(BATCH, BATCH // 2))
    out = norm(images)
    (out * weights).sum().backward()
    assert images.grad is not None
    return {"halves_out": out.detach(), "halves_gradient": images.grad, "halves_mean": norm.running_mean}


if __name__ == "__main__":
    main(sys.argv[1])
