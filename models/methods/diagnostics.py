"""What tells a collapse of any method, over the batch of all ranks."""

import torch
from torch import Tensor

from reproduce.engine.distributed.collectives import all_reduce_max, all_reduce_mean


@torch.no_grad()
def embedding_spread(embeddings: Tensor) -> Tensor:
    """1 - |mean|^2 of unit embeddings `(N, D)`: 0 where all are one, 1 where they point everywhere alike."""
    return 1 - all_reduce_mean(embeddings.float().mean(dim=0)).square().sum()


@torch.no_grad()
def unit_length_error(*rows: Tensor) -> Tensor:
    """How far the longest or shortest row of any `(N, D)` is from unit length."""
    lengths = torch.cat([matrix.float().norm(dim=1) for matrix in rows])
    return all_reduce_max((lengths - 1).abs().max())
