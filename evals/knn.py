"""Weighted nearest neighbours on frozen features (B.6, Table 7)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from evals.setting import Pixels, Setting, features
from models.resnet import ResNet
from reproduce.data.pictures import read_splits

QUERY_BLOCK = 256
"""Queries per similarity block, which bounds memory."""


@dataclass
class Protocol:
    """conf/eval/knn.yaml."""

    name: str
    num_neighbors: list[int]
    temperature: float
    pixels: Pixels


def evaluate(trunk: ResNet, protocol: Protocol, setting: Setting) -> dict[str, float]:
    """Top-1 in percent for each number of neighbours, as `knn20`, `knn200`."""
    splits = {}
    train, val = read_splits(setting.root, setting.dataset.train, setting.dataset.val)
    setting.provenance["data_manifest_sha256"] = train.sha256()
    for split, pictures in ((setting.dataset.train, train), (setting.dataset.val, val)):
        rows, indices = features(trunk, pictures, protocol.pixels, setting)
        labels = torch.tensor(pictures.labels, device=rows.device)[indices]
        splits[split] = F.normalize(rows, dim=1), labels
    bank, bank_labels = splits[setting.dataset.train]
    queries, labels = splits[setting.dataset.val]
    setting.counts["num_test_images"] = len(labels)
    correct = vote(queries, bank, bank_labels, protocol.num_neighbors, protocol.temperature) == labels
    shares = correct.float().mean(dim=1) * 100
    return {f"knn{k}": share for k, share in zip(protocol.num_neighbors, shares.tolist(), strict=True)}


def vote(queries: Tensor, bank: Tensor, bank_labels: Tensor, num_neighbors: list[int], temperature: float) -> Tensor:
    """The class of each query `(q, d)` for each number of neighbours: `(len(num_neighbors), q)`.

    Rows of `queries` and `bank (n, d)` have unit length; a neighbour weighs exp(cosine / temperature). More neighbours
    than the bank holds means all of it.
    """
    num_classes = int(bank_labels.max()) + 1
    most = min(max(num_neighbors), len(bank))
    predictions = []
    for block in queries.split(QUERY_BLOCK):
        similarity, nearest = (block @ bank.T).topk(most, dim=1)
        weights, classes = torch.exp(similarity / temperature), bank_labels[nearest]
        votes = [
            torch.zeros(len(block), num_classes, device=block.device)
            .scatter_add_(1, classes[:, :k], weights[:, :k])
            .argmax(dim=1)
            for k in num_neighbors
        ]
        predictions.append(torch.stack(votes))
    return torch.cat(predictions, dim=1)
