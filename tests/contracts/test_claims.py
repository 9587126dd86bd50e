"""Every claim names what exists, and the differences of the paper are those between its printed numbers."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from reproduce.config.compose import group_options
from reproduce.harness.spec import claims, tables
from reproduce.harness.spec.claims import Claim, Comparison

GOLDEN: dict[str, Any] = yaml.safe_load((Path(__file__).parents[1] / "golden" / "paper_tables.yaml").read_text())
EVERY = claims.load()
ROW_OF_TABLE_3 = {"simclr_1000ep": "SimCLR"}
"""Printed for others' public weights; the claim compares our own training of as many epochs."""
COMPARISONS = [(claim.claim, part) for claim in EVERY for part in claim.compare]


def printed(of: str, part: Comparison) -> set[float]:
    """What the paper's tables print for one side: an experiment, or a row of Table 3."""
    found = set()
    for table in (tables.load(name, "paper") for name in tables.names("paper")):
        for row in table.rows:
            for key, cell in row.cells.items():
                column = table.columns[key]
                same_column = (column.eval, column.metric) == (part.eval, part.metric)
                same_row = row.pretrain == of or (row.method == ROW_OF_TABLE_3.get(of, of) and table.table == "table3")
                if same_row and same_column and isinstance(cell, float):
                    found.add(cell)
    return found


@pytest.mark.parametrize("claim", EVERY, ids=lambda claim: claim.claim)
def test_a_claim_names_what_exists(claim: Claim) -> None:
    assert claim.statement.endswith(".") and claim.section
    for need in claim.measurements():
        assert need.pretrain in group_options("experiment")
        assert not need.eval or need.eval in group_options("eval")


@pytest.mark.parametrize(("claim", "part"), COMPARISONS)
def test_claimed_difference_matches_the_tables(claim: str, part: Comparison) -> None:
    (higher,), (lower,) = printed(part.higher, part), printed(part.lower, part)
    assert round(higher - lower, 1) == part.printed > 0


def test_prototype_bound_matches_the_text() -> None:
    (spread,) = [claim.spread for claim in EVERY if claim.spread]
    assert spread.max_points == GOLDEN["text"]["C.1_max_spread_top1_3k_to_100k_prototypes"]
    rows = {row.pretrain: row for row in tables.load("table8", "paper").rows}
    numbers = {rows[experiment].variant.split()[0] for experiment in spread.experiments}
    assert numbers == {str(number) for number in GOLDEN["table8"]["rows"] if 3000 <= number <= 100_000}


def test_every_claim_is_listed() -> None:
    assert [claim.claim for claim in EVERY] == [
        *("learned-prototypes", "soft-assignments", "hard-converges-faster", "three-iterations", "enough-prototypes"),
        *("more-crops", "small-crops-clustering", "over-simclr", "over-supervised", "wider", "longer"),
    ]
    assert len({claim.claim for claim in EVERY}) == len(EVERY)
