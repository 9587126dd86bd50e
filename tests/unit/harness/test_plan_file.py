"""plan.json is written with a version, and check and report take from it the flags that they are not given."""

import json
from pathlib import Path

import pytest

from reproduce.__main__ import main
from reproduce.errors import UserError
from reproduce.harness.plan import build, plan_file
from reproduce.harness.plan.model import Request


@pytest.fixture
def written(checkout: Path) -> Path:
    """The plan of table7 for three seeds."""
    return plan_file.write(build.build_plan(Request(("table7",), "smoke", (0, 1, 2), skip_bad_images=True)))


def test_without_flags_the_written_plan_is_judged(written: Path) -> None:
    plan, difference = plan_file.plan_to_judge(("table7",), "smoke", {})
    assert (plan.request.seeds, plan.request.skip_bad_images, difference) == ((0, 1, 2), True, "")
    assert set(plan.runs) == {run["run_id"] for run in json.loads(written.read_text())["runs"]}


def test_flags_count_and_the_difference_is_named(written: Path) -> None:
    plan, difference = plan_file.plan_to_judge(("table7",), "smoke", {"seeds": (0,), "skip_bad_images": True})
    assert plan.request.seeds == (0,) and plan.request.skip_bad_images
    assert difference == (
        "the request differs from reports/smoke/plan.json and is what is judged: seeds 0 (planned: 0, 1, 2)"
    )


def test_another_table_is_judged_by_its_own_flags(written: Path) -> None:
    plan, difference = plan_file.plan_to_judge(("table7", "table3"), "smoke", {})
    assert plan.request == Request(("table7", "table3"), "smoke")
    assert difference.startswith("reports/smoke/plan.json plans table7, not table3")


def test_changed_configs_are_named(written: Path) -> None:
    content = json.loads(written.read_text())
    content["cells"][0]["runs"]["0"] = "knn-s0-0123456789"
    written.write_text(json.dumps(content))
    _, difference = plan_file.plan_to_judge(("table7",), "smoke", {})
    assert "configs have changed since reports/smoke/plan.json was written" in difference and "1 of its 7" in difference


def test_check_says_how_the_request_differs(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", "table7"])
    assert "note:" not in capsys.readouterr().out
    main(["check", "table7", "--seeds", "1"])
    assert "note: the request differs from reports/smoke/plan.json" in capsys.readouterr().out


def test_without_a_written_plan_the_request_is_judged(checkout: Path) -> None:
    plan, difference = plan_file.plan_to_judge(("table7",), "smoke", {"seeds": (0, 1)})
    assert (plan.request, difference) == (Request(("table7",), "smoke", (0, 1)), "")


@pytest.mark.parametrize(
    ("change", "says"),
    [({"version": 0}, "version 0, not 1"), ({"request": {}}, "damaged"), ({"cells": [{}]}, "damaged")],
)
def test_another_version_and_a_damaged_plan_are_refused(written: Path, change: dict[str, object], says: str) -> None:
    written.write_text(json.dumps(json.loads(written.read_text()) | change))
    with pytest.raises(UserError, match=rf"^{written} .*{says}.*make plan-"):
        plan_file.plan_to_judge(("table7",), "smoke", {})


@pytest.mark.parametrize(
    ("key", "value"),
    [("seeds", "0"), ("seeds", [0.5]), ("seeds", []), ("data", 3), ("source", "elsewhere"), ("scale", "paper")],
)
def test_wrong_value_in_the_request_of_a_plan_is_refused(written: Path, key: str, value: object) -> None:
    content = json.loads(written.read_text())
    content["request"][key] = value
    written.write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"^{written} is damaged \(.*request.*make plan-"):
        plan_file.plan_to_judge(("table7",), "smoke", {})
