"""MoCo, DeepCluster-v2's k-means and apex's SyncBatchNorm, official and ours, on two and four processes; DINO's kNN."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from evals.knn import neighbors, vote
from tests.oracles.methods_ranks import PARTS
from tests.oracles.official import checkout, definitions
from tests.runs import run

PROCESSES = pytest.mark.parametrize("processes", [2, 4])


def both(part: str, processes: int, tmp_path: Path) -> dict[str, Any]:
    """What the official code and ours made of one part on so many processes."""
    name, _, file = PARTS[part][1].partition("/")
    folder = checkout(name, file).parent
    done = run("tests.oracles.methods_ranks", part, str(folder), str(tmp_path / "out.pt"), processes=processes)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = torch.load(tmp_path / "out.pt", weights_only=True)
    return found


@PROCESSES
def test_mocos_losses_queue_and_key_encoder_are_equal(processes: int, tmp_path: Path) -> None:
    """Keys pass in the same shuffled order, so that BatchNorm sees the same images; in double precision."""
    found = both("moco", processes, tmp_path)
    torch.testing.assert_close(found["ours"], found["theirs"])


@PROCESSES
def test_kmeans_has_the_official_labels_and_centroids(processes: int, tmp_path: Path) -> None:
    found = both("kmeans", processes, tmp_path)
    assert torch.equal(found["ours"]["labels"], found["theirs"]["labels"])
    torch.testing.assert_close(found["ours"]["centroids"], found["theirs"]["centroids"])


@PROCESSES
@pytest.mark.parametrize("ours", ["ours", "grouped"])
def test_batchnorm_over_pairs_of_ranks_is_apexs(ours: str, processes: int, tmp_path: Path) -> None:
    """Ours over ranks, and over groups within one process that has the whole batch."""
    found = both("batchnorm", processes, tmp_path)
    torch.testing.assert_close(found[ours], found["theirs"])


def test_the_vote_of_neighbors_is_dinos() -> None:
    code = definitions(checkout("dino", "eval_knn.py") / "eval_knn.py", "knn_classifier", torch=torch, nn=nn)
    torch.manual_seed(0)
    centers = torch.randn(10, 16)
    labels, queried = torch.randint(0, 10, (3000,)), torch.randint(0, 10, (500,))
    bank, queries = (F.normalize(centers[of] + 1.5 * torch.randn(len(of), 16), dim=1) for of in (labels, queried))
    similarity, nearest = neighbors(queries, bank.numpy(), 200)
    ours = vote(similarity, labels[nearest], [20, 200], 0.07)
    for k, predicted in zip((20, 200), ours, strict=True):
        top1, _ = code["knn_classifier"](bank, labels, queries, queried, k, 0.07, 10)
        assert float((predicted == queried).float().mean() * 100) == pytest.approx(top1)
