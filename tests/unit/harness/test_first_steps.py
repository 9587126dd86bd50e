"""Whether the runs behind a number took their recorded first steps, and what a check says if they did not."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from reproduce.__main__ import main
from reproduce.errors import UserError
from reproduce.harness import record_baseline, revision
from reproduce.harness.plan import build
from reproduce.harness.plan.model import Plan, Request, Run
from reproduce.harness.report.files import write_verdicts
from reproduce.harness.report.page import write_page
from reproduce.harness.report.render_claims import claims_as_text
from reproduce.harness.report.render_tables import table_as_markdown, table_as_text
from reproduce.harness.spec import golden, tables
from reproduce.harness.verdict import check, notes, strict
from reproduce.harness.verdict.claims import check_claims
from reproduce.harness.verdict.first_steps import FirstStepsCheck
from reproduce.harness.verdict.labels import ClaimStatus, Verdict
from tests.unit.harness.verdicts import Finish, cells_of

Steps = dict[str, list[float]]
LOSS = [3.0, 2.9, 2.8]
STEPS: Steps = {"indices": [7.0, 8.0, 9.0], "loss": LOSS}
OTHER: Steps = STEPS | {"loss": [3.0, 2.95, 2.7]}
CAUSE = (
    "loss at step 1 is 2.95, not 2.9 (tolerance 0.001); usually the loss: temperature, pairs of crops, assignments, "
    "labels, queue, momentum encoder, BatchNorm's group (the first of 2 differences)."
)


def record_steps(
    scale: str, *runs: Run, values: Steps = STEPS, tolerances: Mapping[str, Any] | None = None, **more: Any
) -> Path:
    """Record first steps of some runs: equal indices, losses within a thousandth unless `tolerances` are given."""
    usual = {name: [0.001 if name == "loss" else 0.0] * len(series) for name, series in values.items()}
    steps = {name: [series, (tolerances or usual)[name]] for name, series in values.items()}
    entry = {"recipes": [], "overrides": [], "steps": steps} | more
    path = golden.runs_path(scale)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"recorded": {}, "rehearsals": {run.run_id: entry for run in runs}}))
    return path


def table7(*seeds: int) -> Plan:
    return build.build_plan(Request(("table7",), "smoke", seeds or (0,)))


def named(plan: Plan, name: str, seed: int = 0) -> Run:
    """Return a pretraining, or the evaluation of one, by the pretraining's name."""
    kind = "evaluate" if name.startswith("knn_head of ") else "pretrain"
    wanted = name.removeprefix("knn_head of ")
    runs = plan.runs.values()
    return next(r for r in runs if r.kind == kind and wanted in (r.parent_name or r.name) and r.seed == seed)


@pytest.fixture
def done(checkout: Path, finish: Finish) -> Plan:
    """Table 7 at scale smoke: its numbers are recorded and come out again, its runs take their recorded steps."""
    five = table7(0, 1, 2, 3, 4)
    for run in five.runs.values():
        finish(run, [49.0, 50.0, 51.0, 50.0, 50.0][run.seed], first_steps=STEPS)
    record_baseline.record(five)
    record_steps("smoke", *five.runs.values())
    return table7()


def test_equal_first_steps_are_the_same_recipe(done: Plan) -> None:
    recorded = golden.runs_path("smoke").read_text()
    golden.runs_path("smoke").unlink()
    before = {key: cell.verdict for key, cell in cells_of(done).items()}
    golden.runs_path("smoke").write_text(recorded)
    cells = cells_of(done)
    assert {key: cell.verdict for key, cell in cells.items()} == before
    assert set(before.values()) == {Verdict.WITHIN}
    for cell in cells.values():
        assert cell.notes[-1] == notes.SameFirstSteps(num_runs=2, num_numbers=2 * 6)
        assert "Same recipe: 12 numbers of the first steps of its 2 runs equal the recorded ones." in cell.reason
    assert check.exit_status(check.check_tables(done)) == check.AGREES


def test_one_other_number_changes_the_cell_whatever_its_accuracy(done: Plan, finish: Finish) -> None:
    finish(named(done, "knn_head of swav_800ep"), 49.0, first_steps=OTHER)
    cell = cells_of(done)["SwAV/knn20"]
    assert (cell.verdict, cell.mean, cell.recorded_match) == (Verdict.CHANGED, 49.0, True)
    label = named(done, "knn_head of swav_800ep").label
    assert f"{label} took other first steps than recorded: {CAUSE}" in cell.reason
    note = cell.notes[-1]
    assert isinstance(note, notes.OtherFirstSteps)
    found = note.difference
    assert (note.run, note.num_differences, found.quantity, found.step) == (label, 2, "loss", 1)
    assert (found.found, found.expected, found.tolerance) == (2.95, 2.9, 0.001)
    assert cells_of(done)["Random trunk/knn20"].verdict == Verdict.WITHIN
    assert check.exit_status(check.check_tables(done)) == check.DISAGREES


@pytest.mark.parametrize(("steps", "changed"), [(OTHER, False), (STEPS | {"indices": [7.0, 8.0, 9.5]}, True)])
def test_of_a_run_on_a_gpu_only_the_input_and_the_rates_are_compared(
    done: Plan, finish: Finish, steps: Steps, changed: bool
) -> None:
    on_gpu = {"git_commit": "c" * 40, "git_dirty": False, "packages": {"torch": "2"}, "arithmetic": {"cudnn": 91000}}
    finish(named(done, "swav_800ep"), first_steps=steps, provenance=on_gpu)
    assert (cells_of(done)["SwAV/knn20"].verdict == Verdict.CHANGED) == changed
    if not changed:  # and nothing says that it took all of its recorded first steps
        steps_of = FirstStepsCheck.of_plan(done)
        assert steps_of.runs[named(done, "swav_800ep").run_id].state == "input equal"
        assert "3 of 4 runs take their recorded first steps; on a GPU, where only input" in steps_of.in_words()
        assert "on a GPU only the input and the rates are" in cells_of(done)["SwAV/knn20"].reason
        assert any("are of a GPU: only their input" in each for each in strict.open_issues(done, [], []))


def test_a_run_on_a_gpu_of_which_nothing_is_compared_is_not_equal(done: Plan, finish: Finish) -> None:
    run = named(done, "knn_head of random")
    on_gpu = {"git_commit": "c" * 40, "git_dirty": False, "packages": {"torch": "2"}, "arithmetic": {"cudnn": 91000}}
    recorded = json.loads(golden.runs_path("smoke").read_text())
    entry = recorded["rehearsals"][run.run_id]
    entry["steps"] = {"loss": next(iter(entry["steps"].values()))}
    golden.runs_path("smoke").write_text(json.dumps(recorded))
    finish(run, first_steps={"loss": [9.0, 9.0, 9.0]}, provenance=on_gpu)
    assert FirstStepsCheck.of_plan(done).runs[run.run_id].state == "not recorded"


def test_a_changed_cell_stands_in_every_report(done: Plan, finish: Finish, capsys: pytest.CaptureFixture[str]) -> None:
    finish(named(done, "knn_head of swav_800ep"), 49.0, first_steps=OTHER)
    assert main(["check", "table7"]) == check.DISAGREES
    out = capsys.readouterr().out
    assert out.count(CAUSE) == 2 and "≠ changed " in out
    label = named(done, "knn_head of swav_800ep").label
    proved = f"3 of 4 runs take the recorded first steps, different: 1 ({label}); 2 of 4 numbers inside (2 changed)"
    assert f"\n{proved}, would notice " in out
    assert "some cells or checkpoints disagree, are inconclusive or changed" in out
    data = json.loads(Path("reports/smoke/table7.json").read_text())
    cell = next(row for row in data["rows"] if row["label"] == "SwAV")["cells"]["knn20"]
    assert (cell["verdict"], cell["notes"][-1]["kind"]) == ("changed", "OtherFirstSteps")
    assert cell["notes"][-1]["difference"]["quantity"] == "loss"
    assert data["score"]["changed"] == 2
    assert "≠ changed" in Path("reports/smoke/table7.md").read_text()
    assert "≠ 2 changed" in Path("reports/smoke/summary.md").read_text()
    suite = ElementTree.parse("reports/smoke/junit.xml").getroot()[0]
    assert (suite.get("failures"), suite.get("errors")) == ("2", "0")
    assert all(CAUSE in str(failure.get("message")) for failure in suite.findall(".//failure"))
    page = write_page("smoke").read_text()
    mark = '<span class="verdict bad"><span class="mark bad" aria-hidden="true">≠</span> changed</span>'
    assert f"<dt>{mark}</dt><dd>a run behind it took other first steps than recorded" in page
    assert page.count(mark) >= 3 and "loss at step 1 is 2.95, not 2.9" in page


@pytest.mark.parametrize(
    ("steps", "changed"),
    [
        ({"loss": [3.0, 2.9009, 2.8]}, False),
        ({"loss": [3.0, 2.9011, 2.8]}, True),
        ({"loss": [3.0, 2.9]}, True),
        ({"loss": [3.0, 2.9, 2.8, 2.7]}, False),  # more steps than are recorded
        ({"indices": [7.0, 8.0, 9.5]}, True),
        ({"a quantity that is not recorded": [1.0]}, False),
    ],
)
def test_numbers_are_equal_within_their_tolerance(done: Plan, finish: Finish, steps: Steps, changed: bool) -> None:
    finish(named(done, "swav_800ep"), first_steps=STEPS | steps)
    assert (cells_of(done)["SwAV/knn20"].verdict == Verdict.CHANGED) == changed


def test_a_recorded_quantity_that_a_result_lacks_is_a_difference(done: Plan, finish: Finish) -> None:
    finish(named(done, "swav_800ep"), first_steps={"loss": LOSS})
    reason = cells_of(done)["SwAV/knn20"].reason
    assert "number of values of indices is 0, not 3 (tolerance 0); usually the number of steps, or code" in reason


def test_a_number_without_tolerance_is_not_compared(done: Plan, finish: Finish) -> None:
    tolerances = {"indices": [0, 0, 0], "loss": [0.001, None, None]}
    record_steps("smoke", *done.runs.values(), tolerances=tolerances)
    finish(named(done, "swav_800ep"), first_steps=OTHER)
    assert cells_of(done)["SwAV/knn20"].notes[-1] == notes.SameFirstSteps(2, num_numbers=2 * 4)


def test_a_pretrainings_difference_marks_its_evaluations_cells(done: Plan, finish: Finish) -> None:
    finish(named(done, "swav_800ep"), first_steps=OTHER)
    cells = cells_of(done)
    assert {key: cell.verdict for key, cell in cells.items()} == {
        "SwAV/knn20": Verdict.CHANGED,
        "SwAV/knn200": Verdict.CHANGED,
        "Random trunk/knn20": Verdict.WITHIN,
        "Random trunk/knn200": Verdict.WITHIN,
    }
    assert f"swav_800ep, seed 0 took other first steps than recorded: {CAUSE}" in cells["SwAV/knn20"].reason


def test_a_pretraining_is_named_before_its_evaluation(done: Plan, finish: Finish) -> None:
    evaluation = named(done, "knn_head of swav_800ep")
    finish(named(done, "swav_800ep"), first_steps=OTHER)
    finish(evaluation, first_steps=OTHER)
    reason = cells_of(done)["SwAV/knn20"].reason
    assert (
        "swav_800ep, seed 0 took other first steps" in reason and f"differences). So did {evaluation.label}." in reason
    )


def test_one_seed_is_enough(done: Plan, finish: Finish) -> None:
    three = table7(0, 1, 2)
    assert cells_of(three)["SwAV/knn20"].notes[-1] == notes.SameFirstSteps(6, num_numbers=36)
    finish(named(three, "swav_800ep", seed=2), first_steps=OTHER)
    assert cells_of(three)["SwAV/knn20"].verdict == Verdict.CHANGED
    assert cells_of(table7(0, 1))["SwAV/knn20"].verdict == Verdict.WITHIN  # seed 2 makes none of their numbers


def test_a_worse_number_of_another_recipe_is_changed(done: Plan, finish: Finish) -> None:
    finish(named(done, "knn_head of swav_800ep"), 5.0)
    assert cells_of(done)["SwAV/knn20"].verdict == Verdict.WORSE
    finish(named(done, "knn_head of swav_800ep"), 5.0, first_steps=OTHER)
    assert cells_of(done)["SwAV/knn20"].verdict == Verdict.CHANGED


def test_a_number_without_baseline_can_be_changed(smoke: Plan, finish: Finish) -> None:
    for run in smoke.runs.values():
        finish(run, first_steps=STEPS)
    record_steps("smoke", *smoke.runs.values())
    assert check.exit_status(check.check_tables(smoke)) == check.NOTHING_COMPARED
    finish(named(smoke, "swav_800ep"), first_steps=OTHER)
    verdicts = {cell.verdict for table in check.check_tables(smoke) for _, _, cell in table.cells()}
    assert verdicts == {Verdict.NO_BASELINE, Verdict.CHANGED}
    assert check.exit_status(check.check_tables(smoke)) == check.DISAGREES


def test_a_cell_that_lacks_a_run_stays_not_run_and_names_the_difference(done: Plan, finish: Finish) -> None:
    finish(named(done, "swav_800ep"), first_steps=OTHER)
    named(done, "knn_head of swav_800ep").result.unlink()
    cell = cells_of(done)["SwAV/knn20"]
    assert cell.verdict == Verdict.NOT_RUN and CAUSE in cell.reason
    assert check.exit_status(check.check_tables(done)) == check.INCOMPLETE


def test_a_run_that_is_not_recorded_says_so(done: Plan) -> None:
    record_steps("smoke", named(done, "swav_800ep"), *(named(done, name) for name in ("knn_head of random", "random")))
    evaluation = named(done, "knn_head of swav_800ep").label
    cell = cells_of(done)["SwAV/knn20"]
    assert (cell.verdict, cell.notes[-1]) == (Verdict.WITHIN, notes.FirstStepsNotCompared((evaluation,), (), 1))
    assert f"no first steps are recorded of {evaluation} (recorded are those of seed 0 on the" in cell.reason
    assert cell.reason.endswith("); those of the other runs equal the recorded ones.")
    assert FirstStepsCheck.of_plan(done).in_words() == ("3 of 4 runs take their recorded first steps; not recorded: 1")
    assert check.exit_status(check.check_tables(done)) == check.AGREES


def test_other_images_have_no_recorded_first_steps(done: Plan, finish: Finish) -> None:
    plan = build.build_plan(Request(("table7",), "smoke", data="mine", data_config="cifar10"))
    for run in plan.runs.values():
        finish(run, 49.0, first_steps=OTHER)
    cell = cells_of(plan)["SwAV/knn20"]
    assert cell.verdict == Verdict.NO_BASELINE
    note = cell.notes[-1]
    assert isinstance(note, notes.FirstStepsNotCompared) and len(note.not_recorded) == 2
    assert (
        FirstStepsCheck.of_plan(plan)
        .in_words()
        .startswith("0 of 4 runs take their recorded first steps; not recorded: 4")
    )


def test_a_result_from_before_first_steps_says_so(done: Plan, finish: Finish, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(pretraining := named(done, "swav_800ep"))
    cell = cells_of(done)["SwAV/knn20"]
    assert (cell.verdict, cell.notes[-1]) == (Verdict.WITHIN, notes.FirstStepsNotCompared((), (pretraining.label,), 1))
    assert f"results from before first steps were kept have none ({pretraining.label})" in cell.reason
    assert "results from before first steps were kept: 1" in FirstStepsCheck.of_plan(done).in_words()
    monkeypatch.setattr(revision, "git", lambda *_: "")
    issue = "1 of 4 results have no first steps to compare with the recorded ones"
    assert issue in strict.open_issues(done, check.check_tables(done), [])
    finish(pretraining, first_steps=STEPS)
    assert issue not in strict.open_issues(done, check.check_tables(done), [])


def test_a_scale_without_recorded_runs_says_so(done: Plan) -> None:
    golden.runs_path("smoke").unlink()
    cell = cells_of(done)["SwAV/knn20"]
    assert (cell.verdict, cell.notes[-1]) == (Verdict.WITHIN, notes.NoRecordedFirstSteps("smoke"))
    assert cell.reason.endswith("not compared: no first steps of runs are recorded at scale smoke.")
    assert FirstStepsCheck.of_plan(done).in_words() == "no first steps of runs are recorded at scale smoke"
    for run in done.runs.values():
        run.result.unlink()
    assert FirstStepsCheck.of_plan(done).in_words() == ""
    assert "first steps" not in cells_of(done)["SwAV/knn20"].reason


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("", "Expecting value"),
        ("[]", "list indices"),
        ('{"recorded": {}}', "'rehearsals'"),
        ({"overrides": None, "much": "more"}, "much"),
        ({"steps": {"loss": [LOSS]}}, "not enough values to unpack"),
        ({"steps": {"loss": 3}}, "cannot unpack"),
        ({"tolerances": {"indices": [0] * 3, "loss": [0.001] * 2}}, "loss has 3 values and 2 tolerances"),
        ({"tolerances": {"indices": [0] * 3, "loss": ["wide"] * 3}}, "must be real number"),
        ({"values": {"indices": [7, 8, None], "loss": LOSS}}, "must be real number"),
    ],
)
def test_a_damaged_recording_is_one_sentence(done: Plan, damage: str | Mapping[str, Any], says: str) -> None:
    if isinstance(damage, str):
        golden.runs_path("smoke").write_text(damage)
    else:
        record_steps("smoke", *done.runs.values(), **{"values": STEPS, **damage})
    path = golden.runs_path("smoke")
    with pytest.raises(
        UserError, match=rf"^{path} is damaged \(.*{says}.*\); restore it from git, or record it again$"
    ):
        check.check_tables(done)


@pytest.mark.parametrize("steps", [[], None, {"loss": 3.0}, {"loss": ["3.0"]}, {"loss": [3.0, None]}])
def test_damaged_first_steps_of_a_result_are_named(done: Plan, finish: Finish, steps: Any) -> None:
    run = named(done, "swav_800ep")
    finish(run, first_steps=steps)
    with pytest.raises(UserError, match=rf"^{run.result} is damaged \(first_steps.*\); delete it and run"):
        check.check_tables(done)


def test_recorded_first_steps_are_no_scale(done: Plan) -> None:
    assert tables.scales() == ["lite", "paper", "smoke"]
    with pytest.raises(UserError, match=r"no first steps are recorded at scale mine \(recorded: ((?!_runs).)*\)"):
        golden.load("mine")


def test_a_claim_on_a_changed_run_is_not_supported(checkout: Path, finish: Finish) -> None:
    plan = build.build_plan(Request(("claims",), "paper", (0, 1, 2)))
    better = {"swav_400ep_2x160_4x96": 75.0, "swav_400ep_fixed_prototypes": 73.0}
    for run in plan.runs.values():
        finish(run, better.get(run.parent_name, 70.0) + 0.1 * run.seed, first_steps=STEPS)
    record_steps("paper", *plan.runs.values())

    def judged() -> dict[str, Any]:
        return {each.claim.claim: each for each in check_claims(plan)}

    before = judged()
    assert before["learned-prototypes"].status == ClaimStatus.HOLDS
    changed = named(plan, "swav_400ep_fixed_prototypes", seed=1)
    finish(changed, first_steps=OTHER)
    after = judged()
    claim = after["learned-prototypes"]
    assert (claim.status, claim.tendency, claim.incomplete) == (ClaimStatus.CHANGED, "", False)
    assert f"{changed.label} took other first steps than recorded: {CAUSE}" in claim.parts[0].reason
    unaffected = {name for name, each in before.items() if name != claim.claim.claim}
    assert {name: after[name].status for name in unaffected} == {name: before[name].status for name in unaffected}
    assert check.exit_status([], [claim]) == check.DISAGREES
    assert any(issue == "claim learned-prototypes: changed" for issue in strict.open_issues(plan, [], [claim]))
    assert "≠ changed" in claims_as_text([claim])
    write_verdicts(plan, [], [claim])
    suite = ElementTree.parse("reports/paper/junit.xml").getroot()[0]
    (failure,) = suite.findall(".//failure")
    assert str(failure.get("message")).startswith("changed: ") and CAUSE in str(failure.get("message"))
    assert "decides nothing" in write_page("paper").read_text()


def test_a_claim_that_lacks_a_run_stays_not_run(checkout: Path, finish: Finish) -> None:
    plan = build.build_plan(Request(("claims",), "paper"))
    record_steps("paper", *plan.runs.values())
    finish(named(plan, "swav_400ep_fixed_prototypes"), first_steps=OTHER)
    (claim,) = [each for each in check_claims(plan) if each.claim.claim == "learned-prototypes"]
    assert (claim.status, claim.incomplete) == (ClaimStatus.NOT_RUN, True)


def test_a_changed_curve_fails_the_check_of_its_figure(checkout: Path, finish: Finish) -> None:
    plan = build.build_plan(Request(("figure3",), "paper"))
    for run in plan.runs.values():
        finish(run, first_steps=STEPS)
    record_steps("paper", *plan.runs.values())
    assert check.exit_status(check.check_tables(plan)) == check.AGREES
    finish(named(plan, "swav_400ep_hard"), first_steps=OTHER)
    checked = check.check_tables(plan)
    assert check.exit_status(checked) == check.DISAGREES
    sentence = f"swav_400ep_hard, seed 0 took other first steps than recorded: {CAUSE}"
    assert sentence in table_as_text(checked[0]) and sentence in table_as_markdown(plan, checked[0])
    write_verdicts(plan, checked)
    assert "loss at step 1 is 2.95, not 2.9" in write_page("paper").read_text()


def test_every_variant_that_the_best_is_chosen_from_counts(checkout: Path, finish: Finish) -> None:
    plan = build.build_plan(Request(("table3",), "paper"))
    for run in plan.runs.values():
        finish(run, 50.0, first_steps=STEPS)
    record_steps("paper", *plan.runs.values())
    cell = next(cell for cell in plan.cells if cell.runs_by_override and cell.row == "SwAV")
    chosen = set(cells_of(plan)[f"SwAV/{cell.column}"].run_ids)
    other = next(name for name in cell.run_ids if name not in chosen)
    finish(plan.runs[other], 50.0, first_steps=OTHER)
    assert cells_of(plan)[f"SwAV/{cell.column}"].verdict == Verdict.CHANGED
