"""Sinkhorn-Knopp: soft assignments that spread a batch evenly over the prototypes (paper, equation 3; A.1)."""

import torch
from torch import Tensor

from reproduce.engine.distributed.collectives import all_reduce_max, all_reduce_sum

FAR = 75
"""exp(-75), over a column of some thousands, is the least that fp32 holds with all its digits."""


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, num_iterations: int) -> Tensor:
    """Assignments `(B, K)`, fp32, of scores `(B, K)` of any floating dtype; each row sums to one.

    Each iteration gives every prototype (column) the same share of the batch, then every sample (row) the weight one.
    Where a process group stands, the batch is that of all ranks: the maximum (once) and the K column sums (per
    iteration) are all-reduced; the rows are local. The paper's constants 1/K and 1/B cancel in each row's division.

    Runs in fp32 outside autocast, with the global maximum subtracted: exp(score / epsilon) overflows half precision
    from a cosine of 0.5545 on. A sample more than `FAR` epsilons below that would be a row of zeros: it is lifted to
    there, where it still weighs nothing. `hard assignments` are the caller's argmax of this.
    """
    with torch.autocast(scores.device.type, enabled=False):
        scores = scores.float()
        nearest = scores.amax(dim=1, keepdim=True)
        highest = torch.minimum(all_reduce_max(nearest.max()), nearest + FAR * epsilon)
        assignments = torch.exp((scores - highest) / epsilon)
        for _ in range(num_iterations):
            assignments /= all_reduce_sum(assignments.sum(dim=0)).clamp_min(torch.finfo(torch.float32).tiny)
            assignments /= assignments.sum(dim=1, keepdim=True)
        return assignments
