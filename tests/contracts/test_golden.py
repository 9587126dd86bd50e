"""The recorded first steps: of every recipe, and small enough to be read."""

from pathlib import Path

import pytest

from reproduce.config.compose import group_options
from reproduce.harness.plan.build import build_plan
from reproduce.harness.plan.model import Request
from reproduce.harness.preflight.rehearsals import NOT_REHEARSED
from reproduce.harness.spec import golden, tables

SCALES = ("smoke", "paper")
"""Scales whose first steps are recorded."""
NOT_TRIED = ("paper",)
"""Scales whose tolerances were not tried under arithmetic that they were not measured with (docs/preflight.md)."""
NOT_TRAINED = "random"


@pytest.mark.parametrize("scale", SCALES)
def test_every_recipe_is_recorded(scale: str) -> None:
    recorded = golden.load(scale).rehearsals
    recipes = {recipe for name, each in recorded.items() if "." in name for recipe in each.recipes}
    assert recipes == {*group_options("experiment"), *group_options("eval")} - {NOT_TRAINED, *NOT_REHEARSED}
    schedules = {name.removeprefix("schedule_") for name in recorded if name.startswith("schedule_")}
    assert schedules == set(group_options("experiment")) - {NOT_TRAINED}


def test_runs_of_tables_are_recorded(composed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that train, or extract features of the random trunk; `runs_of_tables` says which others are left out."""
    recorded = golden.load_runs("smoke")
    monkeypatch.chdir(composed.parent)
    runs = build_plan(Request(("table3", "table7", "knn_pooled"), "smoke")).runs
    missing = {(run.name, run.parent_name) for run_id, run in runs.items() if run_id not in recorded}
    trained = {run.name for run in runs.values() if run.kind == "pretrain"} - {NOT_TRAINED}
    of_features = {(name, trunk) for name in ("knn", "knn_head", "voc07_svm") for trunk in trained}
    assert {NOT_TRAINED} == {name for name, _ in missing - of_features}


def test_files_are_small_and_honest() -> None:
    files = list((tables.TABLES_DIR / "golden").glob("*.json"))
    assert sum(path.stat().st_size for path in files) < 1_000_000
    assert {path.stem for path in files} == {*SCALES, "smoke_runs"}
    for path in files:
        recorded = golden.load(path.stem).recorded
        assert recorded["commit"] and not recorded["dirty"]
        headers = [recorded, *recorded.get("earlier", [])]
        tried = [each for header in headers for each in header.get("held_out", {}).values()]
        assert sum(each["flagged"] for each in tried) == 0
        assert sum(each["rehearsals"] for each in tried) >= 100 or path.stem in NOT_TRIED


@pytest.mark.parametrize("scale", SCALES)
def test_most_numbers_have_a_tolerance(scale: str) -> None:
    """A number without one says nothing, and a file of them would be green by construction."""
    for name, each in golden.load(scale).rehearsals.items():
        tolerances = [value for series in each.tolerances.values() for value in series]
        kept = sum(value is not None for value in tolerances)
        assert kept > 0.5 * len(tolerances), f"{name}: its training amplifies rounding; try a lower rate"
        if not name.endswith((".bf16", ".fp16")):
            assert each.tolerances.get("loss", [0.0])[0] is not None, name
