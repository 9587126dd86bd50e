"""What a benchmark tells of its speed beside that of a plain matrix product."""

from pytest_benchmark.fixture import BenchmarkFixture


def told(benchmark: BenchmarkFixture, product_seconds: list[float], what: str) -> None:
    """Put the share into `extra_info`, and print it.

    The machine may be shared: seconds are those of the processor, the fastest of each count.
    """
    if benchmark.stats is None:  # --benchmark-disable
        return
    share = min(product_seconds) / benchmark.stats.stats.min
    benchmark.extra_info["share_of_matrix_product_speed"] = round(share, 3)
    print(f"{what} at {share:.0%} of the speed of a plain matrix product")
