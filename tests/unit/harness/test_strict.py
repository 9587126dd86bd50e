"""Shares of a row, means of several runs, strict checks and the summary."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reproduce.__main__ import main
from reproduce.harness import revision
from reproduce.harness.plan import build, plan_file
from reproduce.harness.plan.model import Plan, Request, Run
from reproduce.harness.report import summary
from reproduce.harness.report.files import write_verdicts
from reproduce.harness.report.render_tables import table_as_markdown
from reproduce.harness.verdict import check, strict
from reproduce.harness.verdict.labels import Verdict
from tests.unit.harness.conftest import AUTHORS_SHA256
from tests.unit.harness.verdicts import Finish, cells_of

HEAD = "a" * 40


@pytest.fixture(autouse=True)
def no_commit_is_known() -> Iterator[None]:
    """Forget which code commits have: tests pretend other answers of git."""
    revision.run_code_fingerprint.cache_clear()
    yield
    revision.run_code_fingerprint.cache_clear()


@pytest.fixture
def committed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that the checkout has no changes."""
    monkeypatch.setattr(revision, "git", lambda *arguments: HEAD if arguments[0] == "rev-parse" else "")


def measured_table1() -> Plan:
    return build.build_plan(Request(("table1",), "paper"))


def test_a_relative_column_is_compared_as_shares(checkout: Path, finish: Finish) -> None:
    """Ours on a machine ten times as slow: 40 h for SimCLR's 4h00, and shares of 1.04, 1.21 and 1.90 (printed 1.56)."""
    plan = measured_table1()
    hours = {"simclr_100ep": 40.0, "swav_400ep_2x224": 41.5, "swav_400ep_2x160_4x96": 48.5, "swav_100ep": 76.0}
    plan_file.write(plan)
    for run in plan.runs.values():
        finish(run, hours[run.name.removeprefix("cost_")])
    found = cells_of(plan)
    two = found["SwAV, 2x224/time_100ep"]
    assert (two.verdict, two.share_of, two.printed) == (Verdict.WITHIN, "SimCLR, 2x224", "4h09")
    assert two.mean == pytest.approx(41.5 / 40)
    assert two.expected == pytest.approx(4.15 / 4)
    assert "The share of SimCLR, 2x224 is compared, not the hours (41.5 and 40)." in two.reason
    assert found["SwAV, 2x160+4x96/time_100ep"].verdict == Verdict.WITHIN
    assert found["SwAV, 2x224+6x96/time_100ep"].verdict == Verdict.WORSE  # it took more
    reference = found["SimCLR, 2x224/time_100ep"]
    assert (reference.verdict, reference.difference) == (Verdict.NO_BASELINE, None)
    table = check.check_tables(plan)[0]
    assert "1.04 of SimCLR, 2x224 (printed 4h09) → **1.04** ✓ within |" in table_as_markdown(plan, table)
    assert not any("no baseline" in sentence for sentence in strict.open_issues(plan, [table], []))


def test_a_share_needs_its_reference(checkout: Path, finish: Finish) -> None:
    plan = measured_table1()
    for run in plan.runs.values():
        if run.name != "cost_simclr_100ep":
            finish(run, 41.5)
    two = cells_of(plan)["SwAV, 2x224/time_100ep"]
    assert (two.verdict, two.needed) == (Verdict.NOT_RUN, True)
    assert two.reason == "This number is compared as a share of SimCLR, 2x224, which has no number yet."


def test_a_mean_of_several_runs_is_noted(checkout: Path, finish: Finish) -> None:
    path = checkout / "tables" / "paper" / "table7.yaml"
    path.write_text(path.read_text().replace("metric: knn20\n", "metric: knn20\n    num_runs: 5\n"))
    plan = build.build_plan(Request(("table7",), "paper"))
    for run in plan.runs.values():
        finish(run, 59.2)
    reason = cells_of(plan)["SwAV/knn20"].reason
    assert "The printed number is a mean of 5 runs, ours of 5." in reason
    assert "mean of" not in cells_of(plan)["SwAV/knn200"].reason
    assert "(top-1, %, mean of 5 runs)" in table_as_markdown(plan, check.check_tables(plan)[0])


def test_strict_passes_without_open_issues(
    checkout: Path, finish: Finish, sing: Callable[..., Run], committed: None
) -> None:
    sung = {"git_commit": HEAD, "git_dirty": False, "checkpoint_sha256": AUTHORS_SHA256}
    finish(sing("knn_head", 59.2), metrics={"knn20": 59.2, "knn200": 55.8}, provenance=sung)
    plan = build.build_plan(Request(("table7",), "paper", (0, 1, 2)))
    for run in plan.runs.values():
        metrics = {"knn20": 59.2 + run.seed / 100, "knn200": 55.8 + run.seed / 100} if run.kind == "evaluate" else {}
        finish(run, metrics=metrics, provenance={"git_commit": HEAD, "git_dirty": False})
    checked = check.check_tables(plan)
    assert check.exit_status(checked) == check.AGREES
    assert strict.open_issues(plan, checked, []) == []


def test_strict_names_every_open_issue(checkout: Path, finish: Finish, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"rev-parse": HEAD, "status": " M a.py"}
    monkeypatch.setattr(revision, "git", lambda *arguments: answers.get(arguments[0], ""))
    plan = build.build_plan(Request(("table7",), "paper"))
    for run in plan.runs.values():
        finish(run, 60.1, provenance={"git_commit": "b" * 40, "git_dirty": True})
    issues = strict.open_issues(plan, check.check_tables(plan), [])
    assert issues == [
        "Table 7: 1 cell inconclusive",
        "Table 7: 2 cells without a canary",
        "the checkout differs from its commit",
        "files in tables/ differ from the commit: a.py",
        "2 of 2 results were made by other code (bbbbbbbbbbbb) than this commit's",
        "2 of 2 results were made by uncommitted code",
    ]


def test_strict_changes_the_exit_status(
    checkout: Path, finish: Finish, committed: None, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = build.build_plan(Request(("table7",), "paper"))
    plan_file.write(plan)
    for run in plan.runs.values():
        metrics = {"knn20": 59.2, "knn200": 55.8} if run.kind == "evaluate" else {}
        finish(run, metrics=metrics, provenance={"git_commit": HEAD, "git_dirty": False})
    assert main(["check", "table7", "--scale", "paper"]) == check.AGREES
    assert main(["check", "table7", "--scale", "paper", "--strict"]) == check.DISAGREES
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "strict: Table 7: 2 cells without a canary",
        "strict: Table 7: 2 cells within by one seed; several show how far seeds spread",
    ]
    next(run for run in plan.runs.values() if run.kind == "evaluate").result.unlink()
    assert main(["check", "table7", "--scale", "paper", "--strict"]) == check.INCOMPLETE


def test_strict_counts_claims(checkout: Path, finish: Finish, committed: None) -> None:
    plan = build.build_plan(Request(("table9",), "paper"))
    for run in plan.runs.values():
        finish(run, 73.9, provenance={"git_commit": HEAD, "git_dirty": False})
    from reproduce.harness.verdict.claims import check_claims

    issues = strict.open_issues(plan, [], check_claims(plan))
    assert "claim soft-assignments: inconclusive" in issues
    assert "claim enough-prototypes: not run" in issues


def test_the_summary_lists_all_checked_tables(checkout: Path, finish: Finish, committed: None) -> None:
    for name in ("table3", "table7"):
        plan = build.build_plan(Request((name,), "paper"))
        for run in plan.runs.values():
            if run.name != "linear_inat18" and "swav_800ep" in (run.name, run.parent_name):
                finish(run, 56.7)
        write_verdicts(plan, check.check_tables(plan))
    text = Path("reports/paper/summary.md").read_text()
    assert "Checked by commit `aaaaaaaaaaaa`." in text
    assert "| [Table 3](table3.md): Transfer of ImageNet features | ✓ 1 within, ▼ 2 worse, ○ 34 not run |" in text
    assert "| Table 3: SwAV, Places205 | 56.7 | 56.7 | 1 | ✓ within° |" in text
    assert "| Table 7: SwAV, 20 neighbours | 59.2 | 56.7 | 1 | ▼ worse° |" in text
    assert "iNat18" not in text  # not run: the table's line counts it
    assert "- Table 3: linear_places205 was measured on 50,000 images, but Places205 has 20,500 to test on." in text
    assert text.count("\n") < 26


def test_the_summary_lists_the_claims_that_were_run() -> None:
    known = [
        {"claim": "one", "statement": "More is better.", "status": "holds", "tendency": "", "level": "own training"},
        {"claim": "two", "statement": "Less is worse.", "status": "not run", "tendency": "", "level": "own training"},
    ]
    text = summary.as_markdown("paper", [], [each | {"doubts": []} for each in known])
    assert "| More is better. | ● holds |" in text and "Less is worse" not in text
    assert "1 of 2 claims were not run." in text
