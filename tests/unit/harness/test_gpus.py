"""GPUs among runs: all that are wanted or none, nobody's twice, and freed at the end."""

from pathlib import Path

import pytest

from reproduce.harness import machine
from reproduce.harness.machine import Gpu
from reproduce.harness.workflow import gpus


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(gpus, "POLL_SECONDS", 0)


def test_a_run_waits_until_enough_are_free_and_holds_none_meanwhile() -> None:
    tries = iter([True, False])
    with gpus.held(["0", "1", "2"], 2, lambda: True) as first:
        assert first == ["0", "1"]
        with gpus.held(["0", "1", "2"], 2, lambda: next(tries)) as second:
            assert second is None
        with gpus.held(["0", "1", "2"], 1, lambda: True) as third:
            assert third == ["2"]
    with gpus.held(["0", "1", "2"], 8, lambda: True) as all_of_them:
        assert all_of_them == ["0", "1", "2"]


def test_without_gpus_nothing_is_held() -> None:
    with gpus.held([], 4, lambda: True) as mine:
        assert mine == []


@pytest.mark.parametrize(
    ("allowed", "names"),
    [(None, ["0", "1"]), ("1", ["1"]), ("GPU-a1, GPU-b2", ["GPU-a1", "GPU-b2"]), ("", []), ("-1", [])],
)
def test_what_is_visible(monkeypatch: pytest.MonkeyPatch, allowed: str | None, names: list[str]) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: [Gpu("A", 80.0, "550")] * 2)
    monkeypatch.delenv(gpus.ALLOWED, raising=False)
    if allowed is not None:
        monkeypatch.setenv(gpus.ALLOWED, allowed)
    assert gpus.visible() == names
    monkeypatch.setattr(machine, "gpus", lambda: "nvidia-smi is not there")
    assert gpus.visible() == []
