"""A budget buys canaries first, then what costs the least, and stays what it bought."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from reproduce.__main__ import main
from reproduce.errors import UserError
from reproduce.harness.plan import budget, build, cost, plan_file
from reproduce.harness.plan.budget import Budget, Choice
from reproduce.harness.plan.cost import PlanCost
from reproduce.harness.plan.model import Plan, Request
from tests.runs import REPO_ROOT

CANARIES = {("table3", "SwAV", "voc07"), ("table3", "SwAV", "inat18"), ("table7", "SwAV", "knn20")}


def request(hours: str) -> Request:
    return Request(("table3", "table7"), "paper", source="released", budget=hours)


def bought(hours: str) -> tuple[Plan, PlanCost, Choice]:
    plan = build.build_plan(request(hours))
    costs = cost.plan_cost(plan)
    return plan, costs, budget.choose(plan, costs)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("24", Budget(24, "V100")), (" 1.5 A100 ", Budget(1.5, "A100")), ("0.25  H100", Budget(0.25, "H100"))],
)
def test_hours_of_a_gpu(text: str, expected: Budget) -> None:
    assert budget.parse(text) == expected


@pytest.mark.parametrize("text", ["", "0", "0.0", "-3", "many", "1e3", "24h", "24 H100 V100", "inf", "nan", "24 h100"])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="the budget"):
        budget.parse(text)


@pytest.mark.usefixtures("checkout")
def test_canaries_come_first_and_the_cheapest_next() -> None:
    plan, costs, choice = bought("24 H100")
    first = [pick.is_canary for pick in choice.picks]
    assert first == sorted(first, reverse=True)
    assert {(cell.table, cell.row, cell.column) for pick in choice.picks if pick.is_canary for cell in pick.cells} >= (
        CANARIES
    )
    per_cell = [pick.hours / len(pick.cells) for pick in choice.picks if not pick.is_canary]
    assert len(per_cell) > 5 and per_cell == sorted(per_cell)
    # The hours of the picks are those of their runs, each counted once.
    runs = {name for cell in choice.cells for run_id in cell.run_ids for name in plan.behind(run_id)}
    assert sum(pick.hours for pick in choice.picks) == pytest.approx(costs.gpu_hours("H100", runs))
    assert costs.gpu_hours("H100", runs) <= 24
    assert choice.beyond
    assert costs.gpu_hours("H100", runs) + choice.beyond.hours > 24


@pytest.mark.usefixtures("checkout")
def test_a_faster_gpu_buys_more() -> None:
    counts = [len(bought(hours)[2].cells) for hours in ("0.001", "24", "24 H100", "100000000")]
    assert counts == sorted(set(counts)) and counts[0] == 0
    plan, _, everything = bought("100000000")
    assert counts[-1] == len(plan.cells) - len(everything.unpriced) and everything.beyond is None


@pytest.mark.usefixtures("checkout")
def test_evaluations_of_a_pretraining_share_its_price() -> None:
    plan = build.build_plan(Request(("table3", "table7"), "paper", budget="10000"))
    choice = budget.choose(plan, cost.plan_cost(plan))
    of_swav = [pick for pick in choice.picks if any(cell.row == "SwAV" for cell in pick.cells)]
    assert of_swav[0].hours > 1000 > 100 > max(pick.hours for pick in of_swav[1:3])
    assert not any(pick.is_canary for pick in choice.picks)  # our own training's numbers are no canaries


def test_what_is_done_on_a_gpu_without_a_factor_costs_nothing(checkout: Path, finish: Callable[..., None]) -> None:
    plan = build.build_plan(Request(("table3", "table7"), "paper", budget="10000"))
    swav = next(run for run in plan.runs.values() if run.name == "swav_800ep")
    evaluation = next(run for run in plan.runs.values() if run.name == "knn_head" and swav.run_id in run.parents)
    for run in (swav, evaluation):
        finish(run, provenance={"world_size": 8, "hardware": "8 x NVIDIA H200", "git_commit": "c" * 40})
    choice = budget.choose(plan, cost.plan_cost(plan))
    assert not [cell for cell in choice.unpriced if cell.row == "SwAV"]
    free = [pick for pick in choice.picks if evaluation.run_id in pick.cells[0].run_ids]
    assert [pick.hours for pick in free] == [0.0]


def test_what_was_bought_stays_while_runs_are_done(checkout: Path, finish: Callable[..., None]) -> None:
    plan = plan_file.planned(request("10"))
    assert 0 < len(plan.cells) < len(build.build_plan(request("10")).cells)
    plan_file.write(plan)
    for run in plan.runs.values():
        finish(run, wall_seconds=1.0)  # so the budget would buy more now
    whole = build.build_plan(request("10"))
    assert len(budget.choose(whole, cost.plan_cost(whole)).cells) > len(plan.cells)
    assert plan_file.planned(request("10")).cells == plan.cells
    judged, difference = plan_file.plan_to_judge(("table7",), "paper", {})
    assert judged.cells == [cell for cell in plan.cells if cell.table == "table7"] and not difference
    assert len(plan_file.planned(replace(request("10"), budget="50")).cells) > len(plan.cells)
    assert checkout.joinpath("reports/paper/plan.json").exists()


def test_what_was_bought_stays_if_only_a_part_can_be_done(checkout: Path) -> None:
    """Else the cells whose data is missing would be forgotten, and the next check would be green."""
    plan = plan_file.planned(request("10"))
    part = plan.with_cells(plan.cells[:1])
    plan_file.write(part, plan)
    assert plan_file.planned(request("10")).cells == plan.cells
    plan_file.write(part)
    assert plan_file.planned(request("10")).cells == part.cells


@pytest.mark.usefixtures("checkout")
def test_a_plan_says_what_the_budget_buys(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["table7", "knn_pooled", "--scale", "paper", "--from", "released", "--budget", "1"]
    assert main(["plan", *asked]) == 0
    said = capsys.readouterr().out
    assert "budget of 1 GPU-hours on V100: 4 of 5 cells, in the order of what they prove per hour" in said
    assert "next: table7 PCL: knn20, 17 min 36 s more" in said  # of equal prices, the last in the table
    assert "canary: table7 SwAV: knn20, knn200" in said


def assert_is_quoted(printed: str, command: str) -> None:
    """Assert that what docs/commands.md quotes of a command is what it prints, except for the places of files."""
    quoted = (REPO_ROOT / "docs/commands.md").read_text().partition(f"$ {command}\n")[2].partition("```")[0]
    lines = [line for line in quoted.splitlines() if line != "..." and not line.startswith("plan: ")]
    assert len(lines) > 2
    for line in lines:
        assert f"\n{line}" in printed


@pytest.mark.usefixtures("checkout")
def test_all_tables_of_a_scale(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "all", "--scale", "paper", "--from", "released", "--budget", "24 H100"]) == 0
    printed = capsys.readouterr().out
    assert "canary: table3 SwAV: voc07" in printed
    assert_is_quoted(printed, 'make plan-all BUDGET="24 H100" FROM=released')
    with pytest.raises(UserError, match="--scale paper"):
        main(["plan", "all", "--budget", "24"])


@pytest.mark.usefixtures("checkout")
def test_the_plan_on_the_page_of_commands_is_the_one_that_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "table7", "--scale", "paper", "--from", "released"]) == 0
    assert_is_quoted("\n" + capsys.readouterr().out, "make plan-table7 FROM=released DATA=/datasets")
