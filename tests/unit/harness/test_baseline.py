"""Recording: what is written is what was measured, and nothing is recorded that nobody could make again."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from reproduce.__main__ import main
from reproduce.cli import recording_commands
from reproduce.errors import UserError
from reproduce.harness import record_baseline, revision
from reproduce.harness.plan import build
from reproduce.harness.plan.model import Plan, Request
from reproduce.harness.spec import baseline
from reproduce.harness.verdict import stats


@pytest.fixture
def five(checkout: Path) -> Plan:
    return build.build_plan(Request(("table7",), "smoke", (0, 1, 2, 3, 4)))


def test_a_recorded_baseline_is_loaded(five: Plan, finish: Callable[..., None]) -> None:
    for run in five.runs.values():
        finish(run, 50.0 + run.seed, wall_seconds=10.0 + run.seed)
    text = record_baseline.record(five).read_text()
    recorded = baseline.load("smoke")
    cell = recorded.cells["swav_800ep/knn_head/knn20"]
    assert cell.values == [50.0, 51.0, 52.0, 53.0, 54.0]
    assert cell.num_test_images == 1000
    assert "mean: 52.0" in text and "sd: 1.5811" in text
    assert recorded.wall_seconds["evaluate/knn_head"] == 12.0
    assert recorded.header["commit"] == "c" * 40
    assert recorded.header["seeds"] == [0, 1, 2, 3, 4]
    assert recorded.header["packages"] == {"torch": "2"}


def test_seeds_are_recorded_in_slices(
    checkout: Path, finish: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten seeds, a commit that leaves the runs' code alone, and ten more: only these run, and all are one recording."""
    monkeypatch.setattr(revision, "run_code_fingerprint", lambda *_: "the same")
    commit, executed = "c" * 40, []

    def execute(plan: Plan, cores: int) -> list[str]:
        for run in plan.runs.values():
            if not run.result.exists():
                executed.append(run.seed)
                provenance = {"git_commit": commit, "git_dirty": False, "packages": {"torch": "2"}}
                finish(run, 50.0 + run.seed % 7, provenance=provenance)
        return []

    monkeypatch.setattr(recording_commands, "execute", execute)
    monkeypatch.setattr(record_baseline, "refuse_dirty", lambda *_: None)
    assert main(["record-baseline", "table7", "--seeds", "10"]) == 0
    first = baseline.load("smoke").cells["swav_800ep/knn_head/knn20"].values
    assert len(first) == 10 and set(executed) == set(range(10))
    commit, executed[:] = "d" * 40, []
    assert main(["record-baseline", "table7"]) == 0
    assert set(executed) == set(range(10, 20))
    recorded = baseline.load("smoke")
    whole = recorded.cells["swav_800ep/knn_head/knn20"].values
    assert whole == [50.0 + seed % 7 for seed in range(20)] and whole[:10] == first
    assert recorded.header["seeds"] == list(range(20))
    assert recorded.header["commit"] == f"{'c' * 40}, {'d' * 40}"


def test_a_recording_grows_on_another_machine(
    checkout: Path, finish: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the results of the recorded seeds are not, their runs are not done again, unless code or config changed."""
    monkeypatch.setattr(revision, "run_code_fingerprint", lambda *_: "the same")
    monkeypatch.setattr(record_baseline, "cpu_name", lambda: "first")
    plan = build.build_plan(Request(("table7",), "smoke", tuple(range(5))))
    for run in plan.runs.values():
        finish(run, 50.0 + run.seed)
    record_baseline.record(plan)
    more = build.build_plan(Request(("table7",), "smoke", tuple(range(8))))
    before = record_baseline.recorded_before(more)
    assert before.header["seeds"] == [0, 1, 2, 3, 4] and before.cells.keys() == {cell.metric_key for cell in plan.cells}
    assert not record_baseline.recorded_before(plan).cells  # recording the same seeds again makes them anew

    shutil.rmtree("results")
    monkeypatch.setattr(record_baseline, "cpu_name", lambda: "second")
    rest = build.build_plan(Request(("table7",), "smoke", (5, 6, 7)))
    for run in rest.runs.values():
        finish(run, 50.0 + run.seed)
    record_baseline.record(rest, before=before)
    recorded = baseline.load("smoke")
    cell = recorded.cells["swav_800ep/knn_head/knn20"]
    assert cell.values == [50.0 + seed for seed in range(8)]
    assert cell.run_id == before.cells["swav_800ep/knn_head/knn20"].run_id
    assert recorded.header["seeds"] == list(range(8)) and recorded.header["machine"]["cpu"] == "first, second"

    finish(next(iter(rest.runs.values())), provenance={"git_commit": "c" * 40, "git_dirty": False, "packages": {}})
    with pytest.raises(UserError, match="other versions of packages"):
        record_baseline.record(rest, before=before)
    ten = build.build_plan(Request(("table7",), "smoke", tuple(range(10))))
    assert record_baseline.recorded_before(ten).cells
    monkeypatch.setattr(revision, "run_code_fingerprint", lambda commit: commit)
    assert not record_baseline.recorded_before(ten).cells
    text = baseline.path("smoke").read_text()
    monkeypatch.setattr(revision, "run_code_fingerprint", lambda *_: "the same")
    baseline.path("smoke").write_text(text.replace(cell.run_id, "knn_head-s0-0000000000"))
    assert not record_baseline.recorded_before(ten).cells
    baseline.path("smoke").write_text(text.replace("dirty: false", "dirty: true"))
    assert not record_baseline.recorded_before(ten).cells


def test_a_recording_grows_by_tables(
    checkout: Path, finish: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the same code has recorded of another table, for the same seeds, stays where its results are gone."""
    monkeypatch.setattr(revision, "run_code_fingerprint", lambda *_: "the same")
    seeds = tuple(range(5))

    def record(table: str, value: float, seeds: tuple[int, ...] = seeds) -> set[str]:
        shutil.rmtree("results", ignore_errors=True)
        plan = build.build_plan(Request((table,), "smoke", seeds))
        for run in plan.runs.values():
            finish(run, value + run.seed)
        record_baseline.record(plan)
        return {cell.metric_key for cell in plan.cells}

    table7, knn = record("table7", 50.0), record("knn_pooled", 60.0)
    recorded = baseline.load("smoke")
    assert recorded.cells.keys() == table7 | knn and not table7 & knn
    assert recorded.cells["swav_800ep/knn_head/knn20"].values == [50.0 + seed for seed in seeds]
    assert recorded.cells["swav_800ep/knn/knn20"].values == [60.0 + seed for seed in seeds]
    assert recorded.wall_seconds.keys() >= {"evaluate/knn", "evaluate/knn_head"}

    text = baseline.path("smoke").read_text()
    head = recorded.cells["swav_800ep/knn_head/knn20"].run_id
    baseline.path("smoke").write_text(text.replace(head, "knn_head-s0-0000000000"))
    record("knn_pooled", 60.0)
    assert baseline.load("smoke").cells.keys() == knn  # the config of Table 7 has changed since
    baseline.path("smoke").write_text(text)
    record("knn_pooled", 60.0, (0, 1, 2, 3, 4, 5))
    assert baseline.load("smoke").cells.keys() == knn  # other seeds
    baseline.path("smoke").write_text(text)
    monkeypatch.setattr(revision, "run_code_fingerprint", lambda commit: commit)
    monkeypatch.setattr(revision, "commit", lambda: "d" * 40)
    plan = build.build_plan(Request(("knn_pooled",), "smoke", seeds))
    assert record_baseline.recorded_beside(plan)[1] == ()  # another code


def test_what_a_cell_would_notice_is_recorded(
    checkout: Path, finish: Callable[..., None], five: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one seed, in a check of all recorded cells: two tails of each of the four."""
    for run in five.runs.values():
        finish(run, 50.0 + run.seed / 100, counts={"num_test_images": 10**9})
    text = record_baseline.record(five).read_text()
    fall = stats.noticeable_fall([50.0, 50.01, 50.02, 50.03, 50.04], 1, 0.0, 0.01 / 8)
    assert fall is not None and text.count(f"notices_fall_of: {fall:.1f}\n") == 4
    assert record_baseline.doubts(five) == []
    for run in five.runs.values():
        finish(run, 20.0 * run.seed)
    assert "notices_fall_of: null" in record_baseline.record(five).read_text()
    doubt = "swav_800ep/knn_head/knn20 would notice no fall: its 5 seeds spread too widely for its mean"
    assert doubt in record_baseline.doubts(five)


def test_a_number_near_its_control_is_a_doubt(checkout: Path, finish: Callable[..., None]) -> None:
    plan = build.build_plan(Request(("knn_pooled",), "smoke", (0, 1, 2, 3, 4)))
    for run in plan.runs.values():
        of_swav = run.label.startswith("knn of swav")
        finish(run, (26.0 if of_swav else 20.0) + (run.seed if of_swav else 0), counts={"num_test_images": 10**9})
    record_baseline.record(plan)
    doubt = "swav_800ep/knn/knn20 does not stand clear of its control random/knn/knn20: new seeds of unchanged code may"
    assert any(each.startswith(doubt) for each in record_baseline.doubts(plan))
    assert len(record_baseline.doubts(plan)) == 2


def test_nothing_recorded_is_empty(checkout: Path) -> None:
    assert baseline.load("smoke").cells == {}


def test_a_run_without_result_is_not_recorded(five: Plan) -> None:
    with pytest.raises(UserError, match=r"20 runs have no result|\d+ runs have no result"):
        record_baseline.record(five)
    assert not baseline.path("smoke").exists()


def test_results_without_num_test_images_are_not_recorded(five: Plan, finish: Callable[..., None]) -> None:
    for run in five.runs.values():
        finish(run)
    knn = next(run for run in five.runs.values() if run.name == "knn_head" and run.seed == 0)
    finish(knn, counts={})
    with pytest.raises(UserError, match=rf"{knn.result} .*evals/knn\.py .*context\.run\.counts\['num_test_images'\]"):
        record_baseline.record(five)


@pytest.mark.parametrize(
    ("provenance", "says"),
    [
        ({"git_commit": "c" * 40, "git_dirty": True, "packages": {}}, "uncommitted code"),
        ({"git_commit": "d" * 40, "git_dirty": False, "packages": {}}, "commits whose runs differ"),
    ],
)
def test_results_of_unknown_code_are_refused(
    five: Plan, finish: Callable[..., None], provenance: dict[str, object], says: str
) -> None:
    for run in five.runs.values():
        finish(run)
    finish(run, provenance=provenance)
    with pytest.raises(UserError, match=says):
        record_baseline.record(five)
    record_baseline.record(five, allow_dirty=True)
    assert baseline.load("smoke").header["dirty"] == provenance["git_dirty"]


def test_a_dirty_checkout_is_refused_before_anything_runs(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        revision, "git", lambda *arguments: " M models/methods/swav.py" if "status" in arguments else "c" * 40
    )
    with pytest.raises(UserError, match="--allow-dirty"):
        main(["record-baseline"])


def test_too_few_seeds_and_printed_tables_are_refused(checkout: Path) -> None:
    with pytest.raises(UserError, match="too few"):
        main(["record-baseline", "--seeds", "4"])
    with pytest.raises(UserError, match="nothing to record"):
        main(["record-baseline", "--allow-dirty", "--scale", "paper"])


RECORD = """\
recorded:
  commit: 05542f20f65a1e0fe2d3a6e50efa35b066e47175
  dirty: false
  date: '2026-11-24'
  seeds: [0, 1, 2]
  machine: {cpu: Abacus, cores: 2, system: Linux x86_64}
  packages: {torch: 2.14.1}
cells:
  swav_800ep/knn/knn20:
    n: 3
    mean: 60.0
    sd: 1.0
    values: [59.0, 60.0, 61.0]
    num_test_images: 640
    run_id: knn-s0-0d5b188df7
wall_seconds: {evaluate/knn: 5.0}
"""


@pytest.mark.parametrize(
    ("found", "instead", "says"),
    [
        (r"(?s).*", "cells: 3", "'int' object has no attribute 'items'"),
        (r"(?s).*", "cells: [", "while parsing a flow node"),
        (r"(?s)^cells:.*", "", "no key 'cells'"),
        (r"^  seeds: .*", "", "no key 'seeds'"),
        (r"^  seeds: .*", "  seeds: []", "recorded names no seeds"),
        (r"^  machine: .*", "  machine: {}", "recorded names no seeds, or not the machine"),
        (r"values: \[[\d.]+", "values: [x", "could not convert string to float: 'x'"),
        (r"values: \[[\d.]+", "values: [.nan", r"\.nan in line \d+ is no finite number"),
        (r"values: \[[^]]+", "values: [5.0", r"values is \[5\.0\], not the numbers of several seeds"),
    ],
)
def test_a_damaged_record_is_named(checkout: Path, found: str, instead: str, says: str) -> None:
    whole = RECORD
    baseline.path("smoke").write_text(whole)
    assert baseline.load("smoke").cells
    damaged, changes = re.subn(found, instead, whole, count=1, flags=re.MULTILINE)
    assert changes == 1
    baseline.path("smoke").write_text(damaged)
    with pytest.raises(UserError, match=rf"recorded\.yaml is damaged \(.*{says}.*\); restore it from git"):
        baseline.load("smoke")
