"""What is edited in tables, margins and recordings after a result changes no verdict, and is named."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from reproduce.harness import revision
from reproduce.harness.plan import build, plan_file
from reproduce.harness.plan.model import Plan, Request
from reproduce.harness.spec import tables
from reproduce.harness.verdict.cells import CellVerdict
from reproduce.harness.verdict.labels import Verdict
from tests.unit.harness.verdicts import Finish, cells_of

COMMIT = "d" * 40
HARD = "SwAV, hard assignments/top1"


@pytest.fixture(autouse=True)
def history(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A git that knows the tables as they are at the start of a test, under the commit of its results."""
    texts = {path.relative_to(checkout).as_posix(): path.read_text() for path in checkout.glob("tables/*/table*.yaml")}

    def git(*arguments: str) -> str:
        commit, _, path = arguments[-1].partition(":")
        return texts.get(path, "").strip() if arguments[:2] == ("cat-file", "blob") and commit == COMMIT else ""

    monkeypatch.setattr(revision, "git", git)
    revision.run_code_fingerprint.cache_clear()
    yield
    revision.run_code_fingerprint.cache_clear()


def done(finish: Finish, value: float, commit: str = COMMIT) -> Plan:
    """Table 9 with results of a commit."""
    plan = build.build_plan(Request(("table9",), "paper"))
    plan_file.write(plan)
    for run in plan.runs.values():
        finish(run, value, provenance={"git_commit": commit, "git_dirty": False})
    return plan


def after(old: str, new: str) -> CellVerdict:
    """The verdict on hard assignments after an edit of the table."""
    path = tables.TABLES_DIR / "paper" / "table9.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    return cells_of(build.build_plan(Request(("table9",), "paper")))[HARD]


def test_an_edited_number_is_judged_as_it_was(finish: Finish) -> None:
    assert cells_of(done(finish, 75.0))[HARD].verdict == Verdict.BETTER
    judged = after("cells: {top1: 73.3}", "cells: {top1: 75.0}")
    assert (judged.verdict, judged.expected) == (Verdict.BETTER, 73.3)
    assert "judged as at the result's commit dddddddddddd: printed number 73.3, now 75.0." in judged.reason


def test_an_added_erratum_is_judged_without(finish: Finish) -> None:
    done(finish, 75.0)
    judged = after("cells: {top1: 73.3}", "errata: {top1: {value: 75.0, source: I say so}}\n    cells: {top1: 73.3}")
    assert (judged.verdict, judged.expected) == (Verdict.BETTER, 73.3)
    assert "erratum none, now 75.0" in judged.reason


def test_a_widened_margin_helps_nobody_even_if_the_recorded_margins_are_gone(finish: Finish) -> None:
    done(finish, 74.7)
    Path("results/paper/margins.json").unlink()
    judged = after("points: 0.6", "points: 1.5")
    assert judged.verdict == Verdict.BETTER and judged.margin is not None and judged.margin.points == 0.6
    assert "The margin was widened to 1.5 points after the result existed; the earlier 0.6 is used." in judged.reason


def test_a_result_of_an_unknown_commit_is_judged_by_the_table_as_it_is(finish: Finish) -> None:
    done(finish, 75.0, commit="e" * 40)
    judged = after("cells: {top1: 73.3}", "cells: {top1: 75.0}")
    assert judged.verdict == Verdict.WITHIN and "Edited" not in judged.reason


def test_a_bar_lowered_after_the_result_does_not_count(finish: Finish) -> None:
    """At scale smoke: without recorded differences, learning must beat its control by 5 points."""
    path = tables.TABLES_DIR / "smoke" / "table7.yaml"
    control = "control: Random trunk, min_points_above_control"
    plan = build.build_plan(Request(("table7",), "smoke"))
    for run in plan.runs.values():
        finish(run, 50.0, provenance={"git_commit": COMMIT, "git_dirty": False})
    assert all(cell.verdict == Verdict.NO_BASELINE for cell in cells_of(plan).values())  # the fixture took the controls
    path.write_text(path.read_text().replace("pretrain: swav_800ep", f"{control}: 0.0, pretrain: swav_800ep", 1))
    judged = cells_of(build.build_plan(plan.request))
    assert any("control none, now Random trunk" in cell.reason for cell in judged.values())
    assert all("beats its control" not in cell.reason for cell in judged.values())
