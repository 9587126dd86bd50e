"""A few steps of SwAV on this process' share of a fixed batch, in double precision; rank 0 writes what came out.

Started by test_distributed.py, alone or under torchrun: `ranks.py OUTPUT`.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[3]))

from models.heads import MultiCropNet
from models.sinkhorn import sinkhorn
from models.swav import Swav, SwavConfig
from reproduce.engine.distributed import all_reduce_mean, is_main, process_group, rank, shared, world_size
from reproduce.engine.optimizer import Larc

BATCH = 12
NUM_STEPS = 4


def main(output: str) -> None:
    torch.set_num_threads(1)
    with process_group():
        torch.manual_seed(0)
        net = MultiCropNet(0.0625, 16, 8, 8, blocks=(1, 1, 1, 1)).double()
        method = Swav(SwavConfig("swav", 8, 0.1, 0.05, 3, 0, True, False, 24, 0), net, BATCH, BATCH)
        draw = torch.Generator().manual_seed(1)
        crops = [torch.randn(BATCH, 3, size, size, generator=draw).double() for size in (40, 40, 24, 24)]
        queue = torch.randn(2, 2, BATCH, 8, generator=draw)  # per large crop, two batches
        share = BATCH // world_size()
        mine = slice(rank() * share, (rank() + 1) * share)
        shares = torch.stack([part.flatten(1, 2) for part in queue.split(share, dim=2)])
        method.load_state_dict({"queues": shares, "num_filled": 2 * share})
        assert torch.equal(method.state_dict()["queues"], shares)

        trained = shared(net)  # DDP averages gradients only while it lives
        optimizer = Larc(net.parameters(), lr=0.5, momentum=0.9, weight_decay=1e-6, trust_coefficient=0.001)
        losses: list[torch.Tensor] = []
        gradients: dict[str, torch.Tensor] = {}
        for step in range(NUM_STEPS):
            method.before_forward()
            embeddings, scores = trained([crop[mine] for crop in crops])
            loss, _ = method.loss(embeddings, scores, len(crops), step)
            optimizer.zero_grad()
            loss.backward()
            gradients = gradients or {k: p.grad.clone() for k, p in net.named_parameters() if p.grad is not None}
            optimizer.step()
            losses.append(all_reduce_mean(loss.detach().clone()))

        running = {name: value for name, value in net.state_dict().items() if "running" in name}
        alone = sinkhorn(torch.randn(BATCH, 8, generator=draw)[mine], 0.05, 3)
        if is_main():
            outcome = {"loss": torch.stack(losses), "running": running, "gradients": gradients, "assignments": alone}
            torch.save(outcome, output)


if __name__ == "__main__":
    main(sys.argv[1])
