"""Weighted nearest neighbours on frozen features (B.6, Table 7)."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evals.context import CenterCropConfig, EvalContext
from evals.features import extract_features
from models.networks.resnet import ResNet
from reproduce.engine.distributed.collectives import all_reduce_sum, device, rank, world_size

QUERY_BLOCK = 1024
"""Rows that are compared at a time. For each, a matrix product rearranges the whole block of the bank anew."""
BANK_BLOCK_BYTES = 2**29
"""What is in memory of the bank at a time: 65,536 rows of 2048 features. Larger blocks merge less often."""

LENGTH_FLOOR = 1e-12
"""What a row of zeros is divided by."""


@dataclass
class ProtocolConfig:
    """conf/eval/knn.yaml."""

    name: str
    num_neighbors: list[int]
    temperature: float
    center_crop: CenterCropConfig


def evaluate(trunk: ResNet, protocol: ProtocolConfig, context: EvalContext) -> dict[str, float]:
    """Top-1 in percent for each number of neighbours, as `knn20`, `knn200`. The ranks share the queries."""
    train, val = context.train_and_val()
    bank, queries = (extract_features(trunk, images, protocol.center_crop, context) for images in (train, val))
    mine = slice(rank(), None, world_size())
    rows = F.normalize(torch.tensor(queries.rows[mine], device=device()), dim=1)
    labels, bank_labels = (
        torch.tensor(pictures.labels)[indices].to(device())
        for pictures, indices in ((val, queries.indices[mine]), (train, bank.indices))
    )
    with context.preemption.rank_local_work("the features are kept") as leave_if_requested:
        similarity, nearest = neighbors(rows, bank.rows, max(protocol.num_neighbors), leave_if_requested)
    predicted = vote(similarity, bank_labels[nearest], protocol.num_neighbors, protocol.temperature)
    hits = all_reduce_sum((predicted == labels).float().sum(dim=1))
    context.run.counts["num_test_images"] = len(queries.rows)
    shares = (hits / len(queries.rows) * 100).tolist()
    return {f"knn{k}": share for k, share in zip(protocol.num_neighbors, shares, strict=True)}


def neighbors(
    queries: Tensor, bank: np.ndarray, num_neighbors: int, often: Callable[[], None] = lambda: None
) -> tuple[Tensor, Tensor]:
    """Cosine and row number of each query's nearest rows of the bank, nearest first: `(q, k)` each.

    `queries (q, d)` have unit length; `bank (n, d)` is read once, block by block, from wherever it lies, and made so.
    k is `num_neighbors`, or n where the bank holds fewer. `often` is called every 1024 queries of a block.
    """
    chunks = queries.split(QUERY_BLOCK)
    num_rows = min(max(1, BANK_BLOCK_BYTES // (4 * queries.shape[1])), len(bank))
    # One of each for all: fresh memory costs page faults.
    block_memory = torch.empty(num_rows, queries.shape[1], device=queries.device)
    product_memory = torch.empty(len(chunks[0]) * num_rows, device=queries.device)
    best: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(bank), num_rows):
        part = bank[start : start + num_rows]
        block = block_memory[: len(part)]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nor is it written to
            given = torch.from_numpy(part).to(block.device)
        lengths = torch.linalg.vector_norm(given, dim=1, keepdim=True, dtype=torch.float32)
        torch.div(given, lengths.clamp_min_(LENGTH_FLOOR), out=block)
        for number, chunk in enumerate(chunks):
            often()
            cosine = product_memory[: len(chunk) * len(block)].view(len(chunk), len(block))
            similarity, rows = torch.mm(chunk, block.T, out=cosine).topk(min(num_neighbors, len(block)), dim=1)
            if start:
                best[number] = _nearer(best[number], (similarity, rows + start), num_neighbors)
            else:
                best.append((similarity, rows))
    found, nearest = zip(*best, strict=True)
    return torch.cat(found), torch.cat(nearest)


def _nearer(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], num_neighbors: int) -> tuple[Tensor, Tensor]:
    """Of two lists of neighbours the nearest."""
    similarity, rows = (torch.cat(pair, dim=1) for pair in zip(a, b, strict=True))
    similarity, kept = similarity.topk(min(num_neighbors, similarity.shape[1]), dim=1)
    return similarity, rows.gather(1, kept)


def vote(similarity: Tensor, classes: Tensor, num_neighbors: list[int], temperature: float) -> Tensor:
    """The class of each query by its first k neighbours, for each k: `(len(num_neighbors), q)`.

    `similarity (q, most)` and `classes (q, most)` are those of the neighbours, nearest first; one weighs
    exp(cosine / temperature).
    """
    weights = torch.exp(similarity / temperature)
    num_classes = int(classes.max()) + 1
    return torch.stack(
        [
            torch.cat(
                [
                    torch.zeros(len(w), num_classes, device=w.device).scatter_add_(1, c[:, :k], w[:, :k]).argmax(dim=1)
                    for w, c in zip(weights.split(QUERY_BLOCK), classes.split(QUERY_BLOCK), strict=True)
                ]
            )
            for k in num_neighbors
        ]
    )
