"""Benchmarks compare with a baseline in the same run, turn by turn, in processor time: other processes matter less."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

TOLD: list[str] = []
Compare = Callable[..., float]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pictures", help="folder of JPEG pictures for the input pipeline (default: generated ones)")
    parser.addoption("--images", type=int, default=8, help="images of a training step (default 8)")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def compare(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Compare:
    """`compare(ours, baseline, rounds)`: how many times as fast as the baseline ours is, the median over the rounds."""

    def run(
        ours: Callable[[], Any],
        baseline: Callable[[], Any],
        rounds: int = 5,
        clock: Callable[[], float] = time.process_time,
    ) -> float:
        ours()  # what is made once, is made here
        taken: dict[str, list[float]] = {"baseline": [], "ours": []}

        def timed(name: str, work: Callable[[], Any]) -> None:
            started = clock()
            work()
            taken[name].append(clock() - started)

        benchmark.pedantic(  # type: ignore[no-untyped-call]
            timed, args=("ours", ours), setup=lambda: timed("baseline", baseline), rounds=rounds
        )
        ratio = statistics.median(b / o for b, o in zip(taken["baseline"], taken["ours"], strict=False))
        seconds = {f"{name}_seconds": statistics.median(values) for name, values in taken.items()}
        benchmark.extra_info |= {"times_as_fast": round(ratio, 2), **seconds}
        TOLD.append(
            f"{request.node.name}: {ratio:.2f} times as fast as the baseline "
            f"({seconds['ours_seconds'] * 1e3:.2f} ms against {seconds['baseline_seconds'] * 1e3:.2f} ms)"
        )
        return ratio

    return run


@pytest.fixture
def seconds(benchmark: BenchmarkFixture) -> Callable[..., float]:
    """`seconds(work, rounds)`: the median over the rounds, after one that is not counted."""

    def run(work: Callable[[], Any], rounds: int = 2) -> float:
        benchmark.pedantic(work, rounds=rounds, warmup_rounds=1)  # type: ignore[no-untyped-call]
        return float(benchmark.stats.stats.median) if benchmark.stats else float("nan")  # --benchmark-disable

    return run


@pytest.fixture
def tell(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Callable[..., None]:
    """Keep figures in the saved JSON, and print them at the end."""

    def keep(**values: float) -> None:
        benchmark.extra_info |= values
        TOLD.append(f"{request.node.name}: " + ", ".join(f"{name} {value:.3g}" for name, value in values.items()))

    return keep


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for line in TOLD:
        terminalreporter.write_line(line)
