"""The error of a loss that is not finite, on the rank that computed it and on the others."""

from pathlib import Path
from typing import Any

import pytest
import torch

from reproduce.engine import nan_guard
from reproduce.engine.nan_guard import FiniteGuard, nonfinite_remedy
from reproduce.errors import TrainingFailed


def test_a_healthy_rank_names_another_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nan_guard, "all_reduce_max", torch.ones_like)
    guard = FiniteGuard(lambda _: pytest.fail("dumped a finite loss"), nonfinite_remedy("optimizer.lr"))
    guard.update(7, torch.tensor(7.98))
    with pytest.raises(
        TrainingFailed, match=r"^the loss of another rank is not finite at step 7: lower optimizer\.lr, or"
    ):
        guard.check()


def test_the_failing_rank_dumps_its_tensors() -> None:
    dumped: list[dict[str, Any]] = []

    def dump(tensors: dict[str, Any]) -> Path:
        dumped.append(tensors)
        return Path("dump.pt")

    guard = FiniteGuard(dump)
    guard.update(3, torch.tensor(float("nan")), scores=torch.zeros(2))
    with pytest.raises(TrainingFailed, match=r"the loss is nan at step 3: .*; its tensors are in dump\.pt$"):
        guard.check()
    assert dumped[0]["scores"].shape == (2,)
