"""The labels that a check gives: verdicts of cells and statuses of claims, with their symbols."""

from enum import StrEnum
from typing import Literal


class Verdict(StrEnum):
    """Whether a cell agrees with what it is compared with, or why that is not known."""

    REPRODUCED = "reproduced"
    WITHIN = "within"
    BETTER = "better"
    WORSE = "worse"
    INCONCLUSIVE = "inconclusive"
    CHANGED = "changed"
    NO_BASELINE = "no baseline"
    NOT_RUN = "not run"
    FAILED = "failed"
    UNAVAILABLE = "unavailable"
    REPORTED = "reported"
    EXPECTED_FAILURE = "expected failure"


class ClaimStatus(StrEnum):
    """Whether a claim of the paper, or one part of it, holds in our runs."""

    HOLDS = "holds"
    CONTRADICTED = "contradicted"
    INCONCLUSIVE = "inconclusive"
    CHANGED = "changed"
    NOT_RUN = "not run"


Tendency = Literal["right", "wrong", ""]
"""The direction in which one seed per side points, compared with the claim; "" if its known error covers zero."""

IntervalKind = Literal["seeds", "seeds, corrected", "test set", "new seeds", "same seed"]
"""What an interval is of: the mean of our seeds (at 90%, or at the level that a correction over the table leaves), one
seed's test set, and, of unchanged code, new seeds or the recorded seed under other arithmetic."""

AGREEING = frozenset({Verdict.REPRODUCED, Verdict.WITHIN, Verdict.EXPECTED_FAILURE})
DISAGREEING = frozenset({Verdict.BETTER, Verdict.WORSE, Verdict.INCONCLUSIVE, Verdict.CHANGED})

SYMBOLS: dict[Verdict, str] = {
    Verdict.REPRODUCED: "●",
    Verdict.WITHIN: "✓",
    Verdict.BETTER: "▲",
    Verdict.WORSE: "▼",
    Verdict.INCONCLUSIVE: "◆",
    Verdict.CHANGED: "≠",
    Verdict.NO_BASELINE: "◌",
    Verdict.NOT_RUN: "○",
    Verdict.FAILED: "✕",
    Verdict.UNAVAILABLE: "∅",
    Verdict.REPORTED: "·",
    Verdict.EXPECTED_FAILURE: "⊗",
}

CLAIM_SYMBOLS: dict[ClaimStatus, str] = {
    ClaimStatus.HOLDS: "●",
    ClaimStatus.CONTRADICTED: "▼",
    ClaimStatus.INCONCLUSIVE: "◆",
    ClaimStatus.CHANGED: "≠",
    ClaimStatus.NOT_RUN: "○",
}
