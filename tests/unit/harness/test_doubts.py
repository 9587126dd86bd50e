"""What makes results doubtful is said on the terminal, in summary.md, in junit.xml, on the page and under STRICT."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from reproduce.__main__ import main
from reproduce.harness import revision
from reproduce.harness.plan import build, plan_file
from reproduce.harness.plan.model import Plan, Request
from reproduce.harness.report.page import stale_verdicts
from reproduce.harness.report.summary import read_verdicts
from reproduce.harness.verdict import check
from reproduce.harness.verdict.doubts import of_recording, of_tables
from tests.unit.harness.verdicts import Finish

HEAD = "a" * 40
KNOWN = {"git_commit": HEAD, "git_dirty": False, "hardware": "8 x V100"}


@pytest.fixture(autouse=True)
def committed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revision, "git", lambda *arguments: HEAD if arguments[0] == "rev-parse" else "")
    revision.run_code_fingerprint.cache_clear()


@pytest.fixture
def plan(checkout: Path, finish: Finish) -> Plan:
    """Two seeds of Table 7, beyond doubt."""
    plan = build.build_plan(Request(("table7",), "paper", (0, 1)))
    plan_file.write(plan)
    for run in plan.runs.values():
        finish(run, 59.2 + run.seed / 100, provenance=KNOWN)
    return plan


def edit(plan: Plan, **changes: Any) -> str:
    """Change the result of seed 1's evaluation; return the run's name for people."""
    run = next(run for run in plan.runs.values() if run.kind == "evaluate" and run.seed == 1)
    run.result.write_text(json.dumps(json.loads(run.result.read_text()) | changes))
    return run.label


def test_nothing_is_doubted_without_a_reason(plan: Plan) -> None:
    assert check.check_tables(plan)[0].doubts == ()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"provenance": KNOWN | {"git_commit": "b" * 40}}, "1 of 4 results were made by other code (bbbbbbbbbbbb)"),
        ({"provenance": KNOWN | {"git_dirty": True}}, "1 of 4 results were made by uncommitted code"),
        ({"provenance": KNOWN | {"code_changed": ["evals/knn.py"]}}, "code changed while {label} ran: evals/knn.py"),
        ({"provenance": KNOWN | {"checkpoint_sha256": None}}, "1 of 4 results do not say which checkpoint they are of"),
        (
            {"provenance": KNOWN | {"data_changed": ["imagenet/val"]}},
            "image files changed while {label} read them: imagenet/val",
        ),
        ({"provenance": KNOWN | {"hardware": "a laptop"}}, "ran on different hardware: 8 x V100; a laptop"),
        ({"counts": {"num_test_images": 5}}, "knn_head was measured on 5 images, but ILSVRC2012 has 50,000 to test on"),
        ({"counts": {"num_skipped_images": 3}}, "3 images could not be read and were skipped"),
        ({"finished": "2999-01-01T00:00:00+00:00"}, "{label} finished in the future, at 2999-01-01"),
        ({"started": "2026-01-02T00:00:00+00:00"}, "{label} started after it finished"),
    ],
)
def test_every_doubt_reaches_every_reader(
    plan: Plan, changes: dict[str, Any], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    says = says.format(label=edit(plan, **changes))
    main(["check", "table7", "--scale", "paper", "--seeds", "2", "--strict"])
    lines = capsys.readouterr().out.splitlines()
    for beginning in ("  note: ", "strict: "):  # below its table, and among what STRICT fails for
        assert len([line for line in lines if line.startswith(beginning) and says in line]) == 1, beginning
    assert main(["report", "table7", "--scale", "paper", "--seeds", "2"]) == 0
    reports = Path("reports/paper")
    for name in ("summary.md", "table7.md", "index.html"):
        assert says in (reports / name).read_text().replace("&#39;", "'"), name
    (told,) = ElementTree.parse(reports / "junit.xml").getroot().iter("system-out")
    assert says in (told.text or "")


def test_seeds_of_different_images_are_doubted(plan: Plan, finish: Finish) -> None:
    for run in plan.runs.values():
        if run.kind == "evaluate":
            images = {"data_content_sha256": {"imagenet/train": str(run.seed)}}
            finish(run, 59.2 + run.seed, provenance=KNOWN | images)
    (doubt,) = check.check_tables(plan)[0].doubts
    assert doubt.endswith("read different images (data_content_sha256)")


def test_a_recording_of_uncommitted_code_and_changed_tables_are_doubted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert of_recording({"dirty": True}) and not of_recording({"dirty": False})
    assert of_tables() == []
    monkeypatch.setattr(revision, "git", lambda *_: "M tables/paper/table9.yaml")
    assert of_tables() == ["files in tables/ differ from the commit: tables/paper/table9.yaml"]


def test_a_report_of_replaced_results_says_so(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", "table7", "--scale", "paper", "--seeds", "2"])
    main(["report", "table7", "--scale", "paper", "--seeds", "2"])
    assert "was checked before" not in capsys.readouterr().out + Path("reports/paper/index.html").read_text()
    edit(plan, metrics={"knn20": 10.0, "knn200": 10.0})
    main(["report", "table7", "--scale", "paper", "--seeds", "2"])
    says = "Table 7 was checked before 1 of its 4 results changed"
    assert f"note: {says}" in capsys.readouterr().out and says in Path("reports/paper/index.html").read_text()


def test_a_report_of_an_edited_table_says_so(checkout: Path, plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", "table7", "--scale", "paper", "--seeds", "2"])
    table = checkout / "tables/paper/table7.yaml"
    table.write_text(table.read_text() + "# edited\n")
    capsys.readouterr()
    main(["report", "table7", "--scale", "paper", "--seeds", "2"])
    says = "Table 7 was checked before its table changed"
    assert f"note: {says}" in capsys.readouterr().out and says in Path("reports/paper/index.html").read_text()


def test_a_report_of_another_recording_says_so(plan: Plan) -> None:
    main(["check", "table7", "--scale", "paper", "--seeds", "2"])
    found = read_verdicts(Path("reports/paper"), "paper")
    assert not list(stale_verdicts(found))
    found.tables[0]["recorded"] = {"date": "2026-01-01"}
    assert [each.partition(",")[0] for each in stale_verdicts(found)] == [
        "Table 7 was checked before its recorded numbers changed"
    ]
