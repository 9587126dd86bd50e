"""The page: what it shows, where it links, and that nothing in it can act on its own."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from reproduce.errors import UserError
from reproduce.harness import baseline, check, report, results, tables
from reproduce.harness import plan as planning
from reproduce.harness.plan import Plan, Request
from reproduce.harness.statistics import Verdict

VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """Collects ids and links, and checks that tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids += [given["id"]] if given.get("id") else []  # type: ignore[list-item]
        self.links += [given[key] for key in ("href", "src") if given.get(key)]  # type: ignore[misc]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def done(smoke: Plan, finish: Callable[..., None]) -> Plan:
    for run in smoke.runs.values():
        finish(run, 50.0)
        for name in ("config.yaml", "log.txt"):
            (run.result.parent / name).write_text("x")
        lines = [json.dumps({"step": step, "num_steps": 1000, "loss": 4 - step / 500}) for step in range(1, 1001)]
        if run.name == "swav_800ep":
            run.result.with_name("metrics.jsonl").write_text("\n".join(lines))
    return smoke


def page_of(plan: Plan) -> tuple[str, Page]:
    check.write(plan, check.check(plan))
    text = report.write(plan.request.scale).read_text()
    return text, Page(text)


def test_the_page_shows_and_links_every_run(done: Plan) -> None:
    text, page = page_of(done)
    for link in page.links:
        if not link.startswith(("data:", "#")):
            assert (done.reports / link).is_file(), link
    assert len([link for link in page.links if link.endswith("result.json")]) == 10 + 10
    assert set(done.runs) <= set(page.ids)
    assert "table7-random-trunk-knn200" in page.ids
    assert len(page.ids) == len(set(page.ids))
    assert text.count("<polyline") == 1


def test_the_page_needs_no_network(done: Plan) -> None:
    text, _ = page_of(done)
    assert not re.search(r"https?://|<script|@import|url\(", text)


def test_the_papers_table_stands_as_printed(checkout: Path) -> None:
    plan = planning.make(Request(("table3",), "paper"))
    text, page = page_of(plan)
    assert "table3-swav-coco_ap" in page.ids
    assert "46.9†" in text
    assert "Finetuned detection" in text
    assert "The DETR evaluation is not built yet." in text


def test_every_table_of_the_paper_has_its_place(checkout: Path) -> None:
    text, page = page_of(planning.make(Request(tuple(tables.names("paper")), "paper")))
    assert set(tables.names("paper")) <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert "4h09" in text and "93.9 (printed 188)" in text
    assert '<span class="theirs">fail</span>' in text
    assert [f"{heading}</span>" in text for heading in ("Table 10", "Figure 3", "Release notes")] == [True] * 3


def test_a_failure_and_skipped_pictures_are_told(done: Plan, finish: Callable[..., None]) -> None:
    first, second = [run for run in done.runs.values() if run.name == "voc07_svm"]
    first.result.unlink()
    first.failure.write_text(
        json.dumps({"status": "failed", "exit_status": 2, "message": "a <b>bad</b> & cut picture"})
    )
    finish(second, counts={"num_skipped_images": 3, "num_test_images": 100})
    text, _ = page_of(done)
    assert "a &lt;b&gt;bad&lt;/b&gt; &amp; cut picture" in text
    assert "3 pictures could not be read and were skipped" in text


def test_results_of_other_code_are_told(done: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseline, "git", lambda *arguments: "d" * 12 if "rev-parse" in arguments else "")
    text, _ = page_of(done)
    assert "10 of 10 results were made by other code" in text


def test_nothing_checked_is_refused(checkout: Path) -> None:
    with pytest.raises(UserError, match="nothing at scale smoke was checked yet"):
        report.write("smoke")


def test_every_verdict_is_explained() -> None:
    assert set(report.MEANINGS) == set(Verdict)


def test_losses_are_thinned_and_bad_lines_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in range(1000)]
    path.write_text("\n".join([*lines, '{"step": 1000, "loss": NaN}', '{"epoch": 3}', '{"step": 10']))
    points = report.thinned(results.losses(path))
    assert points[0] == (0, 1) and points[-1] == (999, 1)
    assert 240 <= len(points) <= 260
    assert report.thinned(results.losses(tmp_path / "none")) == []


def test_a_curve_fills_its_box() -> None:
    shape = report.curve([(0, 4.0), (5, 3.0), (10, 2.0)], width=100, height=50)
    assert shape["line"] == "0.0,0.0 50.0,25.0 100.0,50.0"
    flat = report.curve([(1, 2.0)], width=100, height=50)
    assert flat["line"] == "0.0,0.0"
