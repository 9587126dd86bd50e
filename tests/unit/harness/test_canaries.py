"""No number counts as reproduced before the authors' own checkpoint gave theirs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from reproduce.harness import canary, check, planning, tables
from reproduce.harness.judge import Judged
from reproduce.harness.plan import Request, Run
from reproduce.harness.statistics import Verdict

Finish = Callable[..., None]
Sing = Callable[..., Run]


def judged(finish: Finish) -> Judged:
    """Table 9's first cell, three seeds of ours on the printed number."""
    plan = planning.make(Request(("table9",), "paper", (0, 1, 2)))
    plan.write()
    for run in plan.runs.values():
        finish(run, 73.9 + 0.01 * run.seed)
    checked = check.check(plan)
    return next(judged for _, _, judged in checked[0].judged())


def test_a_canary_that_agreed(checkout: Path, finish: Finish, sing: Sing) -> None:
    sing("linear_imagenet", 75.1)
    cell = judged(finish)
    assert (cell.verdict, cell.canary) == (Verdict.REPRODUCED, "agreed")
    assert "Its canary agreed: the authors' swav_800ep_pretrain.pth.tar" in cell.reason
    assert "top1_best 75.10 where 75.3 is printed (margin 0.2)" in cell.reason


def test_a_canary_that_is_missing_keeps_a_number_from_counting(checkout: Path, finish: Finish) -> None:
    cell = judged(finish)
    assert (cell.verdict, cell.canary) == (Verdict.WITHIN, "missing")
    assert "Not preceded by its canary, so it does not count as reproduced" in cell.reason
    plan = planning.make(Request(("table9",), "paper", (0, 1, 2)))
    checked = check.check(plan)
    assert "✓ within°" in check.as_text(checked[0]) and canary.FOOTNOTE in check.as_text(checked[0])
    check.write(plan, checked)
    assert canary.FOOTNOTE in Path("reports/paper/table9.md").read_text()


def test_a_canary_that_disagrees_puts_the_evaluation_in_doubt(checkout: Path, finish: Finish, sing: Sing) -> None:
    sing("linear_imagenet", 75.09)
    cell = judged(finish)
    assert (cell.verdict, cell.canary) == (Verdict.INCONCLUSIVE, "disagreed")
    assert "the evaluation itself is in doubt" in cell.reason


@pytest.mark.parametrize(
    ("overrides", "checkpoint"),
    [(("protocol.epochs=3",), "swav_800ep_pretrain.pth.tar"), ((), "mine.pth.tar")],
    ids=["another protocol", "another checkpoint"],
)
def test_only_the_same_evaluation_of_the_authors_checkpoint_counts(
    checkout: Path, finish: Finish, sing: Sing, overrides: tuple[str, ...], checkpoint: str
) -> None:
    sing("linear_imagenet", 75.3, *overrides, checkpoint=checkpoint)
    assert judged(finish).canary == "missing"


def test_all_numbers_of_an_evaluation_must_agree(checkout: Path, sing: Sing, finish: Finish) -> None:
    run = sing("knn", 59.2)  # knn200 is printed with 55.8
    assert canary.listen(run).state == "disagreed"
    finish(run, metrics={"knn20": 59.25, "knn200": 55.75})
    assert canary.listen(run).state == "agreed"


def test_every_canary_is_a_printed_number_of_the_published_checkpoint() -> None:
    for each in canary.load().canaries:
        table = tables.load(each.table, "paper")
        (row,) = [row for row in table.rows if row.label == each.row]
        assert row.pretrain == "swav_800ep" and table.columns[each.column].eval
        assert isinstance(row.cells[each.column], float)
        own = table.margin(row, each.column)
        assert own is not None and each.margin.points < own.points  # nothing was trained: it must land closer
