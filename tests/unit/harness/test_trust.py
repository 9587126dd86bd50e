"""What can't be what it is called ends a check: copies of seeds, impossible numbers. Its files stay well-formed."""

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from reproduce.errors import UserError
from reproduce.harness import record_baseline, results
from reproduce.harness.plan import build
from reproduce.harness.plan.model import Plan, Request, Run
from reproduce.harness.report.junit import as_junit
from reproduce.harness.report.render_tables import table_as_markdown
from reproduce.harness.report.rendering import markdown_row, xml_text
from reproduce.harness.verdict import cells, check, claims, stats
from reproduce.harness.verdict.cells import CellVerdict
from reproduce.harness.verdict.claims import check_claims
from reproduce.harness.verdict.labels import ClaimStatus, Verdict
from reproduce.harness.verdict.seed_results import SeedResults
from tests.unit.harness.verdicts import Finish, cells_of


@pytest.fixture
def plan(checkout: Path, finish: Finish) -> Plan:
    """Table 9 with three seeds, done; every evaluation is of its own checkpoint."""
    plan = build.build_plan(Request(("table9",), "paper", (0, 1, 2)))
    for run in plan.runs.values():
        finish(run, 73.9 + run.seed / 100, provenance=provenance(run, sha256=(run.parents or [run.run_id])[0]))
    return plan


def provenance(run: Run, sha256: str = "") -> dict[str, object]:
    digits = run.run_id.rpartition("-")[2]
    known = {"git_commit": "c" * 40, "git_dirty": False, "packages": {}, "config_hash": digits + "0" * 54}
    return known | ({"checkpoint_sha256": sha256} if sha256 else {})


def evaluation(plan: Plan, seed: int) -> Run:
    return next(run for run in plan.runs.values() if run.kind == "evaluate" and run.seed == seed)


def edit(run: Run, **changes: object) -> None:
    run.result.write_text(json.dumps(json.loads(run.result.read_text()) | changes))


def test_honest_results_pass(plan: Plan) -> None:
    assert len(check.check_tables(plan)) == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": 0}, "its seed is 0"),
        ({"name": "knn"}, "its name is knn"),
        ({"status": "failed"}, "its status is failed"),
        ({"provenance": {"config_hash": "f" * 64}}, "its config has the hash ffffffffff"),
    ],
)
def test_a_result_under_another_name_is_refused(plan: Plan, changes: dict[str, object], says: str) -> None:
    run = evaluation(plan, 1)
    edit(run, **changes)
    with pytest.raises(UserError, match=f"{run.run_id}, but {says}"):
        check.check_tables(plan)


def test_another_seeds_file_with_its_run_id_edited_is_refused(plan: Plan) -> None:
    first, second = evaluation(plan, 0), evaluation(plan, 1)
    shutil.copy(first.result, second.result)
    edit(second, run_id=second.run_id)
    with pytest.raises(UserError, match="its seed is 0"):
        check.check_tables(plan)


def test_a_name_that_no_run_has_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps({"run_id": "a copy", "metrics": {}, "wall_seconds": 1}))
    with pytest.raises(UserError, match="called the result of a copy, but no run has such a name"):
        results.load(tmp_path / "result.json", "a copy")


def test_one_training_is_not_two_seeds(plan: Plan) -> None:
    """Seed 0's checkpoint in seed 1's folder: whatever was edited, the evaluations were of one file."""
    first, second = evaluation(plan, 0), evaluation(plan, 1)
    edit(second, provenance=provenance(second, sha256=first.parents[0]))
    edit(plan.runs[second.parents[0]], provenance=provenance(plan.runs[second.parents[0]], sha256=first.parents[0]))
    with pytest.raises(UserError, match=f"one and the same checkpoint.*delete .*{second.parents[0]}"):
        check.check_tables(plan)


def test_trainings_without_spread_are_to_be_explained(plan: Plan, finish: Finish) -> None:
    """Everything about the copies is edited, down to the hash of the checkpoint. The number gives them away."""
    for run in plan.runs.values():
        finish(run, 73.9, provenance=provenance(run, sha256=(run.parents or [run.run_id])[0]))
    cell = cells_of(plan)["SwAV, learned prototypes/top1"]
    assert (cell.verdict, cell.p_value, cell.interval) == (Verdict.INCONCLUSIVE, None, None)
    assert "3 pretrainings gave this number to the last digit" in cell.reason
    assert check.exit_status(check.check_tables(plan)) == check.DISAGREES
    (soft,) = [each for each in check_claims(plan) if each.claim.claim == "soft-assignments"]
    assert soft.status == ClaimStatus.INCONCLUSIVE


@pytest.mark.parametrize("value", [-0.1, 100.1, 7390.0])
def test_an_impossible_percentage_is_no_verdict(plan: Plan, finish: Finish, value: float) -> None:
    run = evaluation(plan, 2)
    finish(run, value, provenance=provenance(run, sha256=run.parents[0]))
    with pytest.raises(UserError, match=f"{run.run_id}.*{value}, which is no percentage"):
        check.check_tables(plan)


def test_numbers_that_nothing_is_compared_with_have_a_status_of_their_own(checkout: Path, finish: Finish) -> None:
    plan = build.build_plan(Request(("table7",), "smoke", (0, 1, 2, 3, 4)))
    for run in plan.runs.values():
        finish(run, 50.0 + run.seed)
    assert check.exit_status(check.check_tables(plan)) == check.NOTHING_COMPARED
    record_baseline.record(plan)
    assert check.exit_status(check.check_tables(plan)) == check.AGREES


def test_no_label_forges_a_row_and_no_message_breaks_a_file() -> None:
    assert (
        markdown_row(["a|b", "two\nlines | more\r", "\x1b[31mred\x00"])
        == "| a\\|b | two lines \\| more | \ufffd[31mred\ufffd |"
    )
    assert xml_text("tab\t, line\n, \U0001f600, \x08\ud800\uffff") == "tab\t, line\n, \U0001f600, \ufffd\ufffd\ufffd"


def test_a_failures_message_with_control_characters_is_well_formed_xml(plan: Plan) -> None:
    run = evaluation(plan, 1)
    run.result.unlink()
    run.failure.write_text(json.dumps({"status": "failed", "message": "can't decode \x1b\x00 | \ud800"}))
    checked = check.check_tables(plan)
    messages = [error.attrib["message"] for error in ElementTree.fromstring(as_junit(checked)).iter("error")]
    assert messages and "can't decode \ufffd\ufffd | \ufffd" in messages[0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kind": "pretrain"}, "its kind is pretrain"),
        ({"scale": "lite"}, "its scale is lite"),
        ({"parents": ["x"]}, r"its parents is \['x'\]"),
        ({"parents": None}, "parents is no list of texts"),
        ({"counts": {"num_test_images": -5}}, "counts.num_test_images is -5, not a count"),
        ({"counts": {"num_test_images": 0.5}}, "counts.num_test_images is 0.5, not a count"),
        ({"counts": {"num_skipped_images": -3}}, "not a count"),
    ],
)
def test_what_the_run_cannot_have_written_is_refused(plan: Plan, changes: dict[str, object], says: str) -> None:
    edit(evaluation(plan, 1), **changes)
    with pytest.raises(UserError, match=says):
        check.check_tables(plan)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("git_commit", "a\0b"),
        ("git_commit", "\ud800"),
        ("git_commit", 5),
        ("arithmetic", 5),
        ("checkpoint_sha256", 5),
        ("checkpoint_sha256", ["a"]),
        ("checkpoint_sha256", "A" * 64),
        ("code_changed", 5),
        ("data_changed", "imagenet/val"),
        ("code_changed", [[]]),
        ("hardware", {}),
    ],
)
def test_an_entry_of_another_type_is_a_sentence(plan: Plan, key: str, value: object) -> None:
    run = evaluation(plan, 1)
    edit(run, provenance=provenance(run) | {key: value})
    with pytest.raises(UserError, match=rf"is damaged \(provenance\.{key} is "):
        check.check_tables(plan)


def test_doubts_forge_no_row_and_command_no_terminal(plan: Plan) -> None:
    run = evaluation(plan, 1)
    forged = "x.\n\n| Cell | Verdict |\n|---|---|\n| SwAV | reproduced |\n\x1b[2J" + "y" * 5000
    edit(run, provenance=provenance(run) | {"code_changed": [forged]})
    (table,) = check.check_tables(plan)
    (doubt,) = [each for each in table.doubts if "code changed while" in each]
    assert doubt.isprintable() and "|" not in doubt and len(doubt) < 600
    assert f"Note: {doubt}." in table_as_markdown(plan, table)


@pytest.mark.parametrize("value", [0.0, -5.0])
def test_nothing_takes_no_time(checkout: Path, finish: Finish, value: float) -> None:
    plan = build.build_plan(Request(("table1",), "paper"))
    for run in plan.runs.values():
        finish(run, value)
    with pytest.raises(UserError, match="which is not more than zero"):
        check.check_tables(plan)


def test_a_folder_with_a_seed_that_no_run_has_is_passed_over(plan: Plan) -> None:
    run = evaluation(plan, 0)
    stray = Path(run.folder).with_name(run.run_id.replace("-s0-", f"-s{2**64}-"))
    shutil.copytree(run.folder, stray)
    of_stray = {"run_id": stray.name, "seed": 2**64}
    (stray / "result.json").write_text(json.dumps(json.loads(run.result.read_text()) | of_stray))
    assert len(check.check_tables(build.build_plan(plan.request))) == 1


def test_fewer_neighbors_than_the_metric_is_named_after_are_a_doubt(plan: Plan) -> None:
    run, note = evaluation(plan, 1), "knn200: all 18 training images vote, because there are fewer than 200"
    edit(run, provenance=provenance(run) | {"fewer_neighbors": note})
    (table,) = check.check_tables(plan)
    assert note in table.doubts


def test_a_gpus_arithmetic_on_a_cpu_is_a_doubt(plan: Plan) -> None:
    run = evaluation(plan, 1)
    for hardware, doubted in (("AMD EPYC, 2 cores", True), ("8 x Tesla V100", False)):
        edit(run, provenance=provenance(run) | {"arithmetic": {"cudnn": "9"}, "hardware": hardware})
        (table,) = check.check_tables(plan)
        assert any("has a GPU's arithmetic, but ran on AMD EPYC" in each for each in table.doubts) is doubted


def test_the_mean_weighs_networks_and_not_their_finetunings() -> None:
    """As the interval does: else a network with more finetunings would move the mean out of it."""
    found = SeedResults({0: 70.0, 1: 70.0, 2: 70.0, 5: 76.0}, pretrainings={0: "a", 1: "a", 2: "a", 5: "b"})
    measured = cells._measured(found, CellVerdict(Verdict.NOT_RUN))
    assert measured.mean == 73.0 == stats.mean(found.independent)


def test_a_claim_compares_networks_and_not_their_finetunings() -> None:
    ours = SeedResults({0: 70.0, 1: 70.2, 2: 70.4, 5: 76.2}, pretrainings={0: "a", 1: "a", 2: "a", 5: "b"})
    theirs = SeedResults({0: 60.0, 5: 61.0}, pretrainings={0: "c", 5: "d"})
    expected = stats.difference([70.2, 76.2], [60.0, 61.0])
    assert claims._difference(ours, theirs) == expected
