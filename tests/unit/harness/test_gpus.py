"""GPUs among runs: all that are wanted or none, nobody's twice, and freed at the end."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from reproduce.errors import UserError
from reproduce.harness import machine
from reproduce.harness.execute import gpus, workflow
from reproduce.harness.machine import GpuInfo
from reproduce.harness.plan import build
from reproduce.harness.plan.model import Request


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(gpus, "POLL_SECONDS", 0)


def tries(number: int) -> Callable[[], bool]:
    """Goes on so often, and then no more: what never gets its GPUs fails here instead of waiting."""
    left = iter([True] * number + [False])
    return lambda: next(left)


def test_acquire_waits_until_enough_gpus_are_free_and_locks_none_meanwhile() -> None:
    with gpus.acquire(["0", "1", "2"], 2, tries(3)) as first:
        assert first == ["0", "1"]
        with gpus.acquire(["0", "1", "2"], 2, tries(1)) as second:
            assert second is None
        with gpus.acquire(["0", "1", "2"], 1, tries(3)) as third:
            assert third == ["2"]
    with gpus.acquire(["0", "1", "2"], 8, tries(3)) as all_of_them:
        assert all_of_them == ["0", "1", "2"]


def test_the_first_gpu_of_two_jobs_is_not_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster shows each job its own GPUs alone, numbered from 0."""

    def sees(*uuids: str) -> None:
        monkeypatch.setattr(machine, "list_gpus", lambda: [GpuInfo("A", 80.0, "550", uuid) for uuid in uuids])

    sees("GPU-a")
    with gpus.acquire(["0"], 1, tries(1)) as first:
        sees("GPU-b")
        with gpus.acquire(["0"], 1, tries(1)) as second:
            assert first == second == ["0"]
            sees("GPU-c", "GPU-b")
            with gpus.acquire(["0", "1"], 2, tries(1)) as third, gpus.acquire(["GPU-a"], 1, tries(1)) as fourth:
                assert third is None and fourth is None


def test_a_lock_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs").mkdir()
    folder = tmp_path / f"reproduce-gpus-{os.getuid()}"
    folder.symlink_to(tmp_path / "theirs")
    with pytest.raises(UserError, match=r"is another's"), gpus.acquire(["0"], 1, tries(1)):
        pass
    assert not list((tmp_path / "theirs").iterdir())
    folder.unlink()
    folder.mkdir()
    me = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: me + 1)
    folder.rename(tmp_path / f"reproduce-gpus-{os.getuid()}")
    with pytest.raises(UserError, match=r"is another's"), gpus.acquire(["0"], 1, tries(1)):
        pass


def test_without_gpus_nothing_is_acquired() -> None:
    with gpus.acquire([], 4, tries(3)) as mine:
        assert mine == []


@pytest.mark.parametrize(
    ("allowed", "names"),
    [(None, ["0", "1"]), ("1", ["1"]), ("GPU-a1, GPU-b2", ["GPU-a1", "GPU-b2"]), ("", []), ("-1", [])],
)
def test_visible_gpus_follow_cuda_visible_devices(
    monkeypatch: pytest.MonkeyPatch, allowed: str | None, names: list[str]
) -> None:
    monkeypatch.setattr(machine, "list_gpus", lambda: [GpuInfo("A", 80.0, "550")] * 2)
    monkeypatch.delenv(gpus.VISIBLE_GPUS, raising=False)
    if allowed is not None:
        monkeypatch.setenv(gpus.VISIBLE_GPUS, allowed)
    assert gpus.visible_gpus() == names
    monkeypatch.setattr(machine, "list_gpus", lambda: "nvidia-smi is not there")
    assert gpus.visible_gpus() == []


def test_a_run_of_more_processes_than_gpus_is_refused_before_anything_starts(checkout: Path) -> None:
    plan = build.build_plan(Request(("table5",), "paper", source="released"))
    detectors = [run.run_id for run in plan.runs.values() if run.num_processes == 16]
    with pytest.raises(UserError, match=r"takes 16 processes, .* there are 8 GPUs: CLUSTER_OPTIONS=\"detector_proc"):
        workflow._check_gpus(plan, detectors, 8)
    workflow._check_gpus(plan, detectors, 16)
    workflow._check_gpus(plan, detectors, 0)  # on CPUs a process needs none
