"""Data-loader workers without a setting: those of a GPU's share of the cores. GPUs and cores are fakes."""

from pathlib import Path
from typing import Any

import pytest

from reproduce import system
from reproduce.config.compose import compose
from reproduce.data.pipeline import dataloader


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
