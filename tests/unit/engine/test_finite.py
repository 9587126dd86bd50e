"""What is said where a loss is not finite, on the rank that made it and on the others."""

from pathlib import Path
from typing import Any

import pytest
import torch

from reproduce.engine import nan_guard
from reproduce.engine.nan_guard import FiniteGuard
from reproduce.errors import TrainingFailed


def test_a_healthy_rank_says_that_another_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nan_guard, "all_reduce_max", torch.ones_like)
    guard = FiniteGuard(lambda _: pytest.fail("it kept a loss that is finite"))
    guard.take(7, torch.tensor(7.98))
    with pytest.raises(TrainingFailed, match=r"^the loss of another rank is not finite at step 7: lower optimizer\.lr"):
        guard.check()


def test_the_rank_that_made_it_keeps_what_made_it() -> None:
    kept: list[dict[str, Any]] = []

    def keep(made: dict[str, Any]) -> Path:
        kept.append(made)
        return Path("kept.pt")

    guard = FiniteGuard(keep)
    guard.take(3, torch.tensor(float("nan")), scores=torch.zeros(2))
    with pytest.raises(TrainingFailed, match=r"the loss is nan at step 3: .*; what made it is in kept\.pt$"):
        guard.check()
    assert kept[0]["scores"].shape == (2,)
