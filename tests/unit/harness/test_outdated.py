"""A result counts where it is of the checkpoint that stands: plan, check, claims and report decide it in one place."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from reproduce.__main__ import main
from reproduce.harness.plan import build
from reproduce.harness.plan.model import Plan, Request, Run
from reproduce.harness.plan.run_state import RunState, run_states, sync_mtimes
from reproduce.harness.report.files import write_verdicts
from reproduce.harness.report.page import write_page
from reproduce.harness.verdict import check, strict
from reproduce.harness.verdict.cells import CellVerdict
from reproduce.harness.verdict.claims import check_claims
from reproduce.harness.verdict.labels import ClaimStatus, Verdict
from tests.unit.harness.verdicts import Finish

LATER = "2026-01-02T00:00:00+00:00"


def swav(plan: Plan) -> Run:
    return next(run for run in plan.runs.values() if run.name == "swav_800ep")


def finish_all(plan: Plan, finish: Finish, **more: str) -> None:
    for run in plan.runs.values():
        sha = f"sha of {run.parents[0] if run.parents else run.run_id}"
        finish(run, provenance={"checkpoint_sha256": sha, "git_commit": "c" * 40}, **more)


def knn20(plan: Plan) -> dict[str, CellVerdict]:
    return {row.label: judged for row, key, judged in check.check_tables(plan)[0].cells() if key == "knn20"}


@pytest.fixture
def table7(checkout: Path, finish: Finish) -> Plan:
    plan = build.build_plan(Request(("table7",), "smoke"))
    finish_all(plan, finish)
    return plan


def again_by_sha(run: Run, finish: Finish) -> None:
    finish(run, provenance={"checkpoint_sha256": "another"})


def again_by_time(run: Run, finish: Finish) -> None:
    finish(run, finished=LATER, provenance={"checkpoint_sha256": None})  # an older version did not quote it


@pytest.mark.parametrize("make_again", [again_by_sha, again_by_time])
def test_a_retrained_checkpoint_outdates_its_evaluations(
    table7: Plan, finish: Finish, make_again: Callable[[Run, Finish], None], capsys: pytest.CaptureFixture[str]
) -> None:
    make_again(swav(table7), finish)
    judged = knn20(table7)
    assert (judged["SwAV"].verdict, judged["Random trunk"].verdict) == (Verdict.NOT_RUN, Verdict.NO_BASELINE)
    assert judged["SwAV"].reason == (
        "No result yet: knn_head of swav_800ep, seed 0 (its result belongs to a checkpoint that was trained again "
        "since; make reproduce-... (python -m reproduce run) makes it again)."
    )
    to_do = {name for name, state in run_states(table7).items() if not state.settled}
    unjudged = {
        name
        for row, _, cell in check.check_tables(table7)[0].cells()
        if cell.verdict == Verdict.NOT_RUN
        for name in cell.run_ids
    }
    assert unjudged == to_do and len(to_do) == 1
    assert main(["check", "table7"]) == check.INCOMPLETE
    assert "trained again since" in capsys.readouterr().out


def test_an_identical_retrained_checkpoint_keeps_its_evaluations(table7: Plan, finish: Finish) -> None:
    run = swav(table7)
    finish(run, finished=LATER, provenance={"checkpoint_sha256": f"sha of {run.run_id}"})
    assert set(run_states(table7).values()) == {RunState.DONE}


def test_a_removed_pretraining_outdates_its_evaluations(table7: Plan) -> None:
    shutil.rmtree(swav(table7).folder)
    judged = knn20(table7)["SwAV"]
    assert judged.verdict == Verdict.NOT_RUN
    assert "belongs to a checkpoint of swav_800ep, seed 0, which has no result here" in judged.reason
    assert "copy that result.json, too: the checkpoint is not needed" in judged.reason


def test_copied_results_count_whatever_their_mtimes_and_without_checkpoints(table7: Plan) -> None:
    """Nothing has a checkpoint.pt here, and the copy wrote the pretrainings last."""
    for run in table7.runs.values():
        os.utime(run.result, (2**30, 2**30 + (not run.parents)))
    assert set(run_states(table7).values()) == {RunState.DONE}
    assert knn20(table7)["SwAV"].mean == 50.0


def test_sync_mtimes_makes_snakemake_agree_with_run_states(table7: Plan, finish: Finish) -> None:
    again_by_sha(swav(table7), finish)
    for run in table7.runs.values():
        os.utime(run.result, (2**30, 2**30 + (not run.parents)))
    sync_mtimes(table7)
    for run in table7.runs.values():
        for parent in (table7.runs[name] for name in run.parents):
            redone = not run.result.exists() or run.result.stat().st_mtime < parent.result.stat().st_mtime
            assert redone == (parent.name == "swav_800ep")


def test_other_seeds_of_an_earlier_checkpoint_are_not_noted(checkout: Path, finish: Finish) -> None:
    both = build.build_plan(Request(("table7",), "smoke", (0, 1)))
    finish_all(both, finish)
    one = build.build_plan(Request(("table7",), "smoke"))
    assert "Seeds that were not requested gave: 1" in knn20(one)["SwAV"].reason
    again_by_sha(next(run for run in both.runs.values() if (run.name, run.seed) == ("swav_800ep", 1)), finish)
    assert "not requested" not in knn20(one)["SwAV"].reason


def test_claims_strict_and_report_ignore_an_outdated_result(checkout: Path, finish: Finish) -> None:
    plan = build.build_plan(Request(("table9",), "paper"))
    finish_all(plan, finish)
    hard = next(run for run in plan.runs.values() if run.name == "swav_400ep_hard")
    again_by_sha(hard, finish)
    answers = check_claims(plan)
    (soft,) = [answer for answer in answers if answer.claim.claim == "soft-assignments"]
    assert soft.status == ClaimStatus.NOT_RUN and soft.incomplete
    assert "trained again since" in soft.parts[0].reason
    assert any("of 5 results" in sentence for sentence in strict.open_issues(plan, check.check_tables(plan), answers))
    write_verdicts(plan, check.check_tables(plan), answers)
    text = write_page("paper").read_text()
    assert "1 of 6 results are not judged because their checkpoint has since been made again or removed" in text
    assert text.count("not judged: measured on another checkpoint") == 1
    cell = json.loads(Path("reports/paper/table9.json").read_text())["rows"]
    assert [row["cells"]["top1"]["verdict"] for row in cell].count("not run") == 1


def test_a_single_run_repeats_an_outdated_result(
    table7: Plan, finish: Finish, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from reproduce.harness.execute import process_group

    run, started = swav(table7), []

    def run_process(command: list[str], *_: object, **__: object) -> int:
        started.append(command)
        return 1

    monkeypatch.setattr(process_group, "run_process", run_process)
    monkeypatch.setattr("reproduce.harness.data_check.generate_images", lambda _: None)
    ask = ["evaluate", "knn_head", "--checkpoint", run.run_id]
    assert main(ask) == 0 and not started
    again_by_sha(run, finish)
    assert main(ask) == 1 and started
    assert "trained again since" in capsys.readouterr().out
