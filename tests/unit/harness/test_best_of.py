"""A cell that is the best of several variants: all are planned, one metric chooses, and the verdict says so."""

from collections.abc import Callable
from pathlib import Path

import pytest

from reproduce.errors import UserError
from reproduce.harness.plan import build
from reproduce.harness.plan.model import Plan, Request, Run
from reproduce.harness.spec import tables
from reproduce.harness.verdict import check
from reproduce.harness.verdict.cells import CellVerdict

RATES = {1e-5: "1e-05", 5e-5: "5e-05", 1e-4: "0.0001"}


@pytest.fixture
def table5(checkout: Path) -> Plan:
    return build.build_plan(Request(("table5",), "paper"))


def rate(run: Run) -> float:
    return float(next(item for item in run.overrides if "lr_backbone" in item).partition("=")[2])


def swav(plan: Plan) -> dict[str, CellVerdict]:
    (table,) = check.check_tables(plan)
    return {key: judged for row, key, judged in table.cells() if row.label == "SwAV"}


def done(plan: Plan, finish: Callable[..., None], ap: dict[float, float]) -> None:
    """Finish the runs of these learning rates with this AP, and with a metric that would choose otherwise."""
    for run in plan.runs.values():
        if run.kind == "pretrain":
            finish(run)
        elif rate(run) in ap:
            finish(run, metrics={"ap": ap[rate(run)], "ap50": 100 - ap[rate(run)], "ap75": 44.5, **small})


small = {"ap_s": 19.7, "ap_m": 46.3, "ap_l": 60.9}


def test_every_variant_is_a_run_and_all_columns_share_them(table5: Plan) -> None:
    runs = [run for run in table5.runs.values() if run.parent_name.startswith("swav")]
    assert sorted(map(rate, runs)) == sorted(RATES)
    assert len({run.run_id for run in runs}) == len({run.label for run in runs}) == 3
    for cell in table5.cells:
        assert cell.row != "SwAV" or set(cell.run_ids) == {run.run_id for run in runs}


def test_the_best_by_ap_counts_for_every_metric_and_is_noted(table5: Plan, finish: Callable[..., None]) -> None:
    done(table5, finish, {1e-5: 40.9, 5e-5: 42.2, 1e-4: 41.5})
    found = swav(table5)
    assert found["ap"].mean == 42.2 and found["ap50"].mean == pytest.approx(57.8)
    assert (str(found["ap"].verdict), str(found["ap50"].verdict)) == ("within", "worse")
    variants = ", ".join(
        f"protocol.lr_backbone={RATES[lr]} ({ap:.2f})" for lr, ap in {1e-5: 40.9, 5e-5: 42.2, 1e-4: 41.5}.items()
    )
    best = f"Of {variants}, protocol.lr_backbone=5e-05 has the best ap and is used, as the authors did."
    assert best in found["ap50"].reason
    (chosen,) = found["ap"].run_ids
    assert rate(table5.runs[chosen]) == 5e-5


def test_nothing_is_chosen_before_all_variants_are_done(table5: Plan, finish: Callable[..., None]) -> None:
    done(table5, finish, {1e-5: 40.9, 5e-5: 42.2})
    judged = swav(table5)["ap"]
    assert (str(judged.verdict), judged.mean) == ("not run", None)
    assert judged.reason == "No result yet: coco_detr of swav_800ep, protocol.lr_backbone=0.0001, seed 0."


def test_a_variant_that_failed_fails_the_cell(table5: Plan, finish: Callable[..., None]) -> None:
    done(table5, finish, {1e-5: 40.9})
    (failed,) = [run for run in table5.runs.values() if run.parent_name.startswith("swav") and rate(run) == 1e-4]
    failed.failure.parent.mkdir(parents=True)
    failed.failure.write_text('{"status": "failed", "message": "no disk"}')
    judged = swav(table5)["ap"]
    assert str(judged.verdict) == "failed" and judged.reason.endswith("no disk.")


def test_seeds_choose_together(checkout: Path, finish: Callable[..., None]) -> None:
    plan = build.build_plan(Request(("table5",), "paper", (0, 1)))
    for run in plan.runs.values():
        high_once = 43.0 if run.seed else 39.0
        ap = 0.0 if run.kind == "pretrain" else {1e-5: 41.5, 5e-5: high_once, 1e-4: 40.0}[rate(run)]
        finish(run, metrics={"ap": ap, "ap50": 0.0, "ap75": 0.0, **small})
    assert swav(plan)["ap"].values == {0: 41.5, 1: 41.5}


def test_a_choice_without_an_evaluation_is_refused(checkout: Path) -> None:
    path = checkout / "tables" / "paper" / "table5.yaml"
    path.write_text(path.read_text().replace("values: [1.0e-5, 5.0e-5, 1.0e-4]", "values: []"))
    with pytest.raises(UserError, match=r"columns\.ap: best_of needs an eval, and values to choose from"):
        tables.load("table5", "paper")
