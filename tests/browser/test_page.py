"""The page in a real browser: it opens without errors, sorts, unfolds, fits a phone, and makes no request."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reproduce.engine.runs.picture_files import Picture, Tile, sheet_picture, write_picture
from reproduce.harness.plan import build
from reproduce.harness.plan.model import CACHE, Request
from reproduce.harness.report.files import write_verdicts
from reproduce.harness.report.page import write_page
from reproduce.harness.report.render_preflight import write_preflight_page
from reproduce.harness.spec.preflight_file import preflight_path
from reproduce.harness.verdict import check
from reproduce.harness.verdict.claims import check_claims
from tests.browser.chromium import PROGRAM, Browser, browser
from tests.runs import lent_configs

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium (Debian: apt-get install chromium)")

HOSTILE = "<img src=x onerror=\"document.title='caught'\"><script>document.title='caught'</script>"


@pytest.fixture(scope="module")
def page(composed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Write a report at scale paper with numbers, a failure, curves, and many cells that were not run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("checkout"))
        tables = ("table2", "table3", "table9", "figure2", "figure3", "claims")
        with lent_configs(composed, CACHE):
            plan = build.build_plan(Request(tables, "paper", (0, 1)))
        metrics = {name for cell in plan.cells for name in (cell.metric, cell.selection_metric)}
        for number, run in enumerate(plan.runs.values()):
            run.result.parent.mkdir(parents=True)
            run.log.write_text(f"step 1/2\n{HOSTILE}\n")
            if "fixed_prototypes" in run.label:
                run.failure.write_text(json.dumps({"status": "failed", "exit_status": 1, "message": HOSTILE}))
                continue
            values = dict.fromkeys(metrics, 74 + number % 7 / 10)
            done = {"run_id": run.run_id, "kind": run.kind, "name": run.name, "parents": run.parents, "metrics": values}
            cost = {"wall_seconds": 3600.0 + number, "device_hours": 8.0, "peak_memory_gb": 12.5}
            provenance = {"git_commit": HOSTILE, "config_hash": run.run_id.rpartition("-")[2] * 6}
            run.result.write_text(json.dumps(done | cost | {"provenance": provenance}))
            lines = [json.dumps({"step": step, "loss": 6 - step / 100, "lr": 0.1}) for step in range(200)]
            run.result.with_name("metrics.jsonl").write_text("\n".join(lines))
            if run.name == "swav_800ep":
                add_pictures(run.result.parent)
        write_verdicts(plan, check.check_tables(plan), check_claims(plan))
        yield write_page("paper").resolve()


def add_pictures(folder: Path) -> None:
    """Write a wide sheet, a map of classes with long names, and thresholds into a run's folder."""
    rows = [[Tile(np.full((60, 60, 3), 99, np.uint8), 60)] * 12] * 3
    write_picture(folder, sheet_picture(rows, "crops", "Crops", HOSTILE, HOSTILE))
    points = {f"a_class_with_a_long_name_{number}": [(number / 11, 0.3)] for number in range(12)}
    write_picture(folder, Picture("map", "Map", "A map.", "Twelve points.", points={HOSTILE: [(0.5, 0.6)], **points}))
    ranges = {"loss": {"low": 5.0, "high": 5.2, "words": HOSTILE}}
    (folder / "thresholds.json").write_text(json.dumps({"first_step": 50, "ranges": ranges}))


@pytest.fixture(scope="module")
def preflight_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Write the page of a preflight with long names, differences, and HTML in an error."""
    number = {"quantity": "initial projection of projection_head matrices", "found": 1e300, "expected": -0.1234567}
    cause = "the optimizer: rates, momentum, weight decay, LARC, what is frozen, when it runs"
    entry = {
        "kind": "pretrain",
        "equal": False,
        "num_compared": 1234,
        "worst": ["squared pixels of view 1", 11, 1e-7, 0.93],
        "seconds": 12.3,
        "line": f"FAILED: {HOSTILE}",
        "differences": [],
        "num_differences": 0,
    }
    differences = [{**number, "step": step, "tolerance": 1.2e-7, "cause": cause} for step in (None, *range(12))]
    recipes = [f"swav_400ep_prototypes{number}" for number in range(9)]
    result = {
        "finished": "2026-01-02T03:04:05+00:00",
        "seconds": 321.0,
        "scale": "smoke",
        "precisions": ["fp64", "fp32"],
        "overrides": [],
        "equal": False,
        "commit": "c" * 40,
        "dirty": False,
        "hardware": "8 x NVIDIA A100-SXM4-80GB",
        "world_size": 1,
        "packages": {"torch": "2.14.1"},
        "arithmetic": {"deterministic": False},
        "not_rehearsed": ["moco_v3_100ep"],
        "recorded": {
            "commit": "d" * 40,
            "dirty": False,
            "date": "2026-01-01",
            "hardware": "Abacus",
            "system": "Linux x86_64",
            "packages": {"torch": "2.14.1"},
            "settings": ["native", "native, 2 threads", "AVX-512"],
            "held_out": {"AVX-512 kernels with AVX2 products, 2 threads": {"rehearsals": 40, "flagged": 0}},
        },
        "rehearsals": [
            {**entry, "name": "deepcluster_v2_400ep_2x160_4x96", "recipes": recipes, "status": "different"}
            | {"differences": differences, "num_differences": 99},
            {**entry, "name": "knn_head", "recipes": ["knn_head"], "status": "failed", "worst": None},
            {**entry, "name": "linear_inat18", "recipes": ["linear_inat18"], "status": "equal", "equal": True},
        ],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("preflight"))
        preflight_path("smoke").parent.mkdir(parents=True)
        preflight_path("smoke").write_text(json.dumps(result))
        yield write_preflight_page("smoke").resolve()


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium") / "profile") as running:
        yield running


@pytest.fixture(autouse=True)
def _no_console_message_and_no_request(window: Browser) -> Iterator[None]:
    window.console_messages.clear()
    window.requests.clear()
    yield
    assert window.console_messages == []
    assert [address for address in window.requests if not address.startswith(("file:", "data:", "about:"))] == []


def column(window: Browser, number: int) -> list[str]:
    """Return the first word of each cell in a column of Table 3."""
    rows = "[...document.querySelectorAll('#table3 tbody tr')]"
    return list(window.run(f"{rows}.map(row => row.cells[{number}].innerText.trim().split(/\\s/)[0])"))


def test_header_clicks_sort_then_restore(window: Browser, page: Path) -> None:
    window.open(page)
    printed = column(window, 1)
    values = [float(value.strip("†")) for value in printed]
    assert values != sorted(values)
    click = "document.querySelectorAll('#table3 thead tr:last-child th')[1].querySelector('button').click()"
    window.run(click)
    assert [float(value.strip("†")) for value in column(window, 1)] == sorted(values)
    window.run(click)
    assert [float(value.strip("†")) for value in column(window, 1)] == sorted(values, reverse=True)
    assert window.run("document.querySelectorAll('#table3 [aria-sort=descending]').length") == 1
    window.run(click)
    assert column(window, 1) == printed


def test_cells_without_numbers_sort_last(window: Browser, page: Path) -> None:
    window.open(page)
    for _ in range(2):
        window.run("document.querySelectorAll('#table3 thead tr:last-child th')[5].querySelector('button').click()")
        shown = column(window, 5)
        assert "–" in shown and shown.index("–") == len(shown) - shown.count("–")


def test_the_keyboard_sorts_and_unfolds(window: Browser, page: Path) -> None:
    window.open(page)
    window.run("document.querySelector('#runs thead button').focus()")
    window.press("Enter", 13)
    assert window.run("document.querySelector('#runs thead th').getAttribute('aria-sort')") == "ascending"
    window.run("document.querySelector('#not-run summary').focus()")
    window.press("Enter", 13)
    assert window.run("document.querySelector('#not-run details').open") is True


def test_a_click_unfolds_the_margins(window: Browser, page: Path) -> None:
    window.open(page)
    seen = "document.querySelector('#table2 details:last-of-type .detail').checkVisibility()"
    assert window.run(seen) is False
    window.run("document.querySelector('#table2 details:last-of-type summary').click()")
    assert window.run(seen) is True
    assert "Starting judgement" in window.run("document.querySelector('#table2 details:last-of-type').innerText")


def test_a_link_to_a_cell_shows_it_and_its_verdict_unfolds_the_reason(window: Browser, page: Path) -> None:
    window.open(page, "#table3-swav-places205")
    top = "document.getElementById('table3-swav-places205').getBoundingClientRect().top"
    assert 0 <= window.run(top) < 900
    click = "document.querySelector('#table3-swav-places205 .why').click()"
    window.run(f"new Promise(done => {{ addEventListener('hashchange', () => done()); {click} }})")
    assert window.run("document.querySelector(':target').closest('details').open") is True
    assert window.run("document.querySelector(':target').innerText").startswith("SwAV, Places205")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_table_shows_that_it_goes_on(window: Browser, page: Path, scheme: str) -> None:
    """By a shadow at its right edge, without a script, until it is scrolled to its end."""
    window.open(page, width=390, scheme=scheme, scripts=False)
    table = "document.querySelector('#table3 .scroll')"
    assert window.run(f"{table}.scrollWidth > {table}.clientWidth")
    window.run(f"{table}.scrollIntoView({{ behavior: 'instant' }})")

    def edge() -> np.ndarray:
        """Return the mean brightness of the last 22 columns of pixels inside the right edge, below the round corner."""
        box = f"(box => [box.right, box.top + scrollY])({table}.getBoundingClientRect())"
        right, top = window.run(box)
        clip = {"x": right - 24, "y": top + 14, "width": 22, "height": 4, "scale": 1}
        shot = window.send("Page.captureScreenshot", clip=clip)["data"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(shot))).convert("L"), dtype=float).mean(axis=0)

    more = edge()
    assert abs(more[-1] - more[0]) > 30
    window.run(f"{table}.scrollLeft = {table}.scrollWidth")
    assert np.ptp(edge()) < 10


def test_link_to_a_run_unfolds_its_parents(window: Browser, page: Path) -> None:
    run_id = next(path.parent.name for path in sorted(page.parents[2].glob("results/paper/swav_800ep-s0-*/log.txt")))
    window.open(page, f"#{run_id}")
    assert window.run(f"document.getElementById('{run_id}').open && document.querySelector('.all-runs').open") is True
    lines = window.run(f"document.querySelectorAll('#{run_id} .chart polyline').length")
    assert lines == 3, "the loss, its mean, and the rate"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 400, 800, 1200, 1600])
def test_nothing_is_wider_than_the_window(window: Browser, page: Path, width: int, scheme: str) -> None:
    window.open(page, width=width, scheme=scheme)
    window.run("document.querySelectorAll('details').forEach(each => { each.open = true })")
    assert window.run("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize("width", [390, 320, 1100])
def test_nothing_on_the_preflights_page_is_wider_than_the_window(
    window: Browser, preflight_page: Path, width: int
) -> None:
    window.open(preflight_page, width=width)
    window.run("document.querySelectorAll('details').forEach(each => { each.open = true })")
    assert window.run("document.documentElement.scrollWidth") == width
    assert window.run("document.querySelectorAll('img').length") == 0
    assert HOSTILE in window.run("document.querySelector('#knn_head').innerText")


def test_a_rehearsals_result_unfolds_its_differences(window: Browser, preflight_page: Path) -> None:
    window.open(preflight_page)
    seen = "document.querySelector('#knn_head p').checkVisibility()"
    assert window.run(seen) is False
    click = "document.querySelector('#rehearsals a[href=\"#knn_head\"]').click()"
    window.run(f"new Promise(done => {{ addEventListener('hashchange', () => done()); {click} }})")
    assert window.run(seen) is True


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_tone_can_be_read_on_every_ground(window: Browser, page: Path, scheme: str) -> None:
    window.open(page, scheme=scheme)
    style = window.run(
        "Object.fromEntries('ground card made ink soft good bad better unsure quiet accent'.split(' ')"
        ".map(name => [name, getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim()]))"
    )
    grounds = {name: style.pop(name) for name in ("ground", "card", "made")}
    # WCAG 2 AA asks for 4.5 where text is small.
    poor = [(t, g) for t, tone in style.items() for g, ground in grounds.items() if contrast(tone, ground) < 4.5]
    assert poor == []


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours `#rrggbb` (WCAG 2.2, 1.4.3)."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_html_in_results_is_escaped(window: Browser, page: Path) -> None:
    window.open(page)
    window.run("document.querySelectorAll('details').forEach(each => { each.open = true })")
    others = 'img:not([src^="data:image/jpeg"]), iframe, object'
    assert window.run(f"document.querySelectorAll('{others}').length") == 0
    assert HOSTILE in window.run("document.querySelector('#runs').innerText")
    assert window.run("document.title").endswith("scale paper")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pictures_are_seen_and_unfold_by_keyboard(window: Browser, page: Path, scheme: str) -> None:
    window.open(page, scheme=scheme, width=800)
    image = "document.querySelector('#pictures details[open] img')"
    assert window.run(f"{image}.decode().then(() => {image}.naturalWidth)") == 759
    assert window.run(f"{image}.alt") == HOSTILE
    assert window.run(f"{image}.getBoundingClientRect().width") <= 800
    box = window.run("(b => [b.left, b.top + scrollY])(document.querySelector('.dot').getBoundingClientRect())")
    clip = {"x": box[0] + 6, "y": box[1] + 6, "width": 1, "height": 1, "scale": 1}
    shot = window.send("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"]
    color = Image.open(io.BytesIO(base64.b64decode(shot))).convert("RGB").getpixel((0, 0))
    assert color == (0x3B, 0x78, 0xC3), "the first class's"
    window.run("document.querySelectorAll('#pictures summary')[1].focus()")
    window.press("Enter", 13)
    assert window.run("document.querySelectorAll('#pictures details[open]').length") == 2


def test_without_scripts_the_page_still_reads(window: Browser, page: Path) -> None:
    window.open(page, scripts=False)
    assert window.run("document.querySelectorAll('button').length") == 0
    text = window.run("document.body.innerText")
    assert "Transfer of ImageNet features" in text and "Learned prototypes are better" in text


def test_page_prints(window: Browser, page: Path) -> None:
    window.open(page, scheme="dark")
    window.send("Emulation.setEmulatedMedia", media="print")
    assert window.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert window.run("getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"
    ink = window.run("getComputedStyle(document.documentElement).getPropertyValue('--ink').trim()")
    assert luminance(ink) < 0.1, "dark ink on white paper"
    assert window.send("Page.printToPDF")["data"]
