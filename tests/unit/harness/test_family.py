"""What a check compares with recorded numbers: its family, its checkpoints, its controls, and its false alarms."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from scipy import stats as scipy_stats

from reproduce.__main__ import main
from reproduce.harness.plan import build
from reproduce.harness.plan.model import Cell, Plan, Request, Run
from reproduce.harness.report.headline import headline
from reproduce.harness.report.page import write_page
from reproduce.harness.report.render_tables import NOTICES_FOOTNOTE
from reproduce.harness.spec import baseline
from reproduce.harness.spec.baseline import RecordedCell, RecordedNumbers
from reproduce.harness.verdict import check, notes, stats
from reproduce.harness.verdict.cells import CellVerdict
from reproduce.harness.verdict.checkpoints import CheckpointVerdict
from reproduce.harness.verdict.family import Checkpoint, Family, lowest_difference
from reproduce.harness.verdict.labels import Verdict

Finish = Callable[..., None]
SEEDS = range(20)
COMMON = [0.9, -1.1, 0.3, 1.6, -0.4, -1.7, 0.8, 0.1, -0.6, 1.2, -0.2, 0.5, -1.3, 1.0, -0.9, 0.4, -0.1, 1.4, -1.5, 0.2]
"""What moves all cells of a seed's SwAV checkpoint together, in points."""
OWN = [0.7, 0.2, -0.8, 0.1, 0.9, -0.3, -0.6, 0.5, -0.1, -0.7, 0.8, -0.5, 0.3, 0.0, -0.9, 0.6, -0.2, 0.4, -0.4, 0.1]
MEANS = {
    "swav_800ep/knn_head/knn20": 60.0,
    "swav_800ep/knn_head/knn200": 62.0,
    "swav_800ep/knn/knn20": 70.0,
    "swav_800ep/knn/knn200": 72.0,
    "random/knn_head/knn20": 20.0,
    "random/knn_head/knn200": 20.0,
    "random/knn/knn20": 20.0,
    "random/knn/knn200": 20.0,
    "swav_800ep/lowshot_13/top1": 50.0,  # of a table that is not requested
}


def recorded_value(key: str, seed: int) -> float:
    """A seed's number of a cell: its checkpoint's luck, and its own."""
    own = OWN[(seed + 7 * list(MEANS).index(key)) % len(OWN)]
    return round(MEANS[key] + (COMMON[seed] if key.startswith("swav") else COMMON[-seed - 1]) + own, 4)


def write_recorded(means: dict[str, float] = MEANS, seeds: range = SEEDS) -> None:
    """Write recorded numbers, as `record-baseline` would."""
    cells = {
        key: {
            "values": [recorded_value(key, seed) for seed in seeds],
            "num_test_images": 100_000,
            "run_id": f"{key.split('/')[1]}-s0-0123456789",
        }
        for key in means
    }
    header = {"commit": "c", "dirty": False, "date": "2026-01-01", "seeds": list(seeds), "packages": {}}
    header["machine"] = {"cpu": "one", "cores": 2}
    path = baseline.path("smoke")
    path.write_text(yaml.safe_dump({"recorded": header, "cells": cells, "wall_seconds": {}}))


@pytest.fixture
def plan(checkout: Path, finish: Finish) -> Plan:
    """Table 7 and pooled kNN: eight recorded cells of two checkpoints, each with the mean that was recorded."""
    write_recorded()
    planned = build.build_plan(Request(("table7", "knn_pooled"), "smoke"))
    for run in planned.runs.values():
        give(planned, run, finish)
    return planned


def give(plan: Plan, run: Run, finish: Finish, fall: float = 0.0) -> None:
    """Finish an evaluation with its recorded means less `fall`."""
    key = f"{plan.runs[run.parents[0]].name}/{run.name}" if run.parents else ""
    finish(run, metrics={name: MEANS[f"{key}/{name}"] - fall for name in ("knn20", "knn200")} if key else {})


def fall_of_swav(plan: Plan, finish: Finish, points: float) -> None:
    for run in plan.runs.values():
        if run.parents and plan.runs[run.parents[0]].name == "swav_800ep":
            give(plan, run, finish, points)


def of_name(verdicts: list[CheckpointVerdict], name: str) -> CheckpointVerdict:
    (found,) = [each for each in verdicts if each.checkpoint.pretrain == name]
    return found


def cells_of(plan: Plan) -> dict[str, CellVerdict]:
    found: dict[str, CellVerdict] = {}
    for table in check.check_tables(plan):
        found |= {f"{table.table.table}/{row.label}/{key}": cell for row, key, cell in table.cells()}
    return found


def test_the_family_is_what_the_check_compares(plan: Plan) -> None:
    """Not what else is recorded. Of the pooled table's row, the control is set; the fixture takes Table 7's."""
    family = Family.of_plan(plan, baseline.load("smoke"))
    assert len(family.cells) == 8 and "swav_800ep/lowshot_13/top1" not in family.cells
    assert [(each.pretrain, len(each.cells)) for each in family.checkpoints] == [("swav_800ep", 4), ("random", 4)]
    assert family.controls == tuple((f"swav_800ep/knn/{k}", f"random/knn/{k}") for k in ("knn20", "knn200"))
    assert family.tail == pytest.approx(0.01 / (2 * 8 + 2 * 2 + 2))
    alone = Family.of_plan(build.build_plan(Request(("table7",), "smoke")), baseline.load("smoke"))
    assert (len(alone.cells), alone.checkpoints, alone.controls) == (4, (), ())
    assert alone.tail == pytest.approx(0.01 / 8)


def test_a_number_in_two_tables_is_one_member(plan: Plan) -> None:
    both = build.build_plan(Request(("knn_pooled", "methods"), "smoke"))
    keys = [cell.metric_key for cell in both.cells if cell.metric_key in MEANS]
    family = Family.of_plan(both, baseline.load("smoke"))
    assert len(keys) > len(set(keys)) == len(family.cells)


def test_other_images_have_no_family(plan: Plan) -> None:
    other = build.build_plan(Request(("table7",), "smoke", data="mine", data_config="cifar10"))
    assert Family.of_plan(other, baseline.load("smoke")) == Family()


def test_a_cells_interval_has_the_familys_level(plan: Plan) -> None:
    cell = cells_of(plan)["table7/SwAV/knn20"]
    values = [recorded_value("swav_800ep/knn_head/knn20", seed) for seed in SEEDS]
    half = scipy_stats.t.ppf(1 - 0.01 / 22, 19) * np.std(values, ddof=1) * math.sqrt(1 / 20 + 1)
    assert cell.interval == pytest.approx((np.mean(values) - half, np.mean(values) + half))
    further = scipy_stats.t.ppf(0.9, 19) * np.std(values, ddof=1) * math.sqrt(1 / 20 + 1)
    assert cell.noticeable_fall == pytest.approx(half + further)
    assert f"It would notice a fall of {half + further:.1f} points (90% probability)." in cell.reason


def test_a_checkpoint_is_judged_by_the_mean_of_its_cells(plan: Plan) -> None:
    swav = of_name(check.check_checkpoints(plan), "swav_800ep")
    keys = [key for key in MEANS if key.startswith("swav_800ep/knn")]
    values = [np.mean([recorded_value(key, seed) for key in keys]) for seed in SEEDS]
    half = scipy_stats.t.ppf(1 - 0.01 / 22, 19) * np.std(values, ddof=1) * math.sqrt(1 / 20 + 1)
    assert swav.interval == pytest.approx((np.mean(values) - half, np.mean(values) + half))
    assert (swav.verdict, swav.mean) == (Verdict.WITHIN, 66.0)
    assert swav.expected == pytest.approx(np.mean(values))
    assert "The mean of 4 cells of one checkpoint, by seed (20 recorded seeds)." in swav.reason
    falls = [cell.noticeable_fall for name, cell in cells_of(plan).items() if "SwAV" in name]
    assert swav.noticeable_fall is not None
    assert all(fall is not None and swav.noticeable_fall < fall for fall in falls)


def test_a_checkpoint_alone_can_fail_the_check(plan: Plan, finish: Finish, capsys: pytest.CaptureFixture[str]) -> None:
    """All cells fall by what none of them notices; their mean does."""
    swav = of_name(check.check_checkpoints(plan), "swav_800ep")
    assert swav.interval and swav.mean is not None
    fall_of_swav(plan, finish, swav.mean - swav.interval[0] + 0.05)
    assert {cell.verdict for cell in cells_of(plan).values()} == {Verdict.WITHIN}
    checked, checkpoints = check.check_tables(plan), check.check_checkpoints(plan)
    assert [each.verdict for each in checkpoints] == [Verdict.WORSE, Verdict.WITHIN]
    assert check.exit_status(checked) == check.AGREES
    assert check.exit_status(checked, checkpoints=checkpoints) == check.DISAGREES
    assert main(["check", "table7", "knn_pooled"]) == check.DISAGREES
    out = capsys.readouterr().out
    assert re.search(r"▼ worse +swav_800ep, top-1, %, 4 cells +\d+\.\d\d  expected", out)
    assert "1 of 2 checkpoint means inside (1 worse)" in out
    suites = {suite.get("name"): suite for suite in ElementTree.parse("reports/smoke/junit.xml").getroot()}
    assert (suites["checkpoints"].get("tests"), suites["checkpoints"].get("failures")) == ("2", "1")


def test_a_checkpoint_without_all_of_its_numbers_is_not_run(plan: Plan) -> None:
    run = next(run for run in plan.runs.values() if run.label.startswith("knn of swav_800ep"))
    run.result.unlink()
    swav = of_name(checkpoints := check.check_checkpoints(plan), "swav_800ep")
    assert (swav.verdict, swav.mean) == (Verdict.NOT_RUN, None)
    assert "2 of the 4 cells have no number: swav_800ep/knn/knn20; swav_800ep/knn/knn200." in swav.reason
    assert check.exit_status(check.check_tables(plan), checkpoints=checkpoints) == check.INCOMPLETE


def test_a_checkpoint_of_two_seeds_would_notice_smaller_falls(plan: Plan, finish: Finish) -> None:
    two = build.build_plan(Request(("table7", "knn_pooled"), "smoke", (0, 1)))
    for run in two.runs.values():
        give(two, run, finish)
    swav = of_name(check.check_checkpoints(two), "swav_800ep")
    keys = [key for key in MEANS if key.startswith("swav_800ep/knn")]
    values = [np.mean([recorded_value(key, seed) for key in keys]) for seed in SEEDS]
    quantiles = [scipy_stats.t.ppf(share, 19) for share in (1 - 0.01 / 22, 0.9)]
    assert swav.noticeable_fall == pytest.approx(sum(quantiles) * np.std(values, ddof=1) * math.sqrt(1 / 20 + 1 / 2))


def test_a_checkpoint_says_that_the_config_of_one_of_its_cells_has_changed(plan: Plan) -> None:
    path = baseline.path("smoke")
    content = yaml.safe_load(path.read_text())
    for cell in plan.cells:
        content["cells"][cell.metric_key]["run_id"] = cell.runs[0]
    path.write_text(yaml.safe_dump(content))
    assert notes.ConfigChanged() not in of_name(check.check_checkpoints(plan), "swav_800ep").notes
    content["cells"]["swav_800ep/knn/knn20"]["run_id"] = "knn-s0-0123456789"
    path.write_text(yaml.safe_dump(content))
    assert notes.ConfigChanged() in of_name(check.check_checkpoints(plan), "swav_800ep").notes


def test_only_seeds_that_all_cells_have_are_used(plan: Plan) -> None:
    path = baseline.path("smoke")
    content = yaml.safe_load(path.read_text())
    del content["cells"]["swav_800ep/knn/knn200"]["values"][7:]
    path.write_text(yaml.safe_dump(content))
    swav = of_name(check.check_checkpoints(plan), "swav_800ep")
    assert swav.notes[0] == notes.CheckpointMean(num_cells=4, num_recorded=7)
    keys = [key for key in MEANS if key.startswith("swav_800ep/knn")]
    assert swav.expected == pytest.approx(np.mean([recorded_value(key, seed) for key in keys for seed in range(7)]))


def test_every_report_shows_what_was_proved(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "table7", "knn_pooled"]) == check.AGREES
    out = capsys.readouterr().out
    (said,) = [line for line in out.splitlines() if "numbers inside" in line]
    falls = r"would notice falls of \d\.\d to \d\.\d points"
    numbers, means = rf"8 of 8 numbers inside, {falls}", rf"2 of 2 checkpoint means inside, {falls}"
    assert re.fullmatch(rf"no first steps are recorded of 6 runs; {numbers}; {means}", said)
    assert NOTICES_FOOTNOTE in out
    assert re.search(r"✓ within +SwAV, 20 neighbours +60\.00  expected .*\]  notices \d+\.\d\n", out)
    summary = Path("reports/smoke/summary.md").read_text()
    assert f"**{said[0].upper()}{said[1:]}.**" in summary
    assert "| Cell | Expected | Ours | Seeds | Would notice a fall of | Verdict |" in summary
    assert re.search(r"\| swav_800ep, top-1, %, 4 cells \| 66\.\d \| 66\.0 \| \d\.\d \| ✓ within \|", summary)
    data = json.loads(Path("reports/smoke/table7.json").read_text())
    assert all(cell["noticeable_fall"] > 0 for row in data["rows"] for cell in row["cells"].values())
    (swav, _) = json.loads(Path("reports/smoke/checkpoints.json").read_text())["checkpoints"]
    assert (swav["verdict"], swav["name"], len(swav["cells"])) == ("within", "swav_800ep, top-1, %", 4)
    page = write_page("smoke").read_text()
    (proved,) = re.findall(r'<ul class="proved">(.*?)</ul>', page, re.DOTALL)
    items = re.findall(r"<li>(.*?)</li>", proved)
    assert "; ".join(re.sub(r"</?b>", "", item) for item in items) == said and all(" of " in item for item in items)
    assert 'id="checkpoint-swav-800ep--top-1"' in page and page.count("notices −") == 8


def test_the_headline_claims_no_more_than_was_compared(plan: Plan, finish: Finish) -> None:
    path = baseline.path("smoke")
    content = yaml.safe_load(path.read_text())
    del content["cells"]["random/knn/knn200"]
    content["cells"]["random/knn/knn20"]["values"] = [0.0, 100.0] * 10
    path.write_text(yaml.safe_dump(content))
    fall_of_swav(plan, finish, 30.0)
    main(["check", "table7", "knn_pooled"])
    said = headline([json.loads(Path(f"reports/smoke/{name}.json").read_text()) for name in ("table7", "knn_pooled")])
    assert "; 3 of 7 numbers inside (4 worse), would notice falls of" in said
    assert "points (1 would notice none); 1 number not compared (1 no baseline)" in said


@pytest.mark.parametrize(("states", "says"), [
    (["equal", "equal"], "2 of 2 runs take the recorded first steps"),
    (["equal", "different"], "1 of 2 runs take the recorded first steps, different: 1 (run 1)"),
    (["equal", "not recorded", "not kept"],
     "1 of 3 runs take the recorded first steps, not recorded: 1, results without: 1"),
    ([None, "equal"], "1 of 1 runs take the recorded first steps"),
    (["not recorded"] * 2, "no first steps are recorded of 2 runs"),
])  # fmt: skip
def test_the_headline_counts_first_steps(states: list[str | None], says: str) -> None:
    runs = [{"run_id": str(n), "label": f"run {n}", "first_steps": state} for n, state in enumerate(states)]
    table = {"expected": "recorded", "rows": [], "columns": {}, "runs": runs}
    assert headline([table, table]) == says
    assert headline([{**table, "expected": "printed"}]) == ""


def test_what_recorded_seeds_allow_decides_the_control(plan: Plan, finish: Finish) -> None:
    """Inside its own interval, but too near to its control: the recorded differences forbid it."""
    control = next(run for run in plan.runs.values() if run.label.startswith("knn of random"))
    recorded = baseline.load("smoke")
    key, other = "swav_800ep/knn/knn20", "random/knn/knn20"
    differences = [recorded_value(key, seed) - recorded_value(other, seed) for seed in SEEDS]
    lowest = np.mean(differences) - scipy_stats.t.ppf(1 - 0.01 / 22, 19) * np.std(differences, ddof=1) * math.sqrt(1.05)
    assert lowest_difference(recorded, (key, other), 1, 0.01 / 22) == pytest.approx(lowest)
    finish(control, 70.0 - lowest - 0.01)
    assert cells_of(plan)["knn_pooled/SwAV/knn20"].verdict == Verdict.WITHIN
    finish(control, 70.0 - lowest + 0.01)
    cell = cells_of(plan)["knn_pooled/SwAV/knn20"]
    assert cell.verdict == Verdict.WORSE
    told = (
        f"{lowest - 0.01:+.1f} points from Random trunk; recorded seeds of unchanged code give at least {lowest:+.1f}."
    )
    assert told in cell.reason


@pytest.mark.parametrize(("points", "verdict"), [(0.5, "within"), (0.0, "worse"), (-2.0, "worse")])
def test_learning_must_beat_its_control_however_widely_seeds_spread(
    plan: Plan, finish: Finish, points: float, verdict: str
) -> None:
    """Five points above the control were required of a cell whose seeds spread by more: false alarms."""
    path = baseline.path("smoke")
    content = yaml.safe_load(path.read_text())
    content["cells"]["swav_800ep/knn/knn20"]["values"] = [30.0, 70.0] * 10
    path.write_text(yaml.safe_dump(content))
    swav, control = (next(run for run in plan.runs.values() if run.label.startswith(f"knn of {name}"))
                     for name in ("swav_800ep", "random"))  # fmt: skip
    finish(swav, 20.0 + points)
    finish(control, 20.0)
    cell = cells_of(plan)["knn_pooled/SwAV/knn20"]
    assert cell.verdict == verdict
    if verdict == "worse":
        assert "learning must beat it, although recorded seeds of unchanged code give at least -" in cell.reason


def test_equal_recorded_seeds_allow_their_own_difference() -> None:
    """Nothing is drawn, and the test set has no error: what comes out again is no alarm."""
    cells = {"a": RecordedCell([100.0] * 5, 10, "x"), "b": RecordedCell([0.0] * 5, 10, "y")}
    assert lowest_difference(RecordedNumbers({"seeds": [*range(5)]}, cells), ("a", "b"), 1, 1e-4) == 100.0


def test_both_test_sets_limit_what_a_control_forbids() -> None:
    """Recorded seeds that agree by luck: the errors of 400 images, 2.4 points, and of 100, 4, add up in squares."""
    cells = {"a": RecordedCell([60.0] * 5, 400, "x"), "b": RecordedCell([20.0] * 5, 100, "y")}
    reach = scipy_stats.norm.ppf(1 - 1e-4) * math.sqrt(6 + 16) * math.sqrt(1 / 5 + 1)
    found = lowest_difference(RecordedNumbers({"seeds": [*range(5)]}, cells), ("a", "b"), 1, 1e-4)
    assert found == pytest.approx(40 - reach)


def test_a_whole_check_raises_false_alarms_in_one_of_a_hundred() -> None:
    """Cells, checkpoints and controls together, with new seeds drawn as the recorded ones were.

    Two checkpoints of six cells; half of a cell's variance is its checkpoint's, as measured. Gains over the control
    spread by up to five points, so the earlier rule's false alarms would be many.
    """
    rng, num_checks, num_cells, seeds = np.random.default_rng(5), 2000, 6, 20
    sds = np.array([1.0, 1.5, 2.0, 3.0, 4.0, 5.0])[:, None]
    names = {pretrain: [f"{pretrain}/{number}" for number in range(num_cells)] for pretrain in ("swav", "random")}
    cell = Cell("t", "r", "c", "p", "e", "m", {})
    family = Family(
        (*names["swav"], *names["random"]),
        tuple(Checkpoint(pretrain, "%", (cell,) * num_cells) for pretrain in names),
        tuple(zip(names["swav"], names["random"], strict=True)),
    )

    def draw() -> dict[str, np.ndarray]:
        """Return the numbers of `seeds` recorded seeds and a new one, by cell."""
        found: dict[str, np.ndarray] = {}
        for pretrain, level in (("swav", 60.0), ("random", 33.0)):
            parts = rng.normal(size=(1, seeds + 1)) + rng.normal(size=(num_cells, seeds + 1))
            found |= dict(zip(names[pretrain], level + sds * parts / math.sqrt(2), strict=True))
        return found

    def outside(values: np.ndarray) -> bool:
        unchanged = stats.prediction_interval(list(values[:-1]), 1, 0.0, family.tail)
        return stats.compare_with_recorded([float(values[-1])], unchanged) != Verdict.WITHIN

    alarms = 0
    for _ in range(num_checks):
        drawn = draw()
        cells = {key: RecordedCell(list(values[:-1]), 10**9, key) for key, values in drawn.items()}
        recorded = RecordedNumbers({"seeds": [*range(seeds)]}, cells)
        gains = {pair: drawn[pair[0]][-1] - drawn[pair[1]][-1] for pair in family.controls}
        alarms += (
            any(outside(drawn[key]) for key in family.cells)
            or any(outside(np.mean([drawn[key] for key in keys], axis=0)) for keys in names.values())
            or any(gain <= max(0.0, lowest_difference(recorded, pair, 1, family.tail)) for pair, gain in gains.items())
        )
    assert 0 < alarms / num_checks < stats.FAMILY_LEVEL + 3 * math.sqrt(0.01 * 0.99 / num_checks)
