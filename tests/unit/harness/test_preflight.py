"""`make preflight`: what it finds, the page and the lines that say so. Nothing is rehearsed here; results are given."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reproduce.__main__ import main
from reproduce.errors import UserError
from reproduce.files import NOT_FINITE
from reproduce.harness import doctor, machine, revision
from reproduce.harness.machine import Diagnosis
from reproduce.harness.plan.model import Plan
from reproduce.harness.preflight import preflight as module
from reproduce.harness.preflight.preflight import preflight
from reproduce.harness.preflight.rehearsals import Rehearsal
from reproduce.harness.report import render_preflight
from reproduce.harness.report.files import write_verdicts
from reproduce.harness.report.page import write_page
from reproduce.harness.report.render_preflight import write_preflight_page
from reproduce.harness.report.tracking import REHEARSAL_COLUMNS, log_preflight
from reproduce.harness.spec import golden, tables
from reproduce.harness.spec.preflight_file import doubts, last_preflight, preflight_path, summary
from reproduce.harness.verdict import check
from tests.unit.harness.test_report import HOSTILE, Page

COMMIT, HARDWARE = "c" * 40, "Abacus 3, 2 cores"
RECORDED = {
    "commit": "d" * 40,
    "dirty": False,
    "date": "2026-01-02",
    "hardware": "Abacus 2",
    "system": "Linux x86_64",
    "packages": {"torch": "2.14.1"},
    "settings": ["native", "SSE4.1"],
    "held_out": {"AVX, 2 threads": {"rehearsals": 3, "flagged": 0}},
}
EXPECTED = {
    "knn": {"metric knn20": [50.0], "pixels of view 1": [0.5]},
    "swav_400ep": {"indices": [7.0, 9.0], "loss": [4.0, 3.0]},
    "schedule_swav_400ep": {"number of steps": [100.0], "learning rate": [0.5, 0.0]},
}
KINDS = {"knn": "evaluate", "swav_400ep": "pretrain", "schedule_swav_400ep": "schedule"}

Say = Callable[..., None]
Rehearse = Callable[..., bool]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout at a known commit, on a known machine, with first steps recorded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tables, "TABLES_DIR", tmp_path / "tables")
    monkeypatch.setattr(revision, "commit", lambda: COMMIT)
    monkeypatch.setattr(revision, "dirty", lambda: False)
    monkeypatch.setattr(machine, "hardware_name", lambda: HARDWARE)
    rehearsals = {
        name: {
            "recipes": [name],
            "overrides": [],
            "steps": {key: [series, [0.01] * len(series)] for key, series in values.items()},
        }
        for name, values in EXPECTED.items()
    }
    golden.path("smoke").parent.mkdir(parents=True, exist_ok=True)
    golden.path("smoke").write_text(json.dumps({"recorded": RECORDED, "rehearsals": rehearsals}))
    return tmp_path


@pytest.fixture
def rehearse(here: Path, monkeypatch: pytest.MonkeyPatch) -> Rehearse:
    """Do a preflight whose rehearsals compute what was recorded, but for what is given: `rehearse(knn={...})`.

    A text in place of numbers is the error that ends the rehearsal.
    """

    def run(
        say: Callable[[str], None] = lambda _: None,
        names: Sequence[str] = tuple(EXPECTED),
        num_processes: int = 1,
        scale: str = "smoke",
        cores: int = 1,
        started: list[int] | None = None,
        **found: Any,
    ) -> bool:
        config = {"cluster": {"executor": "local", "num_processes": num_processes, "gpus_per_process": 0}}
        planned = [Rehearsal(name, KINDS.get(name, "pretrain"), config, recipes=[name]) for name in names]

        def run_rehearsals(given: Sequence[Rehearsal], *rest: Any) -> dict[str, Any]:
            contents = {}
            if started is not None:
                started.append(rest[1])
            for each in given:
                values = found.get(each.name, {})
                result = (
                    {"error": values} if isinstance(values, str) else {"values": EXPECTED.get(each.name, {}) | values}
                )
                packages = {"torch": "2.14.1+cpu"}
                where = {"hardware": HARDWARE, "packages": packages, "arithmetic": {"deterministic": False}}
                contents[each.name] = {**result, **where, "world_size": 1, "seconds": 1.234}
                rest[-1](each, contents[each.name])
            return contents

        monkeypatch.setattr(module, "rehearsals", lambda *_: planned)
        monkeypatch.setattr(module, "generate_images", lambda _: "images")
        monkeypatch.setattr(module, "run_rehearsals", run_rehearsals)
        return preflight(scale, cores, (), (), say)

    return run


@pytest.mark.parametrize(("scale", "at_once"), [("smoke", 4), ("paper", 1)])
def test_at_full_size_one_process_does_all(rehearse: Rehearse, scale: str, at_once: int) -> None:
    if scale != "smoke":
        golden.path("smoke").rename(golden.path(scale))
    started: list[int] = []
    assert rehearse(scale=scale, cores=4, started=started)
    assert started == [at_once]


def result() -> dict[str, Any]:
    found = last_preflight("smoke")
    assert found is not None
    return found


def entry(name: str) -> dict[str, Any]:
    (found,) = [each for each in result()["rehearsals"] if each["name"] == name]
    return dict(found)


def test_recipes_that_take_their_recorded_steps_are_equal(rehearse: Rehearse) -> None:
    said: list[str] = []
    assert rehearse(said.append, swav_400ep={"loss": [4.0, 3.005]})
    closest = "the closest to its tolerance:"
    assert said == [
        f"knn                          equal (2 numbers; {closest} pixels of view 1 at step 0, 0 apart, 0% of it)",
        f"swav_400ep                   equal (4 numbers; {closest} loss at step 1, 0.002 apart, 50% of it)",
        "learning rates of all steps  1 of 1 schedules equal",
    ]
    assert [(each["name"], each["status"], each["equal"]) for each in result()["rehearsals"]] == [
        (name, "equal", True) for name in ("knn", "schedule_swav_400ep", "swav_400ep")
    ]
    assert result()["equal"] and result()["recorded"] == RECORDED
    assert (result()["commit"], result()["hardware"], result()["world_size"]) == (COMMIT, HARDWARE, 1)
    assert summary(result()) == (
        "3 of 3 rehearsals take their recorded first steps (no number is further from its recorded one than 50% of its "
        "tolerance)"
    )


def test_several_processes_leave_out_what_draws_on_each(rehearse: Rehearse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "same_for_any_number_of_processes", lambda given: [e for e in given if e.name != "knn"])
    said: list[str] = []
    assert rehearse(said.append, num_processes=2)
    assert said[0] == "left out, because they draw at random in each process: knn"
    assert result()["equal"] and result()["not_rehearsed"] == []
    assert "knn" not in [each["name"] for each in result()["rehearsals"]]


def test_a_number_of_processes_that_cannot_share_batches_is_refused(rehearse: Rehearse) -> None:
    with pytest.raises(UserError, match="in 1 or 2 or 4 processes, not in 3"):
        rehearse(num_processes=3)
    assert last_preflight("smoke") is None


def test_rehearsals_with_other_overrides_than_recorded_say_so(
    rehearse: Rehearse, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = golden.load("smoke")
    others = {name: replace(each, overrides=["epochs=7"]) for name, each in recorded.rehearsals.items()}
    monkeypatch.setattr(golden, "load", lambda _: replace(recorded, rehearsals=others))
    said: list[str] = []
    rehearse(said.append)
    assert said[0].endswith("; rehearsed with other overrides than recorded: record again")


def test_a_recipe_that_takes_other_steps_is_different(rehearse: Rehearse) -> None:
    said: list[str] = []
    assert not rehearse(said.append, swav_400ep={"loss": [4.0, 3.5]})
    assert said[1].startswith("swav_400ep                   DIFFERENT: loss at step 1 is 3.5, not 3 (tolerance 0.01);")
    assert not result()["equal"]
    (difference,) = entry("swav_400ep")["differences"]
    assert difference.pop("text") in said[1] and difference.pop("cause").startswith("the loss: temperature")
    assert difference == {"quantity": "loss", "step": 1, "found": 3.5, "expected": 3.0, "tolerance": 0.01}
    assert summary(result()) == "2 of 3 rehearsals take their recorded first steps (not swav_400ep)"


def test_a_schedule_that_differs_gets_a_line_of_its_own(rehearse: Rehearse) -> None:
    said: list[str] = []
    assert not rehearse(said.append, schedule_swav_400ep={"number of steps": [99.0]})
    assert said[2].startswith("schedule_swav_400ep          DIFFERENT: number of steps is 99, not 100")
    assert said[3] == "learning rates of all steps  0 of 1 schedules equal"


def test_a_rehearsal_that_fails_is_not_equal(rehearse: Rehearse) -> None:
    said: list[str] = []
    assert not rehearse(said.append, knn="too few neighbors")
    assert said[0] == "knn                          FAILED: too few neighbors"
    assert (entry("knn")["status"], entry("knn")["num_compared"]) == ("failed", 0)


def test_a_recipe_that_is_not_recorded_is_not_equal(rehearse: Rehearse) -> None:
    said: list[str] = []
    assert not rehearse(said.append, names=[*EXPECTED, "new"])
    assert "new                          NOT RECORDED: see make record-golden" in said
    assert entry("new")["status"] == "not recorded"


def test_a_recorded_recipe_that_is_gone_is_not_equal(rehearse: Rehearse) -> None:
    said: list[str] = []
    assert not rehearse(said.append, names=["swav_400ep", "schedule_swav_400ep"])
    assert said[-1] == "recorded, but of no recipe now: knn"
    assert (result()["equal"], result()["not_rehearsed"]) == (False, ["knn"])
    assert summary(result()).endswith(" (recorded, but of no recipe now: knn)")


def test_many_differences_are_counted_and_the_first_kept(rehearse: Rehearse) -> None:
    said: list[str] = []
    assert not rehearse(said.append, knn={f"metric {number:02}": [1.0] for number in range(30)})
    assert said[0].endswith("; and 27 more")
    assert (entry("knn")["num_differences"], len(entry("knn")["differences"])) == (30, 20)


def test_without_recorded_steps_nothing_is_rehearsed(rehearse: Rehearse) -> None:
    golden.path("smoke").unlink()
    with pytest.raises(UserError, match="no first steps are recorded at scale smoke"):
        rehearse()
    assert last_preflight("smoke") is None


@pytest.mark.parametrize("content", ["[]", "{}", '{"rehearsals": []}'])
def test_a_result_of_another_version_is_one_sentence(here: Path, content: str) -> None:
    preflight_path("smoke").parent.mkdir(parents=True)
    preflight_path("smoke").write_text(content)
    error = (
        r"^reports/smoke/preflight.json is damaged, or another version's. Delete it, and write it again with make pre"
    )
    with pytest.raises(UserError, match=error):
        last_preflight("smoke")
    in_short = render_preflight.in_short("smoke")
    assert in_short and in_short["tone"] == "unsure" and not in_short["page"]  # the report does without


def test_a_preflight_of_elsewhere_or_before_is_doubted(rehearse: Rehearse, monkeypatch: pytest.MonkeyPatch) -> None:
    rehearse()
    assert list(doubts(result())) == []
    monkeypatch.setattr(revision, "commit", lambda: "e" * 40)
    monkeypatch.setattr(machine, "hardware_name", lambda: "8 x A100")
    golden.path("smoke").write_text(json.dumps({"recorded": RECORDED | {"date": "2026-03-04"}, "rehearsals": {}}))
    assert list(doubts(result() | {"dirty": True})) == [
        "The preflight was done on another machine (Abacus 3, 2 cores) than this one (8 x A100).",
        "The preflight was done by another commit (cccccccccccc) than the checkout's (eeeeeeeeeeee).",
        "The preflight was done by uncommitted code.",
        "The first steps have been recorded again since the preflight.",
    ]
    monkeypatch.setattr(revision, "commit", lambda: "")  # in an image
    assert len(list(doubts(result()))) == 2


def test_this_machine_is_named_as_in_results(monkeypatch: pytest.MonkeyPatch) -> None:
    from reproduce.engine.runs import provenance

    monkeypatch.setattr(machine, "list_gpus", lambda: "nvidia-smi is not there")
    assert machine.hardware_name() == provenance.hardware_name()
    monkeypatch.setattr(machine, "list_gpus", lambda: [machine.GpuInfo("NVIDIA H200", 150, "580")] * 2)
    assert machine.hardware_name() == "2 x NVIDIA H200"


def text_of(page: Path) -> str:
    """The page's text; that its tags close, ids are unique and links lead somewhere is asserted."""
    text = page.read_text()
    parsed = Page(text)
    assert len(parsed.ids) == len(set(parsed.ids))
    for link in parsed.links:
        assert link == "data:," or (link[1:] in parsed.ids if link[0] == "#" else (page.parent / link).is_file()), link
    return text


def test_the_page_shows_every_rehearsal_and_where_the_steps_were_recorded(rehearse: Rehearse) -> None:
    rehearse(swav_400ep={"loss": [4.0, 3.005]})
    text = text_of(write_preflight_page("smoke"))
    assert "3 of 3 rehearsals take their recorded first steps (no number" in text
    row = text.partition('data-sort="swav_400ep"')[2].partition("</tr>")[0]
    assert "equal</span>" in row and "50% <small>loss, step 1, 0.002 apart" in row and "<td>1.2</td>" in row
    assert "<code>dddddddddddd</code>" in text and "Abacus 2, Linux x86_64" in text and "native; SSE4.1" in text
    assert "tried under</dt><dd>AVX, 2 threads: 0 of 3 rehearsals had a number outside" in text
    assert 'id="differences"' not in text and "index.html" not in text
    assert not [word for word in ("https://", "http://", "@import") if word in text]


def test_the_page_shows_what_differs_and_the_usual_cause(rehearse: Rehearse) -> None:
    found = {"indices": [7.0, 8.0], "loss": [4.0, NOT_FINITE]}
    assert not rehearse(swav_400ep=found, knn="no <b>neighbors</b>", names=["new", *EXPECTED])
    text = text_of(write_preflight_page("smoke"))
    differences = text.partition('<details class="run" id="swav_400ep"')[2].partition("</details>")[0]
    assert differences.index(">indices</th>") < differences.index(">loss</th>")
    first = differences.partition(">indices</th>")[2].partition("</tr>")[0]
    cells = [cell.rpartition(">")[2] for cell in first.split("</td>")[:-1]]
    assert cells == ["1", "8", "9", "0.01", "which images a step reads: seed, shuffling per epoch, batch size"]
    assert ">infinite</td>" in differences
    assert "FAILED: no &lt;b&gt;neighbors&lt;/b&gt;" in text and "NOT RECORDED: see make record-golden" in text
    assert text.count("<li><b>1</b>") == 4 and text.count("<details") == 3


def test_the_pages_text_is_escaped(rehearse: Rehearse) -> None:
    rehearse(swav_400ep={"loss": [4.0, 3.5]}, knn="x")

    def hostile(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: hostile(item) if key != "kind" and key != "status" else item for key, item in value.items()}
        if isinstance(value, list):
            return [hostile(item) for item in value]
        return value + HOSTILE if isinstance(value, str) and not value.startswith("20") else value

    given = hostile(result()) | {"precisions": [HOSTILE], "scale": HOSTILE}
    preflight_path("smoke").write_text(json.dumps(given | {"not_rehearsed": [HOSTILE]}))
    text = write_preflight_page("smoke").read_text()
    Page(text)
    assert text.count("&lt;img src=x onerror=alert(1)&gt;") > 20
    assert text.count("<script") == text.count("</script") == text.count("</style") == text.count("</title") == 1
    assert "<img" not in text


def test_the_report_says_what_the_preflight_found_and_links_its_page(
    smoke: Plan, rehearse: Rehearse, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_verdicts(smoke, check.check_tables(smoke))
    without = text_of(write_page("smoke"))
    assert "No preflight was run" in without and "<code>make preflight</code> does one." in without
    assert not (smoke.reports / "preflight.html").exists()
    rehearse()
    monkeypatch.setattr(machine, "hardware_name", lambda: "8 x A100")
    text = text_of(write_page("smoke"))
    link = text.partition('<a href="preflight.html">')[2].partition("</a>")[0]
    assert link.startswith("3 of 3 rehearsals take their recorded first steps, on ")
    assert f", on {HARDWARE}, 20" in link and link.endswith(" UTC.")
    assert "The preflight was done on another machine (Abacus 3, 2 cores) than this one (8 x A100)." in text
    assert '<b class="good">Preflight</b>' in text
    assert 'href="index.html"' in text_of(smoke.reports / "preflight.html")
    rehearse(knn="x")
    text = text_of(write_page("smoke"))
    assert '<b class="bad">Preflight</b>' in text and "2 of 3 rehearsals take their recorded first steps" in text


def test_wandb_gets_a_row_for_each_rehearsal(rehearse: Rehearse, monkeypatch: pytest.MonkeyPatch) -> None:
    from reproduce.engine.runs import tracking

    rehearse(swav_400ep={"loss": [4.0, 3.5]}, knn="x")
    sent: list[tuple[Any, ...]] = []
    monkeypatch.setattr(tracking, "log_table", lambda *given: sent.append(given))
    assert log_preflight("smoke") is None
    ((name, scale, folder, columns, rows, facts),) = sent
    assert (name, scale, folder, columns) == ("preflight", "smoke", Path("reports/smoke"), REHEARSAL_COLUMNS)
    by_name = {row[0]: dict(zip(columns, row, strict=True)) for row in rows}
    assert {name: row["status"] for name, row in by_name.items()} == {
        "knn": "failed",
        "schedule_swav_400ep": "equal",
        "swav_400ep": "different",
    }
    assert by_name["schedule_swav_400ep"]["closest to its tolerance"] == "number of steps at step 0"
    assert by_name["knn"]["result"] == "FAILED: x" and by_name["knn"]["share of its tolerance"] is None
    assert facts["equal"] is False and facts["hardware"] == HARDWARE


def test_wandb_never_fails_a_preflight(rehearse: Rehearse, monkeypatch: pytest.MonkeyPatch) -> None:
    from reproduce.engine.runs import tracking

    def fail(*_: object) -> None:
        raise OSError("no network")

    rehearse()
    monkeypatch.setattr(tracking, "log_table", fail)
    assert log_preflight("smoke") == "OSError: no network"


@pytest.mark.parametrize(("found", "status"), [({}, 0), ({"loss": [4.0, 3.5]}, 1)])
def test_the_command_says_where_the_page_is_and_exits_with_what_was_found(
    rehearse: Rehearse,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    found: dict[str, Any],
    status: int,
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(module, "preflight", lambda *given: rehearse(given[-1], swav_400ep=found))
    assert main(["preflight"]) == status
    out = capsys.readouterr().out.splitlines()
    words = "every recipe takes its recorded first steps" if status == 0 else "NOT ALL RECIPES ARE RIGHT HERE"
    assert out[-2:] == [f"preflight: {words}", "report: reports/smoke/preflight.html"]
    text_of(Path("reports/smoke/preflight.html"))


def test_the_command_rehearses_in_the_precisions_that_it_is_asked_for(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def rehearsals(scale: str, images: str, precisions: Sequence[str], _cluster: Sequence[str]) -> list[Rehearsal]:
        asked.append((scale, images, list(precisions)))
        raise UserError("enough")

    monkeypatch.setattr(module, "rehearsals", rehearsals)
    monkeypatch.setattr(module, "generate_images", lambda _: "images")
    for words in (["--precision", "fp64", "bf16"], []):
        with pytest.raises(UserError, match="enough"):
            main(["preflight", *words])
    assert asked == [("smoke", "images", ["fp64", "bf16"]), ("smoke", "images", [])]


def test_the_command_repeats_what_is_recorded_unless_it_is_told_not_to(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def record(scale: str, num_processes: int, _say: Any, only_new: bool = False) -> Path:
        asked.append((scale, num_processes, only_new))
        return Path("smoke.json")

    monkeypatch.setattr("reproduce.harness.preflight.record.record", record)
    for words in ([], ["--only-new"]):
        assert main(["record-golden", "--allow-dirty", "--cores", "3", *words]) == 0
    assert asked == [("smoke", 3, False), ("smoke", 3, True)]


def test_the_doctor_says_what_the_last_preflights_found(rehearse: Rehearse, monkeypatch: pytest.MonkeyPatch) -> None:
    none = Diagnosis("paper preflight", "none is possible: no first steps are recorded at this scale")
    assert list(doctor._preflights()) == [Diagnosis("smoke preflight", "none was run: make preflight"), none]
    rehearse()
    smoke, _ = doctor._preflights()
    assert smoke.level == "ok"
    assert smoke.text.startswith("3 of 3 rehearsals take their recorded first steps, on ")
    assert f", on {HARDWARE}, 20" in smoke.text
    monkeypatch.setattr(revision, "commit", lambda: "e" * 40)
    smoke, _ = doctor._preflights()
    assert (
        smoke.level == "note" and "by another commit (cccccccccccc) than the checkout's (eeeeeeeeeeee)." in smoke.text
    )
    rehearse(knn="x")
    smoke, _ = doctor._preflights()
    assert smoke.level == "note" and "2 of 3 rehearsals take their recorded first steps (not knn), on" in smoke.text
    golden.path("smoke").rename(golden.path("paper"))
    preflight_path("smoke").write_text("{")
    damaged, paper = doctor._preflights()
    assert damaged.level == "note" and "preflight.json is cut short or damaged" in damaged.text
    assert paper == Diagnosis("paper preflight", "none was run: make preflight SCALE=paper")
