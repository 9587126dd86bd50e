"""What is edited in tables, margins and recordings after a result changes no verdict, and is named."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from reproduce.harness import revision
from reproduce.harness.plan import build, plan_file
from reproduce.harness.plan.model import Plan, Request
from reproduce.harness.spec import baseline, tables
from reproduce.harness.spec.baseline import RecordedNumbers
from reproduce.harness.verdict.cells import CellVerdict
from reproduce.harness.verdict.labels import Verdict
from tests.unit.harness.verdicts import Finish, cells_of

COMMIT = "d" * 40
RANDOM_KNN = "knn_head of random, seed 0"
HARD = "SwAV, hard assignments/top1"


def recording(value: float, commit: str = "a" * 40, run_id: str = "") -> str:
    """A recording of one cell, whose five seeds are around a value."""
    run = next(run for run in build.build_plan(Request(("table7",), "smoke")).runs.values() if run.label == RANDOM_KNN)
    values = [value + change for change in (0.0, 0.1, -0.1, 0.2, -0.2)]
    header = {"commit": commit, "dirty": False, "date": "2026-01-01", "seeds": [0, 1, 2, 3, 4], "packages": {}}
    cell = {"values": values, "num_test_images": 1000, "run_id": run_id or run.run_id}
    machine = {"machine": {"cpu": "a CPU", "cores": 2}}
    content = {"recorded": header | machine, "cells": {"random/knn_head/knn20": cell}, "wall_seconds": {}}
    return yaml.safe_dump(content)


@pytest.fixture(autouse=True)
def history(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A git that knows the tables as they are at the start of a test, under the commit of its results."""
    kept = [*checkout.glob("tables/*/table*.yaml"), checkout / "tables" / "smoke" / "recorded.yaml"]
    kept[-1].write_text(recording(52.0))
    texts = {path.relative_to(checkout).as_posix(): path.read_text() for path in kept}

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


def test_the_table_of_the_result_that_finished_first_counts(finish: Finish, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed 1 was done before the edit, seed 0 after it."""
    path = tables.TABLES_DIR / "paper" / "table9.yaml"
    texts = {COMMIT: path.read_text(), "e" * 40: path.read_text().replace("cells: {top1: 73.3}", "cells: {top1: 75.0}")}
    path.write_text(texts["e" * 40])
    monkeypatch.setattr(revision, "file_at", lambda commit, name: texts[commit] if "table9" in name else "")
    plan = build.build_plan(Request(("table9",), "paper", (0, 1)))
    for run in plan.runs.values():
        commit, month = (COMMIT, 1) if run.seed else ("e" * 40, 2)
        provenance = {"git_commit": commit, "git_dirty": False}
        finish(run, 75.0 + run.seed, provenance=provenance, finished=f"2026-0{month}-01T00:00:00+00:00")
    assert cells_of(plan)[HARD].expected == 73.3


def test_a_bar_lowered_after_the_result_does_not_count(finish: Finish, monkeypatch: pytest.MonkeyPatch) -> None:
    """At scale smoke: without recorded differences, learning must beat its control by 5 points."""
    path = tables.TABLES_DIR / "smoke" / "table7.yaml"
    control = "control: Random trunk, min_points_above_control"
    plan = build.build_plan(Request(("table7",), "smoke"))
    for run in plan.runs.values():
        finish(run, 50.0, provenance={"git_commit": COMMIT, "git_dirty": False})
    monkeypatch.setattr(baseline, "parse", lambda *_: RecordedNumbers())
    baseline.path("smoke").unlink()
    assert all(cell.verdict == Verdict.NO_BASELINE for cell in cells_of(plan).values())  # the fixture took the controls
    path.write_text(path.read_text().replace("pretrain: swav_800ep", f"{control}: 0.0, pretrain: swav_800ep", 1))
    judged = cells_of(build.build_plan(plan.request))
    assert any("control none, now Random trunk" in cell.reason for cell in judged.values())
    assert all("beats its control" not in cell.reason for cell in judged.values())


def judged_by(finish: Finish, recorded: str, value: float = 52.0) -> CellVerdict:
    """The verdict on the random trunk, whose results are of `COMMIT`, after the recording became another."""
    plan = build.build_plan(Request(("table7",), "smoke"))
    for run in plan.runs.values():
        finish(run, value, provenance={"git_commit": COMMIT, "git_dirty": False})
    baseline.path("smoke").write_text(recorded)
    return cells_of(plan)["Random trunk/knn20"]


def test_an_edited_recording_is_judged_as_it_was(finish: Finish) -> None:
    assert judged_by(finish, recording(52.0)).verdict == Verdict.WITHIN
    judged = judged_by(finish, recording(40.0), value=40.0)
    assert (judged.verdict, judged.expected) == (Verdict.WORSE, 52.0)
    assert "commit dddddddddddd: recorded values 52.00 (mean of 5), now 40.00 (mean of 5)." in judged.reason


def test_a_deleted_recording_is_judged_as_it_was(finish: Finish) -> None:
    judged = judged_by(finish, recording(52.0).replace("random/knn_head", "other/knn_head"), value=40.0)
    assert judged.verdict == Verdict.WORSE
    assert "recorded values 52.00 (mean of 5), now none." in judged.reason


def test_edited_numbers_of_the_same_seed_are_named(finish: Finish) -> None:
    edited = recording(52.0).replace("    run_id", "    same_seed: [45.0, 45.1, 45.2]\n    run_id")
    judged = judged_by(finish, edited)
    assert judged.interval_kind == "new seeds" and judged.recorded_match
    assert "recorded values of the same seed none, now 45.10 (mean of 3)." in judged.reason


@pytest.mark.parametrize("more", [{"commit": f"{'a' * 40}, {COMMIT}"}, {"run_id": "knn_head-s0-0123456789"}])
def test_a_recording_that_the_results_made_or_of_another_config_counts(finish: Finish, more: dict[str, str]) -> None:
    judged = judged_by(finish, recording(40.0, **more))
    assert judged.expected == 40.0 and "Edited" not in judged.reason


def test_a_first_recording_counts(finish: Finish, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revision, "git", lambda *_: "")
    assert judged_by(finish, recording(40.0)).expected == 40.0
