"""Weighted nearest-neighbor classification on frozen features: of the head (B.6, Table 7), or pooled ones."""

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evals.context import CenterCropConfig, EvalContext
from evals.features import extract_features
from models.networks.trunk import Trunk
from reproduce.engine.distributed.collectives import all_reduce_sum, device, is_main, rank, world_size
from reproduce.errors import UserError, did_you_mean

QUERY_BLOCK = 1024
"""Queries that are compared at a time. For each block, a matrix product repacks the whole block of the bank."""
BANK_BLOCK_BYTES = 2**29
"""Bytes of the bank in memory at a time: 65,536 rows of 2048 features. Larger blocks need fewer merges."""
LENGTH_FLOOR = 1e-12
"""Shortest length that a row is divided by, so that a row of zeros stays finite."""
FEATURES = ("head", "pooled")
"""What is compared: the output of the projection head, or the trunk's pooled features."""


@dataclass
class ProtocolConfig:
    """The keys of conf/eval/knn.yaml and knn_head.yaml. `features` is one of `FEATURES`."""

    name: str
    features: str
    num_neighbors: list[int]
    temperature: float
    center_crop: CenterCropConfig


def evaluate(trunk: Trunk, protocol: ProtocolConfig, context: EvalContext) -> dict[str, float]:
    """Return top-1 in percent for each number of neighbors, as `knn20`, `knn200`. The ranks share the queries.

    Raises `UserError` if the head's features are wanted of a checkpoint that has no head.
    """
    if protocol.features not in FEATURES:
        hint = did_you_mean(protocol.features, FEATURES)
        raise UserError(f"unknown protocol.features {protocol.features!r}: {hint}")
    context.run.resumed_from(0)
    net: nn.Module = trunk
    if protocol.features == "head":
        net = nn.Sequential(trunk, context.load_projection_head().to(device()))
    train, val = context.train_and_val()
    bank, queries = (
        extract_features(net, images, protocol.center_crop, context, protocol.features) for images in (train, val)
    )
    _note_small_bank(protocol.num_neighbors, len(bank.rows), context)
    mine = slice(rank(), None, world_size())
    rows = F.normalize(torch.tensor(queries.rows[mine], device=device()), dim=1)
    labels, bank_labels = (
        torch.tensor(images.labels)[indices].to(device())
        for images, indices in ((val, queries.indices[mine]), (train, bank.indices))
    )
    with context.preemption.rank_local_work("the features are kept") as leave_if_requested:
        similarity, nearest = neighbors(rows, bank.rows, max(protocol.num_neighbors), leave_if_requested)
    num_classes = len(train.classes)
    predicted, shares = vote(
        similarity, bank_labels[nearest], protocol.num_neighbors, protocol.temperature, num_classes
    )
    for k, shares_of_k in zip(protocol.num_neighbors, shares, strict=True):
        mean = all_reduce_sum(shares_of_k.sum()) / len(queries.rows)
        context.run.first_steps.note({f"winning share, {k} neighbors": mean})
    num_correct = all_reduce_sum((predicted == labels).float().sum(dim=1))
    context.run.counts["num_test_images"] = len(queries.rows)
    accuracies = (num_correct / len(queries.rows) * 100).tolist()
    return {f"knn{k}": accuracy for k, accuracy in zip(protocol.num_neighbors, accuracies, strict=True)}


def _note_small_bank(num_neighbors: list[int], num_images: int, context: EvalContext) -> None:
    """Record and print which metrics use fewer neighbors than they are named after, because there are fewer images."""
    if larger := [k for k in num_neighbors if k > num_images]:
        names = ", ".join(f"knn{k}" for k in larger)
        note = f"{names}: all {num_images} training images vote, because there are fewer than {min(larger)}"
        context.run.provenance["fewer_neighbors"] = note
        if is_main():
            print(f"warning: {note}", file=sys.stderr, flush=True)


def neighbors(
    queries: Tensor, bank: np.ndarray, num_neighbors: int, on_block: Callable[[], None] = lambda: None
) -> tuple[Tensor, Tensor]:
    """Return cosines and row numbers of each query's nearest rows of the bank, nearest first: `(q, k)` each.

    `queries (q, d)` have unit length. `bank (n, d)`, in memory or memory-mapped, is read once, block by block, and
    normalized. k is `num_neighbors`, or n if the bank has fewer rows. `on_block` is called before each block
    of `QUERY_BLOCK` queries is compared with a block of the bank.
    """
    chunks = queries.split(QUERY_BLOCK)
    num_rows = min(max(1, BANK_BLOCK_BYTES // (4 * queries.shape[1])), len(bank))
    # Allocated once and reused: fresh memory costs page faults.
    block_memory = queries.new_empty(num_rows, queries.shape[1])
    product_memory = queries.new_empty(len(chunks[0]) * num_rows)
    best: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(bank), num_rows):
        part = bank[start : start + num_rows]
        block = block_memory[: len(part)]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # and we do not write to it
            given = torch.from_numpy(part).to(block.device)
        lengths = torch.linalg.vector_norm(given, dim=1, keepdim=True, dtype=torch.float32)
        torch.div(given, lengths.clamp_min_(LENGTH_FLOOR), out=block)
        for number, chunk in enumerate(chunks):
            on_block()
            cosine = product_memory[: len(chunk) * len(block)].view(len(chunk), len(block))
            similarity, rows = torch.mm(chunk, block.T, out=cosine).topk(min(num_neighbors, len(block)), dim=1)
            if start:
                best[number] = _merge_topk(best[number], (similarity, rows + start), num_neighbors)
            else:
                best.append((similarity, rows))
    found, nearest = zip(*best, strict=True)
    return torch.cat(found), torch.cat(nearest)


def _merge_topk(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], num_neighbors: int) -> tuple[Tensor, Tensor]:
    """Return the nearest of two lists of neighbors, as `neighbors` does."""
    similarity, rows = (torch.cat(pair, dim=1) for pair in zip(a, b, strict=True))
    similarity, kept = similarity.topk(min(num_neighbors, similarity.shape[1]), dim=1)
    return similarity, rows.gather(1, kept)


def vote(
    similarity: Tensor, classes: Tensor, num_neighbors: list[int], temperature: float, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Return the class of each query by a vote of its k nearest neighbors, and its share of all weight in [0, 1].

    Both are `(len(num_neighbors), q)`, for each k. `similarity (q, n)` and `classes (q, n)` belong to the neighbors,
    nearest first. A neighbor's vote has the weight exp(cosine / temperature).
    """
    blocks = list(zip(similarity.split(QUERY_BLOCK), classes.split(QUERY_BLOCK), strict=True))
    predicted: list[Tensor] = []
    shares: list[Tensor] = []
    for k in num_neighbors:
        found = (_winners(s[:, :k], c[:, :k], temperature, num_classes) for s, c in blocks)
        winners, their_shares = zip(*found, strict=True)
        predicted.append(torch.cat(winners))
        shares.append(torch.cat(their_shares))
    return torch.stack(predicted), torch.stack(shares)


def _winners(similarity: Tensor, classes: Tensor, temperature: float, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return the class that wins each query of a block, and its share; see `vote`."""
    weights = torch.exp(similarity / temperature)
    votes = weights.new_zeros(len(weights), num_classes).scatter_add_(1, classes, weights)
    return votes.argmax(dim=1), votes.amax(dim=1) / votes.sum(dim=1)
