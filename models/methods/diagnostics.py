"""Metrics that reveal a collapse, for any method, over the global batch."""

import torch
from torch import Tensor

from reproduce.engine.distributed.collectives import all_reduce_max, all_reduce_mean
from reproduce.engine.precision import at_least_fp32


@torch.no_grad()
def embedding_spread(embeddings: Tensor) -> Tensor:
    """Return 1 - |mean|^2 of unit embeddings `(N, D)`: 0 if all are equal, 1 if uniform. A collective."""
    return 1 - all_reduce_mean(at_least_fp32(embeddings).mean(dim=0)).square().sum()


@torch.no_grad()
def unit_length_error(*rows: Tensor) -> Tensor:
    """Return the largest deviation of any row from unit length, over matrices `(N, D)`. A collective."""
    lengths = torch.cat([at_least_fp32(matrix).norm(dim=1) for matrix in rows])
    return all_reduce_max((lengths - 1).abs().max())
