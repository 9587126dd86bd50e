"""FROM=released: public weights through our evaluations, without a training."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from models.zoo import entries
from reproduce.__main__ import main
from reproduce.config.compose import compose, group_options
from reproduce.files import write_json
from reproduce.harness.plan import build, plan_file
from reproduce.harness.plan.model import Plan, Request
from reproduce.harness.report.render_tables import table_as_data
from reproduce.harness.verdict import check, strict
from reproduce.harness.verdict.claims import check_claims
from reproduce.harness.verdict.first_steps import FirstStepsCheck
from reproduce.harness.verdict.labels import ClaimStatus, Verdict
from tests.unit.harness.verdicts import cells_of


def released(*tables: str) -> Plan:
    return build.build_plan(Request(tables, "paper", source="released"))


def test_every_row_with_public_weights_is_planned_and_none_is_trained(checkout: Path) -> None:
    plan = released("table3")
    assert {run.kind for run in plan.runs.values()} == {"evaluate"}
    assert {"SwAV", "MoCov2", "Supervised", "SimCLR"} <= {cell.row for cell in plan.cells}
    swav = next(
        run for run in plan.runs.values() if run.parent_name == "released:swav_800ep" and run.name == "voc07_svm"
    )
    assert "checkpoint='released:swav_800ep'" in swav.overrides
    assert compose("evaluate", swav.overrides).normalize.std[0] == 0.229  # VISSL's, whatever SwAV was trained with
    moco = next(run for run in plan.runs.values() if run.parent_name.startswith("released:moco_v2"))
    assert "normalize=imagenet" in moco.overrides


@pytest.mark.parametrize(
    ("evaluation", "red"),
    [("linear_imagenet", 0.228), ("knn_head", 0.228), ("knn", 0.229)]
    + [(name, 0.229) for name in ("linear_places205", "linear_inat18", "voc07_svm", "coco_detr")],
)
def test_swavs_weights_get_the_pixels_of_each_protocols_own_code(evaluation: str, red: float) -> None:
    asked = [f"eval={evaluation}", "checkpoint=x", "scale=paper"]
    weights = build.preprocessing_overrides(entries.get_entry("swav_800ep"), evaluation)
    assert compose("evaluate", [*asked, *weights]).normalize.std[0] == red


@pytest.mark.parametrize("evaluation", [*group_options("eval")])
def test_simclrs_weights_get_bicubic_crops_in_the_unit_interval(evaluation: str) -> None:
    weights = build.preprocessing_overrides(entries.get_entry("simclr_1000ep"), evaluation)
    cfg = compose("evaluate", [f"eval={evaluation}", "checkpoint=x", "scale=paper", *weights])
    assert list(cfg.normalize.std) == [1, 1, 1]
    assert "center_crop" not in cfg.protocol or cfg.protocol.center_crop.interpolation == "bicubic"


def test_a_row_without_public_weights_is_unavailable_and_says_why(checkout: Path) -> None:
    judged = cells_of(released("table3"))["BoWNet/voc07"]
    assert judged.verdict == Verdict.UNAVAILABLE
    assert "no public weights of BoWNet's ResNet-50 are known" in judged.reason
    ablation = cells_of(released("table8"))["SwAV, 300 prototypes/top1"]
    assert (ablation.verdict, "none are known" in ablation.reason) == (Verdict.UNAVAILABLE, True)


def test_an_address_that_is_gone_is_unavailable_and_no_failure(checkout: Path) -> None:
    plan = released("table7")
    for run in plan.runs.values():
        gone = {"status": "unavailable", "exit_status": 2, "message": "the publisher has moved or removed the file"}
        write_json(run.failure, gone)
    checked = check.check_tables(plan)
    judged = cells_of(plan)["SwAV/knn20"]
    assert judged.verdict == Verdict.UNAVAILABLE
    assert "moved or removed" in judged.reason
    assert check.exit_status(checked) == check.NOTHING_COMPARED  # what was to be compared could not be had
    assert "4 cells unavailable" in " ".join(strict.open_issues(plan, checked, []))


def test_the_authors_checkpoint_is_the_canary_of_all(checkout: Path, finish: Callable[..., None]) -> None:
    plan = released("table7")
    for run in plan.runs.values():
        finish(run, 59.2)
    swav = cells_of(plan)["SwAV/knn20"]
    assert swav.verdict == Verdict.WITHIN
    assert table_as_data(plan, check.check_tables(plan)[0], FirstStepsCheck.of_plan(plan))["level"] == "public weights"


def test_public_weights_have_margins_of_the_evaluation_alone(checkout: Path, finish: Callable[..., None]) -> None:
    """Half a point above kNN's printed 59.2 is inside the margin of a pretraining, not inside that of given weights."""
    plan = released("table7")
    plan_file.write(plan)
    for run in plan.runs.values():
        finish(run, metrics={"knn20": 59.7, "knn200": 55.8})
    judged = cells_of(plan)["SwAV/knn20"]
    assert judged.margin is not None and judged.margin.points == 0.1
    assert judged.margin_before is None
    assert judged.verdict == Verdict.BETTER


def test_deterministic_evaluations_count_as_one_seed(checkout: Path, finish: Callable[..., None]) -> None:
    plan = build.build_plan(Request(("table7",), "paper", (0, 1, 2), source="released"))
    for run in plan.runs.values():
        finish(run, metrics={"knn20": 59.2, "knn200": 55.8 + 0.01 * run.seed})
    cells = cells_of(plan)
    assert (cells["SwAV/knn20"].verdict, cells["SwAV/knn20"].p_value) == (Verdict.WITHIN, None)
    assert "One number, the same in 3 runs without randomness, is inside the margin" in cells["SwAV/knn20"].reason
    assert cells["SwAV/knn200"].p_value is not None


def test_claims_are_of_public_weights_where_both_sides_have_some(checkout: Path) -> None:
    plan = released("claims")
    assert {run.kind for run in plan.runs.values()} == {"evaluate"}
    assert {run.parent_name.partition(":")[0] for run in plan.runs.values()} == {"released"}
    assert {cell.row for cell in plan.cells} == {
        *("more-crops", "small-crops-clustering", "over-simclr", "over-supervised", "wider", "longer"),
    }
    answers = {answer.claim.claim: answer for answer in check_claims(plan)}
    assert {answer.level for answer in answers.values()} == {"public weights"}
    assert {str(answer.status) for answer in answers.values()} == {"not run"}
    assert {name for name, answer in answers.items() if answer.incomplete} == {cell.row for cell in plan.cells}
    assert answers["soft-assignments"].parts[0].reason == (
        "No public weights of swav_400ep_2x160_4x96 (models/zoo/released.yaml): none are known; FROM=scratch trains it."
    )


def test_claims_of_public_weights_are_judged_and_say_so(
    checkout: Path, finish: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    plan = build.build_plan(Request(("claims",), "paper", (0, 1, 2), source="released"))
    for run in plan.runs.values():
        best = run.parent_name in ("released:swav_800ep", "released:swav_w5_400ep")
        finish(run, (76.0 if best else 70.0) + run.seed / 100)
    answers = {answer.claim.claim: answer for answer in check_claims(plan)}
    assert (answers["over-simclr"].status, answers["over-simclr"].level) == (ClaimStatus.HOLDS, "public weights")
    assert main(["check", "claims", "--scale", "paper", "--from", "released", "--seeds", "3"]) == check.AGREES
    out = capsys.readouterr().out
    assert "Claims of the paper, public weights: the authors' public checkpoints through our evaluations" in out
    assert "not run      soft-assignments: No public weights of" in out
    data = json.loads(Path("reports/paper/claims.json").read_text())["claims"]
    assert {claim["level"] for claim in data} == {"public weights"}
    assert "B.3, Table 3, public weights |" in Path("reports/paper/claims.md").read_text()
    summary = Path("reports/paper/summary.md").read_text()
    assert "frozen features transfer better than SimCLR's. (public weights) |" in summary
    assert main(["report", "claims", "--scale", "paper"]) == 0
    assert ", public weights</small>" in Path("reports/paper/index.html").read_text()
    table = build.build_plan(Request(("table3",), "paper", (0, 1, 2), source="released"))
    assert {(each.claim.claim, each.level) for each in check_claims(table)} == {
        ("over-simclr", "public weights"),
        ("over-supervised", "public weights"),
    }


def test_a_number_that_no_seed_changes_decides_no_claim(checkout: Path, finish: Callable[..., None]) -> None:
    """Three evaluations of one file that draw nothing are one number, as they are for a cell."""
    plan = build.build_plan(Request(("claims",), "paper", (0, 1, 2), source="released"))
    for run in plan.runs.values():
        finish(run, 76.0 if run.parent_name in ("released:swav_800ep", "released:swav_w5_400ep") else 70.0)
    answers = {answer.claim.claim: answer for answer in check_claims(plan)}
    assert answers["over-simclr"].status == ClaimStatus.INCONCLUSIVE


def test_a_claim_whose_weights_are_gone_is_not_run(checkout: Path, finish: Callable[..., None]) -> None:
    plan = released("claims")
    for run in plan.runs.values():
        if run.parent_name == "released:simclr_1000ep":
            write_json(run.failure, {"status": "unavailable", "exit_status": 2, "message": "it was moved"})
        else:
            finish(run, 70.0)
    (answer,) = [each for each in check_claims(plan) if each.claim.claim == "over-simclr"]
    assert (answer.status, answer.incomplete) == (ClaimStatus.NOT_RUN, False)
    assert "it was moved" in answer.parts[0].reason


def test_from_released_needs_scale_paper(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from reproduce.errors import run_cli

    monkeypatch.setattr("sys.argv", ["reproduce", "plan", "table7", "--from", "released"])
    assert run_cli(main) == 2
    assert "give it --scale paper" in capsys.readouterr().err
