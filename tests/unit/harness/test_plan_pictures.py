"""Which pretrainings of a plan get pictures without being asked, and what becomes of a failure."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reproduce.errors import UserError
from reproduce.harness.plan import build
from reproduce.harness.plan.model import Plan, Request
from reproduce.harness.report import pictures
from reproduce.harness.report.pictures import make_pictures_of_plan


@pytest.fixture
def requested(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The run_ids that pictures are requested of, call by call."""
    calls: list[list[str]] = []
    monkeypatch.setattr(pictures, "make_pictures", lambda folders, *_: calls.append([each.name for each in folders]))
    return calls


def finish_all(plan: Plan, finish: Callable[..., None]) -> None:
    for run in plan.runs.values():
        finish(run)
        (Path(run.folder) / "checkpoint.pt").touch()


def test_they_are_the_first_seeds(checkout: Path, finish: Callable[..., None], requested: list[list[str]]) -> None:
    plan = build.build_plan(Request(("table7",), "smoke", (0, 1)))
    finish_all(plan, finish)
    make_pictures_of_plan(plan)
    names = {plan.runs[run_id].name for run_id in requested[0]}
    assert names == {run.name for run in plan.runs.values() if run.kind == "pretrain"}
    assert {plan.runs[run_id].seed for run_id in requested[0]} == {0}


def test_what_is_not_there_is_passed_over(smoke: Plan, finish: Callable[..., None], requested: list[list[str]]) -> None:
    finish_all(smoke, finish)
    swav, random = (next(run for run in smoke.runs.values() if run.name == name) for name in ("swav_800ep", "random"))
    (Path(swav.folder) / "checkpoint.pt").unlink()
    make_pictures_of_plan(smoke)
    random.result.unlink()
    make_pictures_of_plan(smoke)
    assert requested == [[random.run_id], []]


def test_large_networks_and_clusters_get_them_on_demand_only(
    smoke: Plan, finish: Callable[..., None], requested: list[list[str]]
) -> None:
    finish_all(smoke, finish)
    make_pictures_of_plan(replace(smoke, cluster={"executor": "slurm"}))
    make_pictures_of_plan(replace(smoke, request=replace(smoke.request, scale="paper")))
    assert requested == []


def test_a_failure_is_a_warning(
    smoke: Plan, finish: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finish_all(smoke, finish)

    def fail(*_: Any) -> None:
        raise UserError("the disk is full")

    monkeypatch.setattr(pictures, "make_pictures", fail)
    make_pictures_of_plan(smoke)
    assert capsys.readouterr().err == "warning: no pictures of this plan's pretrainings: the disk is full\n"
