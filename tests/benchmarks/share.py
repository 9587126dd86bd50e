"""What a benchmark tells of its speed beside that of a plain matrix product."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

PEAK_SIZE = 2048


class _ProductSeconds(TorchDispatchMode):
    """Adds up the processor's seconds in what is counted as floating-point operations: products and convolutions."""

    seconds = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        started = time.process_time()
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.seconds += time.process_time() - started
        return out


def shares_of_peak(work: Callable[[], object], seconds: float, dtype: torch.dtype) -> dict[str, float]:
    """What is counted of floating-point operations in `work`, by the time it took, beside a plain product's speed.

    And what that would be if all but its products and convolutions took no time: no step built of torch's has more.
    """
    with FlopCounterMode(display=False) as counter:
        work()
    with _ProductSeconds() as products:  # type: ignore[no-untyped-call]
        work()
    matrix = torch.randn(PEAK_SIZE, PEAK_SIZE).to(dtype)
    torch.mm(matrix, matrix)
    taken = []
    for _ in range(5):
        started = time.process_time()
        torch.mm(matrix, matrix)
        taken.append(time.process_time() - started)
    peak = 2 * PEAK_SIZE**3 / statistics.median(taken)
    at_peak = counter.get_total_flops() / peak
    return {
        "share_of_matrix_product_peak": at_peak / seconds,
        "share_if_products_were_all": at_peak / products.seconds,
    }


def told(benchmark: BenchmarkFixture, product_seconds: list[float], what: str) -> None:
    """Put the share into `extra_info`, and print it.

    The machine may be shared: seconds are those of the processor, the fastest of each count.
    """
    if benchmark.stats is None:  # --benchmark-disable
        return
    share = min(product_seconds) / benchmark.stats.stats.min
    benchmark.extra_info["share_of_matrix_product_speed"] = round(share, 3)
    print(f"{what} at {share:.0%} of the speed of a plain matrix product")
