"""No number counts as reproduced before the authors' own checkpoint gave theirs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from models.zoo import entries
from reproduce.errors import UserError
from reproduce.harness.plan import build, plan_file
from reproduce.harness.plan.model import Request, Run
from reproduce.harness.report.files import write_verdicts
from reproduce.harness.report.page import write_page
from reproduce.harness.report.render_tables import CANARY_FOOTNOTE, table_as_text
from reproduce.harness.spec import canaries, tables
from reproduce.harness.verdict import check, strict
from reproduce.harness.verdict.canary import check_canaries
from reproduce.harness.verdict.cells import CellVerdict
from reproduce.harness.verdict.labels import Verdict
from reproduce.harness.verdict.notes import CanaryMeasurement
from tests.unit.harness.conftest import AUTHORS_SHA256
from tests.unit.harness.verdicts import Finish

Sing = Callable[..., Run]


def judged(finish: Finish) -> CellVerdict:
    """Table 9's first cell, three seeds of ours on the printed number."""
    plan = build.build_plan(Request(("table9",), "paper", (0, 1, 2)))
    plan_file.write(plan)
    for run in plan.runs.values():
        finish(run, 73.9 + 0.01 * run.seed)
    checked = check.check_tables(plan)
    return next(judged for _, _, judged in checked[0].cells())


def test_a_canary_that_agreed(checkout: Path, finish: Finish, sing: Sing) -> None:
    sing("linear_imagenet", 75.1)
    cell = judged(finish)
    assert (cell.verdict, cell.canary) == (Verdict.REPRODUCED, "agreed")
    assert "Its canary agreed: the authors' swav_800ep_pretrain.pth.tar" in cell.reason
    assert "top1_best 75.10, printed 75.3 (margin 0.2)" in cell.reason


def test_a_canary_that_is_missing_keeps_a_number_from_counting(checkout: Path, finish: Finish) -> None:
    cell = judged(finish)
    assert (cell.verdict, cell.canary) == (Verdict.WITHIN, "missing")
    assert "Its canary is missing, so it does not count as reproduced" in cell.reason
    plan = build.build_plan(Request(("table9",), "paper", (0, 1, 2)))
    checked = check.check_tables(plan)
    assert "✓ within°" in table_as_text(checked[0]) and CANARY_FOOTNOTE in table_as_text(checked[0])
    write_verdicts(plan, checked)
    assert CANARY_FOOTNOTE in Path("reports/paper/table9.md").read_text()


def test_a_canary_that_disagrees_puts_the_evaluation_in_doubt(checkout: Path, finish: Finish, sing: Sing) -> None:
    sing("linear_imagenet", 75.09)
    cell = judged(finish)
    assert (cell.verdict, cell.canary) == (Verdict.INCONCLUSIVE, "disagreed")
    assert "the evaluation itself is in doubt" in cell.reason


@pytest.mark.parametrize(
    ("overrides", "checkpoint"),
    [(("protocol.epochs=3",), "swav_800ep_pretrain.pth.tar"), ((), "mine.pth.tar")],
    ids=["another protocol", "another checkpoint"],
)
def test_only_the_same_evaluation_of_the_authors_checkpoint_counts(
    checkout: Path, finish: Finish, sing: Sing, overrides: tuple[str, ...], checkpoint: str
) -> None:
    sing("linear_imagenet", 75.3, *overrides, checkpoint=checkpoint)
    assert judged(finish).canary == "missing"


def test_a_file_is_the_authors_by_its_hash_not_by_its_name(
    checkout: Path, finish: Finish, sing: Sing, monkeypatch: pytest.MonkeyPatch
) -> None:
    sing("linear_imagenet", 75.3, sha256="b" * 64)
    cell = judged(finish)
    assert (cell.verdict, cell.canary) == (Verdict.WITHIN, "missing")
    assert "is of a file with another SHA-256 than the authors'" in cell.reason
    monkeypatch.setattr(entries, "known_sha256", lambda _: None)
    cell = judged(finish)
    assert (cell.verdict, cell.canary) == (Verdict.WITHIN, "unverified")
    assert "that this is theirs is only its name" in cell.reason
    plan = build.build_plan(Request(("table9",), "paper", (0, 1, 2)))
    checked = check.check_tables(plan)
    assert any(issue.endswith("with an unverified canary") for issue in strict.open_issues(plan, checked, []))


def test_our_own_network_is_no_canary(
    checkout: Path, finish: Finish, sing: Sing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renamed, it would count as the authors' as long as the hash of theirs is not known."""
    sing("linear_imagenet", 75.3, sha256="b" * 64)
    monkeypatch.setattr(entries, "known_sha256", lambda _: None)
    plan = build.build_plan(Request(("table9",), "paper", (0,)))
    trained = next(run for run in plan.runs.values() if run.kind == "pretrain")
    finish(trained, provenance={"checkpoint_sha256": "b" * 64})
    evaluation = next(run for run in plan.runs.values() if run.kind == "evaluate")
    found = check_canaries(evaluation)
    assert found.state == "missing" and found.refused[0].endswith(f"is of our own {trained.run_id}")


def test_every_result_of_a_canary_must_agree(checkout: Path, sing: Sing) -> None:
    """.5 above and .5 below are no agreement, although their mean is."""
    sing("linear_imagenet", 74.8, "seed=1")
    run = sing("linear_imagenet", 75.8)
    found = check_canaries(run)
    assert found.state == "disagreed" and [each.value for each in found.measurements] == [74.8, 75.8]


def test_the_page_marks_cells_without_a_canary(checkout: Path, finish: Finish) -> None:
    judged(finish)
    plan = build.build_plan(Request(("table9",), "paper", (0, 1, 2)))
    write_verdicts(plan, check.check_tables(plan))
    page = write_page("paper").read_text()
    assert "within</span>°" in page and f'<p class="foot">{CANARY_FOOTNOTE}</p>' in page


def test_all_numbers_of_an_evaluation_must_agree(checkout: Path, sing: Sing, finish: Finish) -> None:
    run = sing("knn_head", 59.2)  # knn200 is printed with 55.8
    assert check_canaries(run).state == "disagreed"
    finish(run, metrics={"knn20": 59.25, "knn200": 55.75}, provenance={"checkpoint_sha256": AUTHORS_SHA256})
    assert check_canaries(run).state == "agreed"
    finish(run, metrics={"knn20": 50.0, "knn200": 55.75}, provenance={"checkpoint_sha256": AUTHORS_SHA256})
    assert check_canaries(run).state == "disagreed"


@pytest.mark.parametrize(
    ("file", "content"), [("result.json", '{"run_id": "another"}'), ("config.yaml", "{"), ("config.yaml", "- a list")]
)
def test_a_damaged_canary_is_named(checkout: Path, sing: Sing, file: str, content: str) -> None:
    run = sing("knn_head", 59.2)
    path = Path(run.folder) / file
    path.write_text(content)
    with pytest.raises(UserError, match=f"{path} is (not the result of|damaged)"):
        check_canaries(run)


def test_the_best_setting_of_the_authors_checkpoint_counts(checkout: Path, finish: Finish, sing: Sing) -> None:
    """DETR is trained at three backbone rates, and the paper prints the best: 42.1. All three must be there."""
    first = sing("coco_detr", 41.0, "protocol.lr_backbone=1e-5")
    sing("coco_detr", 41.9, "protocol.lr_backbone=5e-5")
    sing("coco_detr", 42.1, "protocol.lr_backbone=2e-5")  # the authors tried no such rate
    assert check_canaries(first).state == "missing"
    sing("coco_detr", 38.0, "protocol.lr_backbone=1e-4")
    result = check_canaries(first)
    assert result.state == "agreed" and result.measurements == (CanaryMeasurement("ap", 41.9, 42.1, 0.5),)


def test_every_evaluation_of_the_authors_checkpoint_has_a_canary() -> None:
    """Except low-shot learning, for which the paper prints no number of this checkpoint. MoCo's detector has MoCo's."""
    checked = {each.evaluation for each in canaries.targets(canaries.load())}
    tables_of_paper = [tables.load(name, "paper") for name in tables.names("paper")]
    cells = [(table, row, key) for table in tables_of_paper for row in table.rows for key in table.columns]
    evaluations = {name for table, row, key in cells if (name := table.eval_of(row, key))}
    protocols = {f"voc_detection_{paper}" for paper in ("supervised", "bownet", "pirl")}
    others_weights = protocols  # theirs are not public, or not ours to load
    others_weights |= {"own_classifier"}  # this checkpoint has none
    assert evaluations - checked == {"lowshot_13", "lowshot_128"} | others_weights


def test_every_canary_is_a_printed_number_of_the_published_checkpoint() -> None:
    for each, expected in zip(canaries.load().canaries, canaries.targets(canaries.load()), strict=True):
        table = tables.load(each.table, "paper")
        (row,) = [row for row in table.rows if row.label == each.row]
        assert row.pretrain == ("moco_v2_800ep" if each.checkpoint else "swav_800ep")
        assert (entries.get_entry(row.pretrain).url or "").endswith(f"/{expected.checkpoint}")
        assert table.eval_of(row, each.column) == expected.evaluation
        assert isinstance(row.cells[each.column], float)
        own = table.margin(row, each.column)
        assert own is not None
        finetuned = expected.evaluation in ("voc_detection", "voc_detection_moco", "coco_detr")
        narrower = expected.margin.points < own.points  # nothing was trained: it must land closer
        assert narrower or (finetuned and expected.margin == own)


def test_mocos_detector_is_checked_on_mocos_checkpoint(checkout: Path, sing: Sing) -> None:
    """Its protocol is not SwAV's, for which SwAV's checkpoint is the canary."""
    on_swavs = sing("voc_detection_moco", 57.4)
    assert check_canaries(on_swavs).state == "missing"
    run = sing("voc_detection_moco", 57.4, checkpoint="moco_v2_800ep_pretrain.pth.tar")
    found = check_canaries(run)
    assert (found.state, found.checkpoint) == ("disagreed", "moco_v2_800ep_pretrain.pth.tar")
    assert [(each.metric, each.printed) for each in found.measurements] == [
        ("ap", 57.4),
        ("ap50", 82.5),
        ("ap75", 64.0),
    ]
