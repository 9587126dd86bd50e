"""The page: what it shows, where it links, and that nothing in it can act on its own."""

import base64
import hashlib
import html
import io
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from reproduce.engine.runs import detection_examples
from reproduce.engine.runs.detection_examples import DetectionExample, ExampleBox
from reproduce.engine.runs.picture_files import Picture, Tile, sheet_picture, write_picture
from reproduce.errors import UserError
from reproduce.harness import results, revision
from reproduce.harness.plan import build
from reproduce.harness.plan.model import Plan, Request
from reproduce.harness.report import figures, page, render_pictures, runs, summary, svg
from reproduce.harness.report.files import write_verdicts
from reproduce.harness.report.page import write_page
from reproduce.harness.report.rendering import TEMPLATES
from reproduce.harness.report.svg import Band, Series
from reproduce.harness.spec import tables
from reproduce.harness.verdict import check
from reproduce.harness.verdict.claims import check_claims
from reproduce.harness.verdict.labels import ClaimStatus, Verdict

VOID = {"meta", "link", "br", "img"}
SCRIPT = TEMPLATES / "page.js"


class Page(HTMLParser):
    """Collects ids and links, and checks that tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.attributes: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.attributes += given
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
    write_verdicts(plan, check.check_tables(plan))
    text = write_page(plan.request.scale).read_text()
    return text, Page(text)


def test_the_page_shows_and_links_every_run(done: Plan) -> None:
    text, page = page_of(done)
    for link in page.links:
        if not link.startswith(("data:", "#")):
            assert (done.reports / link).is_file(), link
    assert len([link for link in page.links if link.endswith("result.json")]) == 14
    assert set(done.runs) <= set(page.ids)
    assert "table7-random-trunk-knn200" in page.ids
    assert len(page.ids) == len(set(page.ids))
    assert text.count("<polyline") == 2, "the loss as it was logged, and its mean"
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)


def test_the_page_needs_no_network_and_runs_one_script_of_ours(done: Plan) -> None:
    text, _ = page_of(done)
    assert not re.search(r"https?://|@import|url\(", text)
    assert re.findall(r"<script.*?</script>", text, re.DOTALL) == [f"<script>{SCRIPT.read_text()}</script>"]
    sha256 = base64.b64encode(hashlib.sha256(SCRIPT.read_bytes()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{sha256}'" in text


HOSTILE = "</style></title><img src=x onerror=alert(1)><script>alert(2)</script>\" onload='alert(3)"
SAID = {
    *(
        "title",
        "caption",
        "section",
        "heading",
        "label",
        "note",
        "quotes",
        "weights",
        "reason",
        "unit",
        "group",
        "source",
        "statement",
    ),
    *("interval_of", "variant", "method", "expected_in_words", "errata", "undrawn", "commit", "message"),
}


def hostile(value: Any, key: str = "") -> Any:
    """Return a report's data with markup added to every text."""
    if isinstance(value, dict):
        return {name: hostile(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [hostile(item, key) for item in value] or ([HOSTILE] if key in ("errata", "undrawn") else [])
    return value + HOSTILE if isinstance(value, str) and key in SAID else value


def test_hostile_text_is_escaped(checkout: Path) -> None:
    plan = build.build_plan(Request(("table2", "table3", "figure2", "claims"), "paper"))
    write_verdicts(plan, check.check_tables(plan), check_claims(plan))
    for path in plan.reports.glob("*.json"):
        if path.name != "plan.json":
            path.write_text(json.dumps(hostile(json.loads(path.read_text()))))
    run = next(iter(plan.runs.values()))
    run.failure.parent.mkdir(parents=True)
    run.failure.write_text(json.dumps({"status": HOSTILE, "exit_status": 1, "message": HOSTILE}))
    run.log.write_text(HOSTILE)
    text = write_page("paper").read_text()
    parsed = Page(text)
    assert text.count("&lt;img src=x onerror=alert(1)&gt;") > 100
    assert text.count("<script") == text.count("</script") == text.count("</style") == text.count("</title") == 1
    assert "<img" not in text
    assert set(parsed.attributes) <= {
        *("lang", "charset", "name", "content", "http-equiv", "rel", "href", "id", "class", "datetime", "aria-label"),
        *(
            "aria-hidden",
            "style",
            "scope",
            "colspan",
            "data-sort",
            "role",
            "tabindex",
            "title",
            "open",
            "width",
            "height",
        ),
        *("viewbox", "x", "y", "x1", "x2", "y1", "y2", "rx", "cx", "cy", "r", "d", "points"),
    }


def test_the_papers_table_is_shown_as_printed(checkout: Path) -> None:
    plan = build.build_plan(Request(("table3",), "paper"))
    text, page = page_of(plan)
    assert "table3-swav-coco_ap" in page.ids
    assert "46.9†" in text
    assert "Finetuned detection" in text
    assert "Not trained here; its public weights are for FROM=released." in text


def test_every_table_of_the_paper_is_on_the_page(checkout: Path) -> None:
    text, page = page_of(build.build_plan(Request(tuple(tables.names("paper")), "paper")))
    assert set(tables.names("paper")) <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert "4h09" in text and "93.9 (printed 188)" in text
    assert ">fail</a>" in text
    assert "Erratum of the paper.</b> SwAV R50-w2 is printed with 188 M" in text
    assert "Public weights: github.com/google-research/simclr" in text
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert [f"{heading}</span>" in text for heading in ("Table 10", "Figure 3", "Release notes")] == [True] * 3


def test_failures_and_skipped_images_are_shown(done: Plan, finish: Callable[..., None]) -> None:
    first, second = [run for run in done.runs.values() if run.name == "voc07_svm"]
    first.result.unlink()
    first.failure.write_text(
        json.dumps({"status": "failed", "exit_status": 2, "message": "a <b>bad</b> & cut picture"})
    )
    finish(second, counts={"num_skipped_images": 3, "num_test_images": 100})
    text, _ = page_of(done)
    assert "a &lt;b&gt;bad&lt;/b&gt; &amp; cut picture" in text
    assert "3 images could not be read and were skipped" in text


def test_curves_config_and_log_may_be_damaged(done: Plan) -> None:
    whole, broken = b'{"step": 1, "num_steps": 2, "loss": 4.5}', (b"cut", b"[]", b'{"step": null}', b"\xff\xfe")
    for run in done.runs.values():
        for name in ("config.yaml", "log.txt", "metrics.jsonl"):
            Path(run.folder, name).write_bytes(b"\n".join([whole, *broken]))
    text, page = page_of(done)
    assert {run.run_id for run in done.runs.values()} <= set(page.ids)
    assert "last 4.5</span>" in text


@pytest.mark.parametrize("name", ["table7", "claims"])
@pytest.mark.parametrize("content", ["{}", "[]", '{"table": "table7", "scale": "smoke"}'])
def test_a_report_of_another_version_is_named(done: Plan, name: str, content: str) -> None:
    page_of(done)
    path = done.reports / f"{name}.json"
    path.write_text(content)
    error = rf"^{path} is damaged, or another version's. Delete it, and write it again with make check-{name} "
    with pytest.raises(UserError, match=error):
        write_page("smoke")
    with pytest.raises(UserError, match=error):
        summary.read_verdicts(done.reports, "smoke")


def test_results_of_other_code_are_shown(done: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revision, "git", lambda *arguments: "d" * 12 if "rev-parse" in arguments else "")
    text, _ = page_of(done)
    assert "12 of 12 results were made by other code" in text and "4 of 4 results were made by other code" in text


def test_the_last_benchmarks_are_shown(done: Plan) -> None:
    """What pytest-benchmark saved; a damaged file is skipped for the one before it."""
    _, page = page_of(done)
    assert "benchmarks" not in page.ids
    one = {
        "name": "test_larc",
        "stats": {"median": 0.5},
        "extra_info": {
            "times_as_fast": 1.384,
            "share_of_matrix_product_peak": 0.8123,
            "share_if_products_were_all": 0.9,
            "ours_seconds": 0.25,
        },
    }
    head = {"datetime": "2026-01-02T03:04:05", "commit_info": {"id": "e" * 40, "dirty": True}}
    folder = Path(".benchmarks/Linux")
    folder.mkdir(parents=True)
    (folder / "0001_a.json").write_text(
        json.dumps(head | {"machine_info": {"cpu": {"brand_raw": "a <quick> one"}}, "benchmarks": [one]})
    )
    (folder / "0002_b.json").write_text('{"benchmarks": [')
    text, page = page_of(done)
    assert "benchmarks" in page.ids and "a &lt;quick&gt; one" in text
    assert "1.38 times as fast as a plain implementation; 81% of the speed of a plain matrix product; 90% of" in text
    assert '<td class="num" data-sort="0.25">0.25</td>' in text


def test_images_with_boxes_are_drawn_small_and_inline(done: Plan, tmp_path: Path) -> None:
    Image.new("RGB", (480, 360), "white").save(tmp_path / "scene.png")
    run = next(run for run in done.runs.values() if run.name == "voc_detection")
    predicted = [ExampleBox("dog", (10, 20, 110, 220), score / 10) for score in range(10)]
    true = [ExampleBox("cat", (5, 5, 100, 355))]
    detection_examples.write_examples(
        run.result.parent, [DetectionExample(str(tmp_path / "scene.png"), predicted, true)]
    )
    text, _ = page_of(done)
    (drawn,) = re.findall(r'<svg class="boxes".*?</svg>', text, re.DOTALL)
    assert 'viewBox="0 0 480 360"' in drawn and len(drawn) < 5000
    assert '<rect class="true" x="5.0" y="5.0" width="95.0" height="350.0"/>' in drawn
    assert drawn.count('<rect class="predicted" x="10.0" y="20.0" width="100.0" height="200.0"/>') == 5
    assert re.findall(r"dog (0\.\d\d)<", drawn) == [
        "0.90",
        "0.80",
        "0.70",
        "0.60",
        "0.50",
    ]  # of the six kept, those half as sure as the surest
    jpeg = re.search(r'href="data:image/jpeg;base64,([^"]+)"', drawn)
    assert jpeg and Image.open(io.BytesIO(base64.b64decode(jpeg[1]))).size == (240, 180)
    assert detection_examples.example_indices(600) == [
        0,
        100,
        200,
        300,
        400,
        500,
    ] and detection_examples.example_indices(2) == [0, 1]


def pretraining(plan: Plan) -> Path:
    """The folder of the plan's pretraining of SwAV."""
    return next(Path(run.folder) for run in plan.runs.values() if run.name == "swav_800ep")


def picture(name: str, words: str, **more: Any) -> Picture:
    tile = Tile(np.zeros((8, 8, 3), np.uint8), 8)
    drawn = sheet_picture([[tile, tile]], name, f"title {words}", f"caption {words}", f"alt {words}")
    return replace(drawn, **more)


def test_pictures_are_inline_with_their_words(done: Plan) -> None:
    folder = pretraining(done)
    write_picture(folder, picture("crops", HOSTILE))
    points = {HOSTILE: [(0.0, 0.0), (1.0, 0.5)], **{f"class {number}": [(0.5, 0.5)] for number in range(10)}}
    write_picture(folder, picture("map", "map", jpeg=None, points=points))
    text, page = page_of(done)
    assert {"pictures", f"pictures-{folder.name}"} <= set(page.ids)
    assert HOSTILE not in text
    (shown,) = re.findall(r"<img [^>]*>", text)
    alt = re.search(r'alt="([^"]*)"', shown)
    assert alt and html.unescape(alt[1]) == f"alt {HOSTILE}"
    jpeg = re.search(r'src="data:image/jpeg;base64,([^"]+)" width="25" height="17"', shown)
    assert jpeg and Image.open(io.BytesIO(base64.b64decode(jpeg[1]))).size == (25, 17)
    (scatter,) = re.findall(r'<svg class="scatter".*?</svg>', text, re.DOTALL)
    assert 'aria-label="alt map"' in scatter and scatter.count("<path") == 11
    assert 'd="M6.0 6.0h0M394.0 200.0h0"' in scatter
    assert scatter.count('stroke-linecap="square"') == 1, "the eleventh class has the first one's color"
    assert text.count("caption map") == 1 and text.count('<svg class="dot"') == 11


def test_pictures_of_another_checkpoint_are_not_shown(done: Plan, finish: Callable[..., None]) -> None:
    run = next(run for run in done.runs.values() if run.name == "swav_800ep")
    finish(run, provenance={"checkpoint_sha256": "5" * 64})
    write_picture(Path(run.folder), picture("neighbors", "old", checkpoint_sha256="6" * 64))
    write_picture(Path(run.folder), picture("atlas", "new", checkpoint_sha256="5" * 64))
    text, _ = page_of(done)
    assert "caption new" in text and "caption old" not in text


def test_a_large_page_links_its_last_pictures(done: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pretraining(done)
    for name in ("crops", "neighbors"):
        write_picture(folder, picture(name, name))
    monkeypatch.setattr(render_pictures, "MAX_EMBEDDED_BYTES", len(picture("crops", "").jpeg or b"") + 1)
    text, page = page_of(done)
    assert text.count("<img ") == 1
    (link,) = [link for link in page.links if link.endswith(".jpg")]
    assert (done.reports / link).samefile(folder / "pictures" / "neighbors.jpg")


def test_colors_of_a_map_stand_out_from_both_grounds() -> None:
    """WCAG 2 AA asks graphics for a contrast of 3."""

    def luminance(color: str) -> float:
        parts = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    style = (TEMPLATES / "style.css").read_text()
    grounds = [luminance(color) for color in re.findall(r"--card: (#\w+)", style)]
    assert len(grounds) == 2
    for color in render_pictures.COLORS:
        for ground in grounds:
            dark, light = sorted((luminance(color), ground))
            assert (light + 0.05) / (dark + 0.05) >= 3, color


def test_curves_show_the_mean_and_where_a_training_collapses(done: Plan) -> None:
    folder = pretraining(done)
    ranges = {"loss": {"low": 3.9, "high": 4.1, "words": "the loss of <uniform> predictions"}}
    (folder / "thresholds.json").write_text(json.dumps({"first_step": 500, "ranges": ranges}))
    text, _ = page_of(done)
    (band,) = re.findall(r'<rect class="danger" x="([^"]+)" y="([^"]+)" width="([^"]+)" height="([^"]+)"/>', text)
    left, top, width, height = map(float, band)
    assert 150 < left < 180 and left + width == 290, "from the middle of the training on"
    assert top < 20 and 5 < height < 15
    assert "alarm 3.9 to 4.1: the loss of &lt;uniform&gt; predictions" in text
    (folder / "thresholds.json").write_text("{}")
    assert '<rect class="danger"' not in page_of(done)[0]


def test_smoothing_delays_nothing() -> None:
    line = [(float(x), 3.0 * x) for x in range(101)]
    assert np.allclose(svg.smooth(line)[2:-2], line[2:-2])
    assert svg.smooth(line)[0] == (0, 3) and svg.smooth(line)[-1] == (100, 297), "the mean of the last three"
    noise = [(x, y + (-1) ** int(x)) for x, y in line]
    assert all(abs(y - 3 * x) < 0.21 for x, y in svg.smooth(noise)[2:-2]), "the mean of five"
    assert svg.smooth(line[:10]) == line[:10] and svg.smooth([]) == [], "too few points for a mean"


def test_a_band_that_is_far_away_leaves_the_curve_its_room() -> None:
    curve = Series("s", [(0, 0.0), (10, 1e-7)])
    assert svg.draw_chart([curve], band=Band(0.02, None, 0, "far")).band is None
    drawn = svg.draw_chart([Series("s", [(0, 0.0), (10, 1.0)])], band=Band(None, 0.1, 20, "later")).band
    assert drawn is None, "the detector begins after the last step"


def test_a_quoted_number_says_whose_it_is(checkout: Path) -> None:
    plan = build.build_plan(Request(("table4",), "paper"))
    text, _ = page_of(plan)
    sentence = "AP, AP50, AP75: MoCo's paper (He et al. 2020): learning rate .02, warm-up over 100 steps."
    assert f"MoCov1: {sentence}" in html.unescape(text)
    assert f"\nMoCov1, {sentence}\n" in (plan.reports / "table4.md").read_text()


def test_a_page_of_other_images_names_them(checkout: Path, finish: Callable[..., None]) -> None:
    plan = build.build_plan(Request(("table7",), "smoke", data="mine", data_config="cifar10"))
    for run in plan.runs.values():
        finish(run, 50.0)
    text, _ = page_of(plan)
    assert "of scale smoke on other images than its own: CIFAR-10." in text and "A quick test" not in text
    for shown in (html.unescape(text), (plan.reports / "table7.md").read_text()):
        assert "Here on other images (CIFAR-10), so nothing is compared." in shown


def test_a_page_of_the_scales_own_images_and_an_earlier_versions_name_none(done: Plan) -> None:
    text, _ = page_of(done)
    assert "other images" not in text and "A quick test of all of the code on generated images" in text
    written = done.reports / "table7.json"
    written.write_text(
        json.dumps({key: value for key, value in json.loads(written.read_text()).items() if key != "images"})
    )
    assert "other images" not in write_page("smoke").read_text()


def test_nothing_checked_is_refused(checkout: Path) -> None:
    with pytest.raises(UserError, match="Nothing at scale smoke was checked yet"):
        write_page("smoke")


def test_every_verdict_is_explained() -> None:
    assert set(page.VERDICT_MEANINGS) == set(Verdict)


def test_every_status_is_explained() -> None:
    assert set(page.STATUS_MEANINGS) == set(ClaimStatus)


def test_metrics_are_read_by_name_and_bad_lines_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "num_steps": 1000, "loss": 1.0, "lr": 0.5}) for step in range(1000)]
    path.write_text("\n".join([*lines, '{"step": 1000, "loss": NaN}', '{"epoch": 3}', "[1]", '{"step": 10']))
    curves = results.curves(path)
    assert list(curves) == ["loss", "lr"]
    assert len(curves["loss"]) == 1000 and curves["lr"][-1] == (999, 0.5)
    assert results.losses(path) == curves["loss"]
    assert results.losses(tmp_path / "none") == []


def test_a_long_curve_is_downsampled() -> None:
    points = [(0.0, 1.0), (1, 3.0), (2, 5.0), (3, 7.0), (4, 9.0)]
    assert svg.downsample(points, num_points=3) == [(0.5, 2), (2.5, 6), (4, 9)]
    assert svg.downsample([(0, 1.0)]) == [(0, 1)]
    assert svg.downsample([]) == []


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 100, [0, 20, 40, 60, 80, 100]), (71.9, 75.4, [72, 73, 74, 75]), (0.001, 0.0049, [0.001, 0.002, 0.003, 0.004])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert svg.ticks(low, high) == expected


def test_a_chart_holds_its_points_and_intervals() -> None:
    drawn = svg.draw_chart([Series("s", [(0, 1.0), (10, 2.0)], marked=True, labels=["a"], intervals=[(0.0, 3.0)])])
    (series,) = drawn.series
    (x, y, words, top, bottom), (_, other_y, *_) = series.marks
    assert drawn.left < x < drawn.right and words == "a"
    assert drawn.top < top < other_y < y < bottom < drawn.bottom
    assert svg.draw_chart([Series("flat", [(1, 2.0)])]).series[0].marks == []


def judged(**given: Any) -> dict[str, Any]:
    blank = {"difference": 0.4, "expected": 75.0, "mean": 75.4, "values": {"0": 75.4}, "interval": None, "margin": None}
    return blank | given


def test_a_strip_is_in_margins() -> None:
    strip = svg.cell_strip(judged(margin={"points": 0.8}, interval=[75.0, 75.8]), reach=0, width=100)
    assert strip and strip.band and strip.interval
    assert strip.centre == 50 and strip.band == (28, 72)
    assert strip.ours == 61 and strip.interval == (50, 72)
    far = svg.cell_strip(judged(margin={"points": 0.1}, mean=75.4), reach=0, width=100)
    assert far and far.ours == 94


def test_for_recorded_numbers_the_interval_is_the_band() -> None:
    cell = judged(interval=[73.0, 77.0], values={"0": 75.0, "1": 75.8})
    strip = svg.cell_strip(cell, reach=4, width=100)
    assert strip and strip.band == (28, 72) and strip.interval is None and strip.seeds == [50, 58.8]
    assert svg.cell_strip(judged(expected=None, difference=None), reach=4) is None


def test_strips_of_recorded_numbers_share_a_scale() -> None:
    """The wider interval is drawn wider, and the widest one fits."""
    narrow, wide = judged(interval=[73.0, 77.0]), judged(interval=[65.0, 82.5])
    reach = svg.reach_in_points([narrow, wide, judged(margin={"points": 0.1}, interval=[0.0, 100.0])])
    assert reach == 10
    bands = [strip.band for cell in (narrow, wide) if (strip := svg.cell_strip(cell, reach, width=100))]
    assert bands == [(41.2, 58.8), (6.0, 83.0)]
    outside = judged(interval=[73.0, 77.0], mean=50.0, difference=-25.0, values={"0": 50.0})
    assert svg.reach_in_points([outside]) == 25
    assert svg.reach_in_points([]) == 0


def test_a_claims_strip_has_zero_in_its_middle() -> None:
    part = {"difference": 1.0, "interval": [-math.inf, math.inf], "printed": 0.5}
    strip = svg.claim_strip(part, width=100)
    assert strip and strip.centre == 50 and strip.printed and 50 < strip.printed < strip.ours
    assert strip.interval == (6, 94)
    assert svg.claim_strip(part | {"difference": None}) is None


def test_figures_2_and_3_show_ours_on_top(checkout: Path, finish: Callable[..., None]) -> None:
    plan = build.build_plan(Request(("figure2", "figure3"), "paper"))
    empty = {figure.table: figure for figure in figures.draw(*checked_of(plan))}
    assert empty["figure3"].chart is None
    assert empty["figure2"].chart and [series.name for series in empty["figure2"].chart.series] == ["SwAV, paper"]
    assert any("SimCLR, 1000 epochs, took 40 hours" in note for note in empty["figure2"].notes)
    for run in plan.runs.values():
        finish(run, 74.0, wall_seconds=36_000.0)
        lines = [json.dumps({"step": step, "loss": 6 - step / 100}) for step in range(1, 101)]
        run.result.with_name("metrics.jsonl").write_text("\n".join(lines))
    full = {figure.table: figure.chart for figure in figures.draw(*checked_of(plan))}
    assert full["figure2"] and full["figure3"]
    paper, ours = full["figure2"].series
    assert len(paper.marks) == len(ours.marks) == 4
    assert len({x for x, *_ in ours.marks}) == 1, "each pretraining took ten hours"
    assert paper.marks[0][0] < ours.marks[0][0] < paper.marks[1][0]
    assert [series.name for series in full["figure3"].series] == ["SwAV, soft assignments", "SwAV, hard assignments"]


def test_a_chart_shows_each_rows_seeds_their_mean_and_the_row_to_beat(
    checkout: Path, finish: Callable[..., None]
) -> None:
    plan = build.build_plan(Request(("table10",), "lite", (0, 1, 2)))
    assert next(figures.draw(*checked_of(plan))).chart is None
    for run in plan.runs.values():
        pretraining = plan.runs[run.parents[0]].name if run.parents else ""
        accuracy = {"swav_400ep_sinkhorn1": 10.0, "swav_400ep_2x160_4x96": 20.0}.get(pretraining, 30.0)
        finish(run, accuracy + run.seed)
    figure = next(figures.draw(*checked_of(plan)))
    assert figure.chart and figure.x == "iterations" and figure.y == "Linear, top-1, %"
    seeds, means, control = figure.chart.series
    places = [x for x, _ in figure.chart.x_ticks]
    assert [name for _, name in figure.chart.x_ticks] == ["1", "3", "10", "30"]
    assert [x for x, *_ in means.marks] == places and [x for x, *_ in seeds.marks] == [
        x for x in places for _ in range(3)
    ]
    heights = [y for _, y, *_ in means.marks]
    assert heights[0] > heights[1] > heights[2] == heights[3]  # downwards
    assert [y for _, y, *_ in seeds.marks][1::3] == heights, "the second of three seeds one point apart is their mean"
    points_high = (heights[0] - heights[1]) / 10
    assert means.name == "mean, with its 90% interval over seeds"
    reach = 2.920 / 3**0.5 * points_high  # t(2 degrees) x sd 1 / sqrt(3)
    for _, y, _, top, bottom in means.marks:
        assert (y - top, bottom - y) == pytest.approx((reach, reach), abs=0.15)
    assert not seeds.line
    assert control.name == "random trunk" and f",{heights[2]} " in control.line


def checked_of(plan: Plan) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    write_verdicts(plan, check.check_tables(plan))
    checked = [json.loads((plan.reports / f"{name}.json").read_text()) for name in plan.tables]
    return checked, runs.collect(checked, [], plan.request.scale, plan.reports)


def test_claims_are_shown_with_effect_size_and_interval(checkout: Path, finish: Callable[..., None]) -> None:
    plan = build.build_plan(Request(("claims",), "paper", (0, 1, 2)))
    for run in plan.runs.values():
        finish(run, 74.0 + run.seed / 10 + ("fixed" not in run.parent_name))
    answers = check_claims(plan)
    write_verdicts(plan, [], answers)
    text = write_page("paper").read_text()
    _, _, learned = text.partition('id="claim-learned-prototypes"')
    learned, _, _ = learned.partition("</tr>")
    found = answers[0].parts[0]
    assert found.interval and found.effect_size
    assert "+1.00</b>" in learned and "paper +0.8" in learned and "holds" in learned
    low, high = found.interval
    assert f"[+{low:.2f}, +{high:.2f}]" in learned and f"g = {found.effect_size:.1f}" in learned
    assert all(f'id="{run_id}"' in text for run_id in found.run_ids)


def test_the_page_stays_small_whatever_a_run_wrote(done: Plan) -> None:
    run = next(run for run in done.runs.values() if run.name == "swav_800ep")
    run.log.write_text("start\n" + "<b>line</b>\n" * 100_000 + "the end\n")
    run.result.with_name("config.yaml").write_text("first: 1\n" + "more: 1\n" * 100_000)
    text, _ = page_of(done)
    assert len(text) < 250_000
    assert "&lt;b&gt;line&lt;/b&gt;\nthe end" in text and "first: 1" in text
    assert "<b>line" not in text and ">start" not in text
