"""How much of the machine's own matrix-product speed DeepCluster-v2's assignment has: `pytest tests/benchmarks -s`.

Nothing is asserted of the time; the share stands in `extra_info`, and is printed under `-s`. The goal is .5 or more.
"""

import time

import pytest
import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture

from models.methods.clustering import BLOCK_SCORES, iter_blocks
from models.methods.deepcluster import nearest_centroids
from tests.benchmarks.share import told

NUM_ROWS, EMBEDDING, NUM_CENTROIDS = 8192, 128, 3000
"""The paper's sizes, but for the rows: ImageNet's 1.28 million are as many more of the same blocks."""


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.usefixtures("one_thread")
def test_kmeans(benchmark: BenchmarkFixture) -> None:
    """In the same run a GEMM of the same size into memory that is there, for all scores; ours holds a block of them."""
    draw = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(NUM_ROWS, EMBEDDING, generator=draw), dim=1)
    centroids = F.normalize(torch.randn(NUM_CENTROIDS, EMBEDDING, generator=draw), dim=1)
    assert max(len(block) for block in iter_blocks(rows, centroids)) * NUM_CENTROIDS <= BLOCK_SCORES["cpu"]
    product_seconds = []
    scores = torch.empty(NUM_ROWS, NUM_CENTROIDS)

    def product() -> None:
        started = time.process_time()
        torch.mm(rows, centroids.T, out=scores)
        product_seconds.append(time.process_time() - started)

    found = benchmark.pedantic(nearest_centroids, args=(rows, centroids), setup=product, rounds=5)  # type: ignore[no-untyped-call]
    assert found.shape == (NUM_ROWS,)
    told(benchmark, product_seconds, "k-means assigns")
