"""NPID, NPID++ and PIRL: ours beside the official memory banks, in double precision, through four steps of SGD."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.oracles.bank_ranks import PARTS
from tests.oracles.official import outcome_of


def both(part: str, processes: int, tmp_path: Path) -> dict[str, Any]:
    """What the official code and ours made of one part on so many processes."""
    return outcome_of("tests.oracles.bank_ranks", part, PARTS[part][1], processes, tmp_path / "out.pt")


@pytest.mark.parametrize(
    ("part", "processes"),
    [
        ("lemniscate", 1),
        ("npid_pp", 1),
        ("npid_pp", 2),
        ("npid_pp", 4),
        ("pirl", 1),
        ("pirl", 2),
    ],  # NPID's own bank is of one process
)
def test_losses_bank_and_weights_are_equal(part: str, processes: int, tmp_path: Path) -> None:
    """Both compare with the same noise, and both set Z by the first batch."""
    found = both(part, processes, tmp_path)
    torch.testing.assert_close(found["ours"], found["theirs"], rtol=1e-10, atol=1e-12)
