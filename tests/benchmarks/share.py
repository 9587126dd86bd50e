"""What a benchmark tells of its speed beside that of a plain matrix product."""

import statistics
import time
from collections.abc import Callable

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch.utils.flop_counter import FlopCounterMode

PEAK_SIZE = 2048


def share_of_peak(work: Callable[[], object], seconds: float, dtype: torch.dtype) -> float:
    """What is counted of floating-point operations in `work`, by the time it took, beside a plain product's speed."""
    with FlopCounterMode(display=False) as counter:
        work()
    matrix = torch.randn(PEAK_SIZE, PEAK_SIZE).to(dtype)
    torch.mm(matrix, matrix)
    taken = []
    for _ in range(5):
        started = time.process_time()
        torch.mm(matrix, matrix)
        taken.append(time.process_time() - started)
    peak = 2 * PEAK_SIZE**3 / statistics.median(taken)
    return float(counter.get_total_flops() / seconds / peak)


def told(benchmark: BenchmarkFixture, product_seconds: list[float], what: str) -> None:
    """Put the share into `extra_info`, and print it.

    The machine may be shared: seconds are those of the processor, the fastest of each count.
    """
    if benchmark.stats is None:  # --benchmark-disable
        return
    share = min(product_seconds) / benchmark.stats.stats.min
    benchmark.extra_info["share_of_matrix_product_speed"] = round(share, 3)
    print(f"{what} at {share:.0%} of the speed of a plain matrix product")
