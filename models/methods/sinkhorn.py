"""Sinkhorn-Knopp: soft assignments that distribute a batch evenly over the prototypes (equation 3; A.1)."""

import torch
from torch import Tensor

from reproduce.engine.distributed.collectives import all_reduce_max, all_reduce_sum
from reproduce.engine.precision import at_least_fp32

MAX_EXPONENT = 75
"""exp(-75), divided by a column sum of some thousands, is about the smallest normal number of fp32."""


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, num_iterations: int) -> Tensor:
    """Return soft assignments `(B, K)` in fp32 for scores `(B, K)` of any floating dtype; each row sums to one.

    Each iteration first gives every prototype (column) the same share of the batch, then every sample (row) weight one.
    With a process group, the batch is that of all ranks: the maximum (once) and the K column sums (each iteration) are
    all-reduced; rows stay local. The paper's constants 1/K and 1/B cancel in the division of each row.

    Differs from the released code: runs in fp32 outside autocast and subtracts the global maximum, because
    exp(score / epsilon) overflows fp16 for cosines above 0.5545 (epsilon 0.05). A sample whose best score is more than
    `MAX_EXPONENT` epsilons below the maximum would become a row of zeros; it is raised to that bound, where its weight
    is still negligible. For hard assignments, the caller takes the argmax of the result.
    """
    with torch.autocast(scores.device.type, enabled=False):
        scores = at_least_fp32(scores)
        row_max = scores.amax(dim=1, keepdim=True)
        offset = torch.minimum(all_reduce_max(row_max.max()), row_max + MAX_EXPONENT * epsilon)
        assignments = torch.exp((scores - offset) / epsilon)
        for _ in range(num_iterations):
            assignments /= all_reduce_sum(assignments.sum(dim=0)).clamp_min(torch.finfo(scores.dtype).tiny)
            assignments /= assignments.sum(dim=1, keepdim=True)
        return assignments
