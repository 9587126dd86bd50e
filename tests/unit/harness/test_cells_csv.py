"""cells.csv: one line for each seed of each cell, with the run that it comes from."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from reproduce.harness.plan import build
from reproduce.harness.plan.model import Plan, Request
from reproduce.harness.report.cells_csv import COLUMNS, FILE
from reproduce.harness.report.files import write_verdicts
from reproduce.harness.verdict import check

ORIGIN = {"git_commit": "c" * 40, "git_dirty": False, "hardware": "8 x NVIDIA H100"}


def lines(plan: Plan) -> list[dict[str, str]]:
    write_verdicts(plan, check.check_tables(plan))
    with open(plan.reports / FILE, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def plan(checkout: Path) -> Plan:
    return build.build_plan(Request(("table7",), "paper", (0, 1)))


def test_every_seed_of_a_cell_has_a_line_with_its_run(plan: Plan, finish: Callable[..., None]) -> None:
    for run in plan.runs.values():
        finish(run, 59.2 + run.seed / 10, provenance=ORIGIN)
    found = [each for each in lines(plan) if each["row"] == "SwAV" and each["column"] == "knn20"]
    (cell,) = [each for each in plan.cells if each.row == "SwAV" and each.column == "knn20"]
    assert [each["seed"] for each in found] == ["0", "1"]
    assert [float(each["value"]) for each in found] == pytest.approx([59.2, 59.3])
    assert [each["run_id"] for each in found] == [cell.runs[0], cell.runs[1]]
    for each in found:
        assert tuple(each) == COLUMNS
        assert (each["scale"], each["table"], each["printed"]) == ("paper", "table7", "59.2")
        assert float(each["mean"]) == pytest.approx(59.25)
        assert float(each["interval_low"]) < 59.25 < float(each["interval_high"])
        assert each["interval_of"] == "the mean of our seeds on this test set, 90%"
        assert (each["git_commit"], each["git_dirty"], each["hardware"]) == ("c" * 40, "False", "8 x NVIDIA H100")
        assert each["finished"] == "2026-01-01T00:00:00+00:00"


def test_a_cell_without_a_number_has_one_line_and_no_seed(plan: Plan) -> None:
    found = lines(plan)
    (table,) = check.check_tables(plan)
    assert [(each["row"], each["column"]) for each in found] == [(row.label, key) for row, key, _ in table.cells()]
    for each in found:
        assert each["verdict"] and not each["seed"] and not each["value"] and not each["run_id"]


def test_the_file_has_all_tables_that_were_checked(plan: Plan, finish: Callable[..., None], checkout: Path) -> None:
    lines(plan)
    another = build.build_plan(Request(("table9",), "paper"))
    assert {each["table"] for each in lines(another)} == {"table7", "table9"}


def test_no_spreadsheet_takes_a_text_for_a_formula(plan: Plan, finish: Callable[..., None]) -> None:
    for run in plan.runs.values():
        finish(run, 59.2, provenance=ORIGIN | {"hardware": '=HYPERLINK("x")'}, finished="@now")
    numbers = [each for each in lines(plan) if each["seed"]]
    assert numbers
    for each in numbers:
        assert (each["hardware"], each["finished"]) == ('\'=HYPERLINK("x")', "'@now")
        assert float(each["difference"]) is not None


def test_a_result_that_is_gone_leaves_its_line(plan: Plan, finish: Callable[..., None]) -> None:
    for run in plan.runs.values():
        finish(run, 59.2)
    checked = check.check_tables(plan)
    for run in plan.runs.values():
        run.result.unlink()
    write_verdicts(plan, checked)
    with open(plan.reports / FILE, newline="") as file:
        numbers = [each for each in csv.DictReader(file) if each["value"]]
    assert numbers and not any(each["git_commit"] for each in numbers)
