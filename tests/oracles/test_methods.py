"""MoCo, DeepCluster-v2's k-means, DETR's losses and apex's SyncBatchNorm: ours on two and four processes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.oracles.methods_ranks import PARTS
from tests.oracles.official import outcome_of

PROCESSES = pytest.mark.parametrize("processes", [2, 4])


def both(part: str, processes: int, tmp_path: Path) -> dict[str, Any]:
    """What the official code and ours made of one part on so many processes."""
    return outcome_of("tests.oracles.methods_ranks", part, PARTS[part][1], processes, tmp_path / "out.pt")


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


@PROCESSES
def test_detrs_losses_and_gradients_are_equal(processes: int, tmp_path: Path) -> None:
    """The class loss is a mean over each process's images, the boxes' losses over the objects of all processes."""
    found = both("detr", processes, tmp_path)
    # Theirs divides by a number of objects in single precision; their GIoU has no epsilon of 1e-7.
    torch.testing.assert_close(found["ours"], found["theirs"], rtol=1e-5, atol=1e-5)
