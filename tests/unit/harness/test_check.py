"""From results to verdicts, files and exit statuses."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from reproduce.__main__ import main
from reproduce.errors import UserError
from reproduce.harness import record_baseline
from reproduce.harness.plan import build, plan_file
from reproduce.harness.plan.model import Plan, Request, Run
from reproduce.harness.report.files import Changes, write_verdicts
from reproduce.harness.report.page import write_page
from reproduce.harness.report.render_tables import table_as_markdown, table_as_text
from reproduce.harness.report.tracking import log_changes
from reproduce.harness.spec import baseline, tables
from reproduce.harness.verdict import check, notes, stats
from reproduce.harness.verdict.cells import CellVerdict
from reproduce.harness.verdict.claims import check_claims
from reproduce.harness.verdict.labels import SYMBOLS, ClaimStatus, Verdict
from reproduce.harness.verdict.seeds_needed import seeds_in_words
from tests.unit.harness.verdicts import cells_of


def printed(run: Run) -> float:
    """Return the number that Table 3 prints for an evaluation; 0 for a pretraining."""
    table = tables.load("table3", "paper")
    cells = {(row.pretrain, table.eval_of(row, key)): row.cells[key] for row in table.rows for key in row.cells}
    return tables.parse_printed(cells.get((run.parent_name.partition(",")[0], run.name))) or 0.0


def paper(*seeds: int) -> Plan:
    return build.build_plan(Request(("table3",), "paper", seeds or (0,)))


def record(finish: Callable[..., None]) -> None:
    """Record five seeds of Table 7: 49, 50, 51, 50, 50."""
    plan = build.build_plan(Request(("table7",), "smoke", (0, 1, 2, 3, 4)))
    for run in plan.runs.values():
        finish(run, [49.0, 50.0, 51.0, 50.0, 50.0][run.seed])
    record_baseline.record(plan)


def swav(plan: Plan, checked: list[check.TableVerdict]) -> dict[str, CellVerdict]:
    return {key: judged for row, key, judged in checked[0].cells() if row.label == "SwAV"}


def test_one_seed_against_the_paper(checkout: Path, finish: Callable[..., None]) -> None:
    plan = paper()
    for run in plan.runs.values():
        finish(run, printed(run) + {"voc07_svm": 2.0, "linear_inat18": -0.8}.get(run.name, 0.0))
    checked = check.check_tables(plan)
    verdicts = {key: str(judged.verdict) for key, judged in swav(plan, checked).items()}
    assert verdicts == {
        "places205": "within",
        "voc07": "better",
        "inat18": "within",
        "voc0712_ap50": "within",
        "coco_ap": "within",
    }
    assert check.exit_status(checked) == check.DISAGREES
    voc07 = swav(plan, checked)["voc07"]
    assert (voc07.expected, voc07.mean) == (88.9, 90.9)
    assert voc07.difference == pytest.approx(2.0)
    assert voc07.margin is not None and voc07.margin.source


def test_several_seeds_against_the_paper(checkout: Path, finish: Callable[..., None], sing: Callable[..., Run]) -> None:
    sing("linear_places205", 56.6)
    plan = paper(0, 1, 2)
    for run in plan.runs.values():
        finish(run, printed(run) + (0.15 if run.name == "coco_detr" else 0.05) * (run.seed % 3))
    checked = check.check_tables(plan)
    places = swav(plan, checked)["places205"]
    assert places.verdict == Verdict.REPRODUCED
    assert places.values == {0: 56.7, 1: pytest.approx(56.75), 2: pytest.approx(56.8)}
    assert places.interval is not None and places.interval[0] < 56.75 < places.interval[1]
    frozen = {key: judged.verdict for key, judged in swav(plan, checked).items() if key in ("voc07", "inat18")}
    assert frozen == {"voc07": Verdict.WITHIN, "inat18": Verdict.WITHIN}  # without a canary not reproduced
    coco = swav(plan, checked)["coco_ap"]  # inside its narrow margin, but for the correction over 34 cells
    assert coco.verdict == Verdict.INCONCLUSIVE and "But not after Holm's correction over 34 cells" in coco.reason
    detector = swav(plan, checked)["voc0712_ap50"]
    assert len(detector.values) == 15
    assert "The 90% interval of 3 seeds, the means of 15 runs, lies inside the margin" in detector.reason
    assert check.exit_status(checked) == check.DISAGREES


def test_rows_of_others_say_why_nothing_ran(checkout: Path) -> None:
    checked = check.check_tables(paper())
    verdicts = {(row.method, key): judged for row, key, judged in checked[0].cells()}
    assert verdicts["SimCLR", "voc07"].verdict == Verdict.NOT_RUN
    assert "google-research/simclr" in verdicts["SimCLR", "voc07"].reason
    assert all(judged.reason.endswith(".") for judged in verdicts.values())
    assert checked[0].rows[1]["inat18"] is None  # RotNet: the paper prints a dash


def test_a_missing_run_is_incomplete_and_a_rows_own_not_run_is_not(checkout: Path, finish: Callable[..., None]) -> None:
    plan = paper()
    assert check.exit_status(check.check_tables(plan)) == check.INCOMPLETE
    for run in plan.runs.values():
        finish(run, printed(run))
    assert check.exit_status(check.check_tables(plan)) == check.AGREES


def test_one_failed_seed_fails_the_cell(checkout: Path, finish: Callable[..., None]) -> None:
    plan = paper(0, 1, 2)
    collapsed = next(run for run in plan.runs.values() if (run.name, run.seed) == ("swav_800ep", 1))
    for run in plan.runs.values():
        if run.seed != 1:
            finish(run, printed(run))
    collapsed.failure.parent.mkdir(parents=True)
    collapsed.failure.write_text(json.dumps({"status": "collapsed", "exit_status": 1, "message": "loss stuck at ln K"}))
    checked = check.check_tables(plan)
    places = swav(plan, checked)["places205"]
    assert places.verdict == Verdict.FAILED
    assert places.reason == "swav_800ep, seed 1 collapsed: loss stuck at ln K."
    assert check.exit_status(checked) == check.INCOMPLETE


def test_nothing_recorded_is_no_baseline(smoke: Plan, finish: Callable[..., None]) -> None:
    for run in smoke.runs.values():
        finish(run)
    checked = check.check_tables(smoke)
    assert {judged.verdict for table in checked for _, _, judged in table.cells()} == {Verdict.NO_BASELINE}
    assert check.exit_status(checked) == check.NOTHING_COMPARED


@pytest.mark.parametrize(("value", "verdict"), [(50.5, "within"), (80.0, "better"), (20.0, "worse")])
def test_compare_with_recorded_numbers(checkout: Path, finish: Callable[..., None], value: float, verdict: str) -> None:
    record(finish)
    plan = build.build_plan(Request(("table7",), "smoke"))
    for run in plan.runs.values():
        finish(run, value)
    checked = check.check_tables(plan)
    for _, _, judged in checked[0].cells():
        assert (judged.verdict, judged.expected) == (verdict, 50.0)
        assert judged.interval is not None and judged.interval[0] < 50 < judged.interval[1]
        assert "config has changed" not in judged.reason
        assert judged.recorded_match is False
        assert "Seed 0 gave 49.00 when it was recorded, on another machine or with other code." in judged.reason
    assert check.recorded_matches(checked) == "0 of 4 cells give their recorded seeds' numbers again, to the digit"


def test_recorded_seeds_that_give_the_same_again_are_counted(checkout: Path, finish: Callable[..., None]) -> None:
    record(finish)
    checked = check.check_tables(build.build_plan(Request(("table7",), "smoke", (0, 1))))
    assert check.recorded_matches(checked) == "4 of 4 cells give their recorded seeds' numbers again, to the digit"
    others = build.build_plan(Request(("table7",), "smoke", (7, 8)))
    for run in others.runs.values():
        finish(run, 50.0)
    assert check.recorded_matches(check.check_tables(others)) == ""


def test_tables_without_recorded_numbers_leave_the_others_verdicts_alone(
    checkout: Path, finish: Callable[..., None]
) -> None:
    """Only what is compared shares the family's false alarms."""
    record(finish)
    alone = check.check_tables(build.build_plan(Request(("table7",), "smoke")))[0].rows
    company = check.check_tables(build.build_plan(Request(("table3", "table7"), "smoke")))[1].rows
    assert alone == company


def test_a_config_changed_since_the_recording_is_noted(checkout: Path, finish: Callable[..., None]) -> None:
    record(finish)
    path = baseline.path("smoke")
    path.write_text(path.read_text().replace("run_id: knn_head-s0-", "run_id: knn_head-s0-0"))
    checked = check.check_tables(build.build_plan(Request(("table7",), "smoke")))
    assert all("The config has changed since the recording." in judged.reason for _, _, judged in checked[0].cells())


def test_other_images_have_no_baseline(
    checkout: Path, finish: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    record(finish)
    plan = build.build_plan(Request(("table7",), "smoke", data="mine", data_config="cifar10"))
    for run in plan.runs.values():
        finish(run, 90.0)
    assert {judged.verdict for _, _, judged in check.check_tables(plan)[0].cells()} == {Verdict.NO_BASELINE}
    own = ["--data", "mine", "--data-config", "cifar10"]
    capsys.readouterr()
    assert main(["check", "table7", *own]) == check.NOTHING_COMPARED
    assert "notices" not in capsys.readouterr().out


def test_five_finetunings_of_one_network_are_one_seed(checkout: Path, finish: Callable[..., None]) -> None:
    """They agree to .1 points, which says nothing about another pretraining."""
    plan = paper()
    for run in plan.runs.values():
        finish(run, printed(run) + 0.1 * (run.seed - 2))
    judged = swav(plan, check.check_tables(plan))["voc0712_ap50"]
    assert len(judged.values) == 5 and judged.mean == pytest.approx(82.6)
    assert (judged.verdict, judged.p_value) == (Verdict.WITHIN, None)
    assert "One seed, the mean of 5 runs on its network, is inside the margin" in judged.reason


def test_two_pretrainings_are_two_seeds_however_often_each_is_finetuned(
    checkout: Path, finish: Callable[..., None]
) -> None:
    """Their means are 82.3 and 82.9: two values, whose interval at one degree of freedom is wide, corrected or not."""
    plan = paper(0, 1)
    for run in plan.runs.values():
        finish(run, printed(run) + (0.3 if run.seed // 5 else -0.3))
    judged = swav(plan, check.check_tables(plan))["voc0712_ap50"]
    assert judged.verdict == Verdict.INCONCLUSIVE and "more seeds would tell" in judged.reason
    assert judged.interval is not None and judged.interval_kind == "seeds, corrected"
    assert sum(judged.interval) / 2 == pytest.approx(82.6)
    assert judged.margin and judged.p_value
    alone = stats.compare_with_printed([82.3, 82.9], 82.6, judged.margin.points).p_value
    assert alone and judged.p_value > alone
    half = 0.3 * stats.t_quantile(1 - 0.05 * alone / judged.p_value, 1)  # of two values, not of ten
    assert judged.interval == pytest.approx((82.6 - half, 82.6 + half))


def test_other_images_are_not_compared_with_the_paper(checkout: Path, finish: Callable[..., None]) -> None:
    plan = build.build_plan(Request(("table7",), "paper", data="mine", data_config="cifar10"))
    for run in plan.runs.values():
        finish(run, 65.7)
    made = {judged.reason: judged.verdict for _, _, judged in check.check_tables(plan)[0].cells() if judged.needed}
    assert set(made.values()) == {Verdict.NO_BASELINE}
    assert any("reads CIFAR-10, but the paper used ILSVRC2012: there is nothing" in reason for reason in made)


@pytest.mark.parametrize("content", ['{"run_id": "knn_head-s0', "", "[]", '{"run_id": "another", "metrics": {}}'])
def test_a_damaged_result_is_named_and_kept(smoke: Plan, finish: Callable[..., None], content: str) -> None:
    for run in smoke.runs.values():
        finish(run)
    knn = next(run for run in smoke.runs.values() if run.name == "knn_head")
    knn.result.write_text(content)
    with pytest.raises(UserError, match=f"{knn.result}.*delete it and run"):
        check.check_tables(smoke)
    assert knn.result.read_text() == content


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ({"metrics": {"knn20": None, "knn200": 50.0}}, r"metrics\.knn20 is null, not a number"),
        ({"metrics": {"knn20": "50", "knn200": 50.0}}, r'metrics\.knn20 is "50", not a number'),
        ({"metrics": []}, "metrics has no keys"),
        ({"counts": {"num_test_images": None}}, r"counts\.num_test_images is null"),
        ({"counts": None}, "counts has no keys"),
        ({"wall_seconds": None}, "wall_seconds is null"),
        ({"device_hours": True}, "device_hours is true"),
        ({"provenance": "mine"}, "provenance has no keys"),
    ],
)
def test_a_result_that_no_run_writes_is_named(
    smoke: Plan, finish: Callable[..., None], damage: dict[str, Any], says: str
) -> None:
    for run in smoke.runs.values():
        finish(run)
    write_verdicts(smoke, check.check_tables(smoke))
    knn = next(run for run in smoke.runs.values() if run.name == "knn_head")
    finish(knn, **damage)
    for command in (lambda: check.check_tables(smoke), lambda: write_page("smoke"), lambda: plan_file.write(smoke)):
        with pytest.raises(UserError, match=f"^{knn.result} is damaged \\({says}.*\\); delete it and run"):
            command()


def test_a_result_without_its_metric_is_named(smoke: Plan, finish: Callable[..., None]) -> None:
    for run in smoke.runs.values():
        finish(run)
    knn = next(run for run in smoke.runs.values() if run.name == "knn_head")
    finish(knn, metrics={"knn20": 50.0})
    with pytest.raises(UserError, match=f"{knn.result} has no metric 'knn200', only knn20. Correct"):
        check.check_tables(smoke)


def test_files_hold_the_verdicts(checkout: Path, finish: Callable[..., None]) -> None:
    plan = paper()
    for run in plan.runs.values():
        if run.name != "voc07_svm":
            finish(
                run, printed(run) + (5.0 if (run.parent_name, run.name) == ("swav_800ep", "linear_inat18") else 0.04)
            )
    checked = check.check_tables(plan)
    assert write_verdicts(plan, checked).tables == checked  # everything changed
    data = json.loads(Path("reports/paper/table3.json").read_text())
    cell = data["rows"][-1]["cells"]["inat18"]
    assert (cell["verdict"], cell["mean"], cell["margin"]["points"]) == ("better", 53.6, 0.8)
    assert data["rows"][1]["cells"]["coco_ap"] is None
    runs = Counter((run["kind"], run["label"].partition(" ")[0]) for run in data["runs"])
    finetunings = {name: number for (_, name), number in runs.items() if name.startswith("voc_detection")}
    # as many as the authors' means are of, each by the protocol of its row
    assert finetunings == {
        "voc_detection": 5, "voc_detection_supervised": 5, "voc_detection_bownet": 5, "voc_detection_moco": 2 * 5,
        "voc_detection_pirl": 2 * 5,
    }  # fmt: skip
    assert runs["evaluate", "coco_detr"] == 3 * 3  # the best of three learning rates
    assert (runs["evaluate", "voc07_svm"], runs["pretrain", "swav_800ep,"]) == (9, 1)
    text = Path("reports/paper/table3.md").read_text()
    assert "| SwAV | 56.7 → **56.7** ✓ within° | 88.9 ○ not run | 48.6 → **53.6** ▲ better° |" in text
    assert "| SimCLR | 53.3† ○ not run |" in text
    suite = ElementTree.parse("reports/paper/junit.xml").getroot()[0]
    assert {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": str(sum(checked[0].score().values())),
        "failures": "1",
        "errors": "9",
        "skipped": str(sum(checked[0].score().values()) - 34),
    }


def test_the_same_verdicts_are_no_changes(checkout: Path) -> None:
    plan = paper()
    assert write_verdicts(plan, check.check_tables(plan)).tables
    assert write_verdicts(plan, check.check_tables(plan)) == Changes([], [])


def test_every_verdict_is_shown() -> None:
    assert set(SYMBOLS) == set(Verdict)
    assert len(set(SYMBOLS.values())) == len(Verdict)


def test_tracking_never_fails_a_check(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from reproduce.engine.runs import tracking

    def fail(*_: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(tracking, "log_table", fail)
    plan = paper()
    assert log_changes(plan, Changes(check.check_tables(plan), [])) == "OSError: no network"


def test_tracking_gets_a_row_for_each_cell(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from reproduce.engine.runs import tracking

    sent = []
    monkeypatch.setattr(tracking, "log_table", lambda *given: sent.append(given))
    plan = paper()
    assert log_changes(plan, Changes(check.check_tables(plan), [])) is None
    ((name, scale, folder, columns, rows),) = sent
    assert (name, scale, folder) == ("table3", "paper", Path("reports/paper"))
    assert all(len(row) == len(columns) for row in rows)
    assert len(rows) == sum(value is not None for row in tables.load(name, scale).rows for value in row.cells.values())


def test_what_does_not_beat_its_control_is_worse(checkout: Path, finish: Callable[..., None]) -> None:
    """Seeds that spread widely make a wide interval; a trunk that learned nothing must not hide in it."""
    controlled(checkout)
    table = checkout / "tables" / "smoke" / "table7.yaml"
    five = build.build_plan(Request(("table7",), "smoke", (0, 1, 2, 3, 4)))
    learned(five, finish, [20.0, 60.0, 80.0, 70.0, 50.0])
    record_baseline.record(five)

    plan = build.build_plan(Request(("table7",), "smoke"))
    verdicts = swav(plan, check.check_tables(plan))
    assert {judged.verdict for judged in verdicts.values()} == {Verdict.WORSE}
    assert "+0.0 points from Random trunk" in verdicts["knn20"].reason
    table.write_text(table.read_text().replace("metric: knn20,", "metric: knn20, has_control: false,"))
    uncontrolled = build.build_plan(Request(("table7",), "smoke"))
    found = {key: judged.verdict for key, judged in swav(uncontrolled, check.check_tables(uncontrolled)).items()}
    assert found == {"knn20": Verdict.WITHIN, "knn200": Verdict.WORSE}
    better = build.build_plan(Request(("table7",), "smoke", (0, 1)))
    assert {judged.verdict for judged in swav(better, check.check_tables(better)).values()} == {Verdict.WITHIN}


def controlled(checkout: Path) -> None:
    """Give Table 7's row its control back, which the fixture takes from it."""
    table = checkout / "tables" / "smoke" / "table7.yaml"
    table.write_text(table.read_text().replace("pretrain: swav_800ep", "pretrain: swav_800ep, control: Random trunk"))


def learned(plan: Plan, finish: Callable[..., None], values: list[float], control: float = 20.0) -> None:
    """Finish all runs: SwAV's with the value of its seed, the random trunk's with the control's."""
    names = {run.run_id: run.name for run in plan.runs.values()}
    for run in plan.runs.values():
        of_swav = "swav_800ep" in [run.name, *(names[parent] for parent in run.parents)]
        finish(run, values[run.seed] if of_swav else control)


@pytest.mark.parametrize(
    ("value", "verdict", "says"),
    [
        (24.0, "worse", "+4.0 points from Random trunk; learning must beat it by more than 5."),
        (26.0, "no baseline", "yet. It beats its control: +6.0 points from Random trunk, more than 5."),
    ],
)
def test_the_control_decides_if_nothing_is_recorded(
    checkout: Path, finish: Callable[..., None], value: float, verdict: str, says: str
) -> None:
    controlled(checkout)
    plan = build.build_plan(Request(("table7",), "smoke"))
    learned(plan, finish, [value])
    judged = swav(plan, checked := check.check_tables(plan))["knn20"]
    assert judged.verdict == verdict and says in judged.reason
    assert check.exit_status(checked) == (check.DISAGREES if verdict == "worse" else check.AGREES)


@pytest.mark.parametrize("value", [21.0, 60.0])
def test_on_other_images_the_difference_from_the_control_is_noted(
    checkout: Path, finish: Callable[..., None], value: float
) -> None:
    """The bar of five points was set for the generated images."""
    controlled(checkout)
    plan = build.build_plan(Request(("table7",), "smoke", data="mine", data_config="cifar10"))
    learned(plan, finish, [value])
    judged = swav(plan, checked := check.check_tables(plan))["knn20"]
    assert judged.verdict == Verdict.NO_BASELINE and check.exit_status(checked) == check.NOTHING_COMPARED
    told = f"{value - 20:+.1f} points from Random trunk; the required 5 apply to the scale's own images."
    assert told in judged.reason


def test_an_interval_of_all_percentages_is_noted(checkout: Path, finish: Callable[..., None]) -> None:
    five = build.build_plan(Request(("table7",), "smoke", (0, 1, 2, 3, 4)))
    learned(five, finish, [5.0, 95.0, 50.0, 10.0, 90.0])
    record_baseline.record(five)
    plan = build.build_plan(Request(("table7",), "smoke", (2,)))
    alone = swav(plan, check.check_tables(plan))["knn20"]
    assert (alone.verdict, alone.interval) == (Verdict.WITHIN, (0.0, 100.0))
    assert "their interval is [0, 100], which says nothing; no control is set here." in alone.reason
    controlled(checkout)
    plan = build.build_plan(Request(("table7",), "smoke", (2,)))
    held = swav(plan, check.check_tables(plan))["knn20"]
    assert held.verdict == Verdict.WITHIN
    assert "says nothing; the verdict rests on the control alone, +30.0 points from Random trunk." in held.reason
    finish(plan.runs[held.run_ids[0]], 20.0)
    assert swav(plan, check.check_tables(plan))["knn20"].verdict == Verdict.WORSE


def ablation(name: str, finish: Callable[..., None], *seeds: int, value: float = 73.9, broken: str = "") -> Plan:
    """Return the plan of an ablation table whose runs gave `value`; those of the experiment `broken` collapsed."""
    plan = build.build_plan(Request((name,), "paper", seeds or (0,)))
    plan_file.write(plan)
    for run in plan.runs.values():
        if broken and broken in (run.name, run.parent_name):
            if run.kind == "pretrain":
                collapse(run)
        else:
            finish(run, value + run.seed / 1000)
    return plan


def collapse(run: Run, status: str = "collapsed") -> None:
    run.failure.parent.mkdir(parents=True, exist_ok=True)
    run.failure.write_text(json.dumps({"status": status, "exit_status": 1, "message": "loss stuck at ln K"}))


def test_a_detector_without_patience_is_no_failure_of_the_paper(
    checkout: Path, finish: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `collapse.patience_epochs=0` any training collapses. (Here the bar is moved, not every config.)"""
    monkeypatch.setattr(notes, "MIN_PATIENCE_EPOCHS", 2.5)
    plan = ablation("table10", finish, broken="swav_400ep_sinkhorn1")
    one = cells_of(plan)["SwAV, 1 iteration/top1"]
    assert one.verdict == Verdict.INCONCLUSIVE
    assert "was stopped after 2 epochs (collapse.patience_epochs)" in one.reason
    (claim,) = [each for each in check_claims(plan) if each.claim.claim == "three-iterations"]
    assert claim.status == ClaimStatus.INCONCLUSIVE


@pytest.mark.parametrize("status", ["collapsed", "failed"])
def test_a_row_of_recorded_numbers_that_may_fail(checkout: Path, finish: Callable[..., None], status: str) -> None:
    """Table 10 at lite prints nothing, but its first row's training may collapse as the paper's does."""
    plan = build.build_plan(Request(("table10",), "lite"))
    plan_file.write(plan)
    for run in plan.runs.values():
        if "swav_400ep_sinkhorn1" not in (run.name, run.parent_name):
            finish(run, 30.0 if "random" in (run.name, run.parent_name) else 60.0)
        elif run.kind == "pretrain":
            collapse(run, status)
    one = cells_of(plan)["SwAV, 1 iteration/top1"]
    assert one.verdict == (Verdict.EXPECTED_FAILURE if status == "collapsed" else Verdict.FAILED)
    assert "loss stuck at ln K" in one.reason
    for run in plan.runs.values():
        if "swav_400ep_sinkhorn1" in (run.name, run.parent_name):
            run.failure.unlink(missing_ok=True)
            finish(run, 60.0)
    assert cells_of(plan)["SwAV, 1 iteration/top1"].verdict == Verdict.NO_BASELINE


def test_a_failure_that_the_paper_prints_agrees(checkout: Path, finish: Callable[..., None]) -> None:
    plan = ablation("table10", finish, broken="swav_400ep_sinkhorn1")
    one = cells_of(plan)["SwAV, 1 iteration/top1"]
    assert (one.verdict, one.printed, one.needed) == (Verdict.EXPECTED_FAILURE, "fail", True)
    assert "loss stuck at ln K" in one.reason
    checked = check.check_tables(plan)
    assert check.exit_status(checked) == check.AGREES
    write_verdicts(plan, checked)
    assert "| SwAV, 1 iteration | fail ⊗ expected failure |" in Path("reports/paper/table10.md").read_text()
    suite = ElementTree.parse("reports/paper/junit.xml").getroot()[0]
    assert (suite.get("failures"), suite.get("errors"), suite.get("skipped")) == ("0", "0", "0")


def test_a_training_that_converges_where_the_papers_fails_disagrees(
    checkout: Path, finish: Callable[..., None]
) -> None:
    plan = ablation("table10", finish)
    one = cells_of(plan)["SwAV, 1 iteration/top1"]
    assert (one.verdict, one.mean, one.difference) == (Verdict.BETTER, 73.9, None)
    checked = check.check_tables(plan)
    assert check.exit_status(checked) == check.DISAGREES
    assert "fail → **73.9** ▲ better" in table_as_markdown(plan, checked[0])
    assert "In the paper the training fails" in table_as_text(checked[0])


def test_an_expected_failure_is_a_collapse_of_every_seed(checkout: Path, finish: Callable[..., None]) -> None:
    plan = ablation("table10", finish, 0, 1, broken="swav_400ep_sinkhorn1")
    evaluation = next(run for run in plan.runs.values() if run.parent_name == "swav_400ep_sinkhorn1" and run.seed == 1)
    pretraining = plan.runs[evaluation.parents[0]]
    pretraining.failure.unlink()
    assert cells_of(plan)["SwAV, 1 iteration/top1"].verdict == Verdict.NOT_RUN
    collapse(pretraining, status="failed")
    assert cells_of(plan)["SwAV, 1 iteration/top1"].verdict == Verdict.FAILED
    finish(pretraining)
    finish(evaluation, 70.0)
    assert cells_of(plan)["SwAV, 1 iteration/top1"].verdict == Verdict.INCONCLUSIVE


def test_the_test_set_is_part_of_one_seeds_interval(checkout: Path, finish: Callable[..., None]) -> None:
    """73.9 +- 0.6 and ours 74.6: outside, but 1.645 sqrt(.746 .254 / 50000) = 0.32 points reach inside."""
    judged = cells_of(ablation("table9", finish, value=74.6))["SwAV, learned prototypes/top1"]
    assert judged.verdict == Verdict.INCONCLUSIVE
    assert judged.interval == pytest.approx((74.6 - 0.3202, 74.6 + 0.3202), abs=1e-3)
    assert judged.interval_kind == "test set"


def test_many_cells_are_corrected_for(checkout: Path, finish: Callable[..., None], sing: Callable[..., Run]) -> None:
    """Each of Table 9's cells alone is `reproduced`, two of them barely: p = 0.03, and Holm doubles it."""
    sing("linear_imagenet", 75.3)
    plan = ablation("table9", finish, 0, 1, 2)
    centres = {"swav_400ep_fixed_prototypes": 73.1 + 0.375, "swav_400ep_hard": 73.3 + 0.375}
    for run in plan.runs.values():
        if run.kind == "evaluate":
            finish(run, centres.get(run.parent_name, 73.9) + 0.1 * (run.seed - 1))
    judged = [cell for _, _, cell in check.check_tables(plan)[0].cells()]
    alone = [
        stats.compare_with_printed(list(cell.values.values()), cell.expected, 0.6)
        for cell in judged
        if cell.expected is not None and cell.mean is not None
    ]
    assert [compared.verdict for compared in alone] == [Verdict.REPRODUCED] * 4
    adjusted = stats.holm([compared.p_value for compared in alone if compared.p_value is not None])
    assert [cell.p_value for cell in judged] == pytest.approx(adjusted)
    assert [str(cell.verdict) for cell in judged] == ["reproduced", "inconclusive", "reproduced", "inconclusive"]
    assert "But not after Holm's correction over 4 cells (p = 0.06" in judged[1].reason
    for cell, own in zip(judged, alone, strict=True):  # the interval shown is that of the corrected level
        assert cell.expected is not None and cell.interval is not None and cell.interval_kind == "seeds, corrected"
        assert cell.interval[0] < own.interval.low and own.interval.high < cell.interval[1]
        inside = cell.interval[1] <= cell.expected + 0.6 and cell.interval[0] >= cell.expected - 0.6
        assert inside == (cell.verdict == Verdict.REPRODUCED)
    for run in plan.runs.values():
        if run.kind == "evaluate" and run.parent_name == "swav_400ep_2x160_4x96":
            run.result.unlink()
    left = [cell for _, _, cell in check.check_tables(plan)[0].cells() if cell.p_value is not None]
    assert len(left) == 2 and all("over 4 cells" in cell.reason for cell in left)  # the family is what is planned


def test_a_plan_says_how_many_seeds_a_verdict_needs(checkout: Path, finish: Callable[..., None]) -> None:
    plan = ablation("table9", finish, 0, 1, 2)
    lines = seeds_in_words(build.build_plan(Request(("table9", "table3"), "paper")))
    assert lines[0].startswith("seeds for a verdict on Table 9 (4 cells tested together; 90% probability")
    assert lines[1] == "  Top-1: 5, at a spread (sd) of 0.2 points (published), margin 0.6"
    assert "Table 3 (34 cells" in lines[2]
    assert lines[3].startswith("  Places205: no spread over seeds is known; margin 0.8: 3 up to 0.05, 5 up to 0.18, ")
    for run in plan.runs.values():
        finish(run, 73.9 + 0.4 * run.seed)
    assert seeds_in_words(plan)[1] == "  Top-1: 10, at a spread (sd) of 0.4 points (measured here), margin 0.6"


def test_a_margin_widened_after_the_result_helps_nobody(checkout: Path, finish: Callable[..., None]) -> None:
    """Hard assignments are printed with 73.3, ours have 74.7: outside of .6, inside of 1.5."""
    plan = ablation("table9", finish, value=74.7)
    before = cells_of(plan)["SwAV, hard assignments/top1"]
    assert before.verdict == Verdict.BETTER and "margin was" not in before.reason
    path = checkout / "tables" / "paper" / "table9.yaml"
    path.write_text(path.read_text().replace("points: 0.6", "points: 1.5"))
    wider = build.build_plan(plan.request)
    plan_file.write(wider)  # planning again keeps the margins recorded for a run that is done
    judged = cells_of(wider)["SwAV, hard assignments/top1"]
    assert judged.verdict == Verdict.BETTER
    assert (judged.margin_before, judged.margin and judged.margin.points) == (0.6, 0.6)
    assert "The margin was widened to 1.5 points after the result existed; the earlier 0.6 is used." in judged.reason
    for run in wider.runs.values():
        run.result.unlink()
    plan_file.write(wider)
    for run in wider.runs.values():
        finish(run, 74.7)
    judged = cells_of(wider)["SwAV, hard assignments/top1"]
    assert (judged.margin_before, judged.verdict) == (None, Verdict.WITHIN)


def test_a_margin_narrowed_after_the_result_counts(checkout: Path, finish: Callable[..., None]) -> None:
    plan = ablation("table9", finish, value=73.7)
    assert cells_of(plan)["SwAV, hard assignments/top1"].verdict == Verdict.WITHIN
    path = checkout / "tables" / "paper" / "table9.yaml"
    path.write_text(path.read_text().replace("points: 0.6", "points: 0.01"))
    judged = cells_of(build.build_plan(plan.request))["SwAV, hard assignments/top1"]
    assert (judged.margin_before, judged.margin and judged.margin.points) == (0.6, 0.01)
    assert judged.verdict == Verdict.BETTER
    assert "The margin was narrowed after the result existed: it was 0.6 points." in judged.reason


@pytest.mark.parametrize(
    "content", ["null", "[]", '{"knn_head-s0": 3}', '{"knn_head-s0": {"table3/SwAV/voc07": "wide"}}']
)
def test_damaged_margins_are_named(checkout: Path, finish: Callable[..., None], content: str) -> None:
    plan = paper()
    for run in plan.runs.values():
        finish(run)
    path = Path("results/paper/margins.json")
    path.write_text(content)
    with pytest.raises(UserError, match=f"^{path} is damaged: .* Restore it, or delete it"):
        check.check_tables(plan)


def test_a_result_without_a_margin_noted_before_says_so(checkout: Path, finish: Callable[..., None]) -> None:
    plan = build.build_plan(Request(("table9",), "paper"))
    for run in plan.runs.values():
        finish(run, 73.9)
    assert all("No margin was recorded before" in judged.reason for judged in cells_of(plan).values())


def test_a_misprint_is_noted_as_the_papers(checkout: Path) -> None:
    plan = build.build_plan(Request(("table2",), "paper"))
    swav = cells_of(plan)["SwAV, R50-w2/params_millions"]
    assert (swav.printed, swav.expected) == (188, 93.9)
    assert "Erratum of the paper, which prints 188" in swav.reason
    text = table_as_markdown(plan, check.check_tables(plan)[0])
    assert "| SwAV, R50-w2 | 93.9 (printed 188) ○ not run |" in text


def test_margin_is_in_the_columns_unit(checkout: Path, finish: Callable[..., None]) -> None:
    plan = build.build_plan(Request(("table2",), "paper"))
    (run,) = [run for run in plan.runs.values() if run.name == "parameters_swav_w4_400ep"]
    finish(run, 375.4)
    assert "margin of 0.5 millions around 375" in cells_of(plan)["SwAV, R50-w4/params_millions"].reason


def test_a_figure_that_is_not_drawn_is_incomplete(checkout: Path, finish: Callable[..., None]) -> None:
    plan = build.build_plan(Request(("figure3",), "paper"))
    assert {run.kind for run in plan.runs.values()} == {"pretrain"} and len(plan.runs) == 2
    checked = check.check_tables(plan)
    assert check.exit_status(checked) == check.INCOMPLETE
    assert "swav_400ep_hard, seed 0" in table_as_text(checked[0])
    write_verdicts(plan, checked)
    for run in plan.runs.values():
        finish(run)
    assert check.exit_status(check.check_tables(plan)) == check.AGREES


@pytest.mark.parametrize("name", tables.names("paper"))
def test_every_table_is_judged_with_nothing_run(checkout: Path, name: str) -> None:
    plan = build.build_plan(Request((name,), "paper"))
    checked = check.check_tables(plan)
    assert check.exit_status(checked) == (check.INCOMPLETE if plan.cells else check.AGREES)
    write_verdicts(plan, checked)
    for _, _, judged in checked[0].cells():
        assert judged.reason.endswith(".") and judged.verdict in (
            *(Verdict.NOT_RUN, Verdict.REPORTED, Verdict.UNAVAILABLE),
        )
