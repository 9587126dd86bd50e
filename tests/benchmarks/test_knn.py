"""How much of the machine's own matrix-product speed kNN has: `pytest tests/benchmarks --benchmark-json=FILE`.

Nothing is asserted of the time; the share stands in `extra_info`, and is printed under `-s`. The goal is .7 or more.
"""

import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture

from evals.knn import BANK_BLOCK_BYTES, neighbors
from tests.benchmarks.share import told

NUM_QUERIES, NUM_FEATURES, NUM_NEIGHBORS = 2048, 2048, 200


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.usefixtures("one_thread")
def test_knn(benchmark: BenchmarkFixture) -> None:
    """A bank of a block and a quarter, as memory-mapped files give it; in the same run a GEMM of the same size."""
    draw = torch.Generator().manual_seed(0)
    queries = F.normalize(torch.randn(NUM_QUERIES, NUM_FEATURES, generator=draw), dim=1)
    bank = torch.randn(BANK_BLOCK_BYTES // (4 * NUM_FEATURES) * 5 // 4, NUM_FEATURES, generator=draw)
    rows: np.ndarray = bank.numpy()
    product_seconds = []

    def product() -> None:
        started = time.process_time()
        torch.mm(queries, bank.T)
        product_seconds.append(time.process_time() - started)

    found, _ = benchmark.pedantic(neighbors, args=(queries, rows, NUM_NEIGHBORS), setup=product, rounds=3)  # type: ignore[no-untyped-call]
    assert found.shape == (NUM_QUERIES, NUM_NEIGHBORS)
    told(benchmark, product_seconds, "kNN runs")
