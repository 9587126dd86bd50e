"""Trainings that learn nothing, each provoked for real: the collapse detector stops them and suggests what to try."""

from pathlib import Path

import pytest

from reproduce import pretrain
from reproduce.errors import EXIT_TRAINING_FAILED
from reproduce.files import read_json
from tests.runs import TINY, call, curve, tiny_pictures


def stopped(monkeypatch: pytest.MonkeyPatch, results: Path, *overrides: str) -> str:
    """Return the error of a run that the collapse detector stops; failure.json says "collapsed", so no retry."""
    status, said = call(
        pretrain.main, monkeypatch, *TINY, "collapse.on_collapse=stop", f"paths.results={results}", *overrides
    )
    assert status == EXIT_TRAINING_FAILED, said
    assert said.count("\n") == 1
    (failure,) = results.glob("smoke/*/failure.json")
    assert read_json(failure)["status"] == "collapsed"
    assert "method.epsilon=0.03" in said
    return said


def test_one_sinkhorn_iteration_collapses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Table 10's failure. (A network as small as this one needs luck with three iterations, too.)"""
    tiny_pictures(tmp_path, num_train=15)  # a handful would be learned by heart
    few = ("epochs=18", "method.epsilon=0.05", "collapse.patience_epochs=4", f"paths.data_root={tmp_path}")
    said = stopped(monkeypatch, tmp_path / "results", "experiment=swav_400ep_sinkhorn1", *few)
    assert "same embedding" in said or "ln K" in said


def test_too_high_a_learning_rate_collapses(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = ("epochs=400", "collapse.patience_epochs=25", f"paths.data_root={data}", "optimizer.lr=50")
    assert "lower optimizer.lr" in stopped(monkeypatch, tmp_path, "experiment=swav_400ep", *few)


def test_identical_images_collapse(black_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = ("epochs=20", "collapse.patience_epochs=2", f"paths.data_root={black_data}")
    said = stopped(monkeypatch, tmp_path / "results", "experiment=swav_400ep", *few)
    assert "check that the images differ" in said
    assert len(curve(tmp_path / "results")) <= 8


def test_nonfinite_loss_dumps_its_tensors(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = ("optimizer.lr=1e30", "optimizer.warmup_epochs=0", f"paths.data_root={data}", f"paths.results={tmp_path}")
    status, said = call(pretrain.main, monkeypatch, *TINY, "experiment=swav_400ep", *few)
    assert status == EXIT_TRAINING_FAILED
    assert "lower optimizer.lr" in said
    (kept,) = tmp_path.glob("smoke/*/not-finite-rank0.pt")
    assert str(kept) in said
