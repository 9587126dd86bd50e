"""GPUs that are missing end a run in one sentence before it reads data; the GPUs here are fakes."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch.distributed as dist

from reproduce import measure, pretrain
from reproduce.engine.distributed import collectives
from reproduce.errors import UserError
from reproduce.system import LAUNCHER, SHARED_GPUS
from tests.runs import TINY, call


def have_gpus(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: number > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: number)


def test_a_gpu_that_was_requested_and_is_missing_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    have_gpus(monkeypatch, 0)
    nowhere = (f"paths.data_root={tmp_path / 'none'}", f"paths.results={tmp_path}", "cluster.gpus_per_process=1")
    for main, overrides in ((pretrain.main, TINY), (measure.main, ("measurement=cost", "cluster.num_threads=1"))):
        status, said = call(main, monkeypatch, *overrides, *nowhere)
        assert status == 2
        assert "cluster.gpus_per_process=1, but CUDA finds no GPU" in said
        assert said.count("\n") == 1
    collectives.validate_gpus(0)


def test_a_gpu_of_the_harness_that_torch_cannot_use_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every run would train on the processor, for weeks, beside idle GPUs."""
    have_gpus(monkeypatch, 0)
    monkeypatch.setenv(SHARED_GPUS, "0,1")
    with pytest.raises(UserError, match=r"nvidia-smi lists GPUs on .*, and torch can use none: check the driver"):
        collectives.validate_gpus(0)
    monkeypatch.setattr("torch.version.cuda", None)
    with pytest.raises(UserError, match=r"torch can use none: this torch is a CPU build: `make clean`, then"):
        collectives.validate_gpus(0)
    monkeypatch.setenv(SHARED_GPUS, "")
    collectives.validate_gpus(0)


@pytest.mark.parametrize("number", [1, 2])
def test_more_processes_than_gpus_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    have_gpus(monkeypatch, number)
    monkeypatch.setenv(LAUNCHER, str(os.getppid()))
    monkeypatch.setenv("WORLD_SIZE", str(number + 1))
    monkeypatch.setenv("LOCAL_RANK", str(number))
    nowhere = (f"paths.data_root={tmp_path / 'none'}", f"paths.results={tmp_path}")
    status, said = call(pretrain.main, monkeypatch, *TINY, *nowhere)
    assert status == 2
    assert f"process {number + 1} of" in said
    assert f"has no GPU of its own: CUDA finds {number} " in said
    assert said.count("\n") == 1
    monkeypatch.setenv("LOCAL_RANK", str(number - 1))
    collectives.validate_gpus(1)


def test_a_rank_without_its_gpu_ends_every_rank() -> None:
    def outcomes(*kinds: str) -> list[BaseException | None]:
        store = dist.HashStore()  # type: ignore[attr-defined]
        with ThreadPoolExecutor(len(kinds)) as ranks:
            asked = [
                ranks.submit(collectives.require_same_device, store, rank, len(kinds), kind)
                for rank, kind in enumerate(kinds)
            ]
        return [each.exception() for each in asked]

    assert outcomes("cuda", "cuda", "cuda") == outcomes("cpu", "cpu", "cpu") == [None] * 3
    found = outcomes("cuda", "cpu", "cuda")
    assert all(isinstance(each, UserError) for each in found)
    assert {str(each) for each in found} == {str(found[0])}
    assert "CUDA finds no GPU for rank 1 of 3" in str(found[0])
