"""Data-loader workers without a setting: those of a GPU's share of the cores. GPUs and cores are fakes.

And how many batches they prepare ahead.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from reproduce import system
from reproduce.config.compose import compose
from reproduce.config.schema import Augment, Crops, Normalize, View
from reproduce.data.datasets.image_folder import ImageList
from reproduce.data.pipeline import dataloader
from reproduce.data.pipeline.sampler import StepSampler
from tests.runs import REPO_ROOT


@pytest.mark.parametrize(
    ("cores", "visible_gpus", "processes", "of_harness", "num_workers"),
    [
        (16, 1, 1, "", 15),
        (64, 8, 8, "", 7),
        (64, 1, 1, "0,1,2,3", 15),
        (64, 8, 1, "", 7),
        (128, 1, 1, "", system.MAX_WORKERS),
        (4, 8, 8, "", 1),
        (16, 0, 2, "", 1),
    ],
)
def test_workers_are_a_gpus_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, visible_gpus: int, processes: int, of_harness: str, num_workers: int
) -> None:
    monkeypatch.setattr(system, "usable_cores", lambda: cores)
    monkeypatch.setattr(system, "cpu_quota", lambda _: (float("inf"), 100_000))
    monkeypatch.setattr("torch.cuda.is_available", lambda: visible_gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: visible_gpus)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setenv(system.SHARED_GPUS, of_harness)
    assert dataloader.default_num_workers() == num_workers
    monkeypatch.setattr(dataloader, "DataLoader", lambda _, **options: options)
    given: list[Any] = [None, 3, 0]
    assert [dataloader.build_dataloader([], number)["num_workers"] for number in given] == [num_workers, 3, 0]  # type: ignore[arg-type, index]


def test_a_containers_quota_limits_the_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text("850000 100000\n")
    monkeypatch.setattr(system, "usable_cores", lambda: 64)
    assert system.available_cores(tmp_path) == 8
    assert system.workers_per_gpu(2, tmp_path) == 3


@pytest.mark.parametrize("cluster", ["local", "slurm", "kubernetes"])
def test_no_cluster_sets_the_workers(cluster: str) -> None:
    assert compose("pretrain", ["experiment=swav_800ep", f"cluster={cluster}"]).cluster.num_workers is None


VIEWS = [View(2, 224, [0.14, 1.0]), View(6, 96, [0.05, 0.14])]


@pytest.mark.parametrize(
    ("num_workers", "batch_bytes", "num_ahead"),
    [(16, 0, 4), (16, 50 * 10**6, 4), (16, 100 * 10**6, 2), (16, 403 * 10**6, 2), (1, 10**9, 4), (1, 10**10, 2)],
)
def test_large_batches_are_prepared_ahead_less_often(num_workers: int, batch_bytes: int, num_ahead: int) -> None:
    assert system.prefetch_batches(num_workers, batch_bytes) == num_ahead
    if num_ahead > system.MIN_PREFETCH_BATCHES:
        assert num_workers * num_ahead * batch_bytes <= system.PREFETCH_GB * 1e9


def test_pinned_memory_is_rounded_to_powers_of_two() -> None:
    assert [system.pinned_bytes(size) for size in (0, 1, 4096, 4097)] == [0, 1, 4096, 8192]
    assert dataloader.multicrop_bytes(VIEWS, 512) == 2**28 + 2**27


def test_a_runs_loader_knows_the_size_of_its_share_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []

    def loader(_: object, *, prefetch_factor: int, **_options: object) -> list[Any]:
        given.append(prefetch_factor)
        return []

    monkeypatch.setattr(dataloader, "DataLoader", loader)
    recipe = Crops("", VIEWS, Augment(0.5, [0.4, 0.4, 0.4, 0.1], 0.8, 0.2, 0.5, [0.1, 2.0]))
    images = ImageList([], [], [])
    for num_processes in (64, 8):
        sampler = StepSampler(4096, 4096, 1, seed=0, world_size=num_processes)
        list(
            dataloader.multicrop_batches(
                images, recipe, Normalize([0.5] * 3, [0.2] * 3), sampler, num_workers=16, device=torch.device("cpu"),
                on_unreadable=lambda _: None,
            )
        )  # fmt: skip
    assert given == [4, 2]


def test_the_page_on_performance_has_the_memory_of_prepared_batches() -> None:
    page = (REPO_ROOT / "docs/performance.md").read_text()
    rows = re.findall(r"\| (\d+) \| (0\.\d+) \| (\d+) \| ([\d.]+) \| (\d+) \|", page)
    assert [int(row[0]) for row in rows] == [64, 128, 256, 512]
    for num_images, *told in rows:
        batch_bytes = dataloader.multicrop_bytes(VIEWS, int(num_images))
        num_ahead = system.MAX_WORKERS * system.prefetch_batches(system.MAX_WORKERS, batch_bytes)
        gb = num_ahead * batch_bytes / 1e9
        assert told == [f"{batch_bytes / 1e9:.2f}", str(num_ahead), f"{gb:.1f}", f"{8 * gb:.0f}"]
