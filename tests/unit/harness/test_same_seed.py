"""What no training amplifies is judged by the recorded seed itself, on whatever machine it runs."""

import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from scipy import stats as scipy_stats

from reproduce.__main__ import main
from reproduce.cli import recording_commands
from reproduce.errors import UserError
from reproduce.harness import arithmetics, record_baseline, revision
from reproduce.harness.arithmetics import Setting
from reproduce.harness.plan import build
from reproduce.harness.plan.model import Plan, Request
from reproduce.harness.spec import baseline
from reproduce.harness.spec.baseline import RecordedCell
from reproduce.harness.verdict import check
from reproduce.harness.verdict.labels import Verdict
from reproduce.harness.verdict.unchanged import unchanged

Finish = Callable[..., None]
WIDE = [52.0, 60.0, 48.0, 57.0, 43.0]
STEADY = (52.1, 52.0, 51.9)
SEEDS = range(5)
TAIL = 0.001
OTHERS = [Setting("one", {"A": "1"}), Setting("two", {"A": "2", "B": "2"})]
RANDOM, SWAV = "random/knn_head/knn20", "swav_800ep/knn_head/knn20"


def test_the_narrower_interval_is_that_of_the_same_seed() -> None:
    falls = unchanged(RecordedCell(WIDE, 1000, "x", STEADY), [0], SEEDS, TAIL)
    assert (falls.kind, falls.num_recorded) == ("same seed", 4)
    assert falls.expected == pytest.approx(52.0)
    spread = max(math.sqrt(0.02 / 3), 0.1)  # one of a thousand images
    reach = scipy_stats.t.ppf(1 - TAIL, 3) * spread * math.sqrt(1 + 1 / 4)
    assert falls.interval.high - falls.expected == pytest.approx(reach)
    assert falls.noticeable_fall == pytest.approx(reach * (1 + scipy_stats.t.ppf(0.9, 3) / scipy_stats.t.ppf(0.999, 3)))


@pytest.mark.parametrize("seeds", [[0, 1], [1], [5]])
def test_other_seeds_have_the_room_of_all(seeds: list[int]) -> None:
    known = RecordedCell(WIDE, 1000, "x", STEADY)
    assert unchanged(known, seeds, SEEDS, TAIL) == unchanged(RecordedCell(WIDE, 1000, "x"), seeds, SEEDS, TAIL)


def test_what_rounding_moves_as_far_as_a_seed_has_the_room_of_seeds() -> None:
    falls = unchanged(RecordedCell(WIDE, 1000, "x", (61.0, 45.0, 50.0)), [0], SEEDS, TAIL)
    assert falls.kind == "new seeds" and falls.expected == pytest.approx(52.0)


def test_settings_are_those_that_this_processor_has_and_does_not_use(monkeypatch: pytest.MonkeyPatch) -> None:
    def names(*flags: str) -> set[str]:
        monkeypatch.setattr(arithmetics, "cpu_flags", lambda: set(flags))
        return {each.name for each in arithmetics.unlike_this_machine()}

    assert names() == {"SSE4.1", "AVX"}
    assert "AVX2" not in names("avx2") and len(names("avx2")) == 4
    assert {"AVX2", "SSE4.1"} <= names("avx2", "avx512f") and "AVX-512" not in names("avx2", "avx512f")


def test_networks_of_full_size_have_few_settings_and_no_two_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    def names(*flags: str) -> list[str]:
        monkeypatch.setattr(arithmetics, "cpu_flags", lambda: set(flags))
        return [each.name for each in arithmetics.at_full_size()]

    mixed = "AVX-512 kernels with AVX2 convolutions and MKL's compatible products"
    assert names("avx2", "avx512f") == ["native", "AVX2", mixed]
    assert names("avx2") == ["native", "plain kernels with AVX2 convolutions"]  # AVX2 is its own
    assert names() == ["native"]


def test_the_environment_is_as_before_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A", "0")
    with OTHERS[1].applied():
        assert (os.environ["A"], os.environ["B"]) == ("2", "2")
    assert os.environ["A"] == "0" and "B" not in os.environ


@pytest.fixture
def recorded(checkout: Path, finish: Finish, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """Record five seeds and, of the first, other arithmetic; return each run that was executed with its environment."""
    monkeypatch.setattr(revision, "run_code_fingerprint", lambda *_: "the same")
    monkeypatch.setattr(record_baseline, "refuse_dirty", lambda *_: None)
    monkeypatch.setattr(record_baseline, "visible_gpus", list)
    monkeypatch.setattr(arithmetics, "unlike_this_machine", lambda: OTHERS)
    executed: list[tuple[str, str | None]] = []

    def execute(plan: Plan, cores: int) -> list[str]:
        for run in plan.runs.values():
            arithmetic = os.environ.get("A")
            executed.append((run.label, arithmetic))
            if Path(run.folder).is_relative_to(".cache"):
                assert Path(run.folder).is_relative_to(".cache/other-arithmetic")
                assert f"paths.results={Path(run.folder).parents[1]}" in run.overrides
            finish(run, WIDE[run.seed] + (0.1 if arithmetic == "2" else 0), counts={"num_test_images": 1000})
        return []

    monkeypatch.setattr(recording_commands, "execute", execute)
    assert main(["record-baseline", "table7", "--seeds", "5"]) == 0
    return executed


def test_untrained_trunks_are_recorded_under_other_arithmetic(recorded: list[tuple[str, str | None]]) -> None:
    other = [(label, arithmetic) for label, arithmetic in recorded if arithmetic]
    assert other == [(f"{name}, seed 0", each) for each in "12" for name in ("random", "knn_head of random")]
    cells = baseline.load("smoke").cells
    assert cells[RANDOM].same_seed == (52.0, 52.1) and cells[SWAV].same_seed == ()
    assert Path("reports/smoke/plan.json").read_text().count('"seed": 4') == 4  # the recorded plan, not the other ones


@pytest.mark.parametrize(("seeds", "value", "verdict"), [((0,), 50.0, Verdict.WORSE), ((0,), 52.1, Verdict.WITHIN),
                                                         ((1,), 50.0, Verdict.WITHIN)])  # fmt: skip
def test_a_check_of_the_recorded_seed_notices_more(
    recorded: list[tuple[str, str | None]], finish: Finish, seeds: tuple[int, ...], value: float, verdict: Verdict
) -> None:
    text = baseline.path("smoke").read_text()
    baseline.path("smoke").write_text(text.replace("[52.0, 52.1]", "[52.0, 52.1, 52.0, 52.0]"))
    plan = build.build_plan(Request(("table7",), "smoke", seeds))
    for run in plan.runs.values():
        finish(run, value, counts={"num_test_images": 1000})
    (table,) = check.check_tables(plan)
    (cell,) = [cell for row, key, cell in table.cells() if (row.label, key) == ("Random trunk", "knn20")]
    assert cell.verdict == verdict
    assert cell.interval_kind == ("same seed" if seeds == (0,) else "new seeds")
    assert cell.difference == pytest.approx(value - (cell.expected or 0))
    assert cell.p_value is None or seeds != (0,)


def test_a_recording_gets_the_same_seed_of_another_machine_later(
    recorded: list[tuple[str, str | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own arithmetic counts as well, because another machine's recorded."""
    before = baseline.load("smoke")
    monkeypatch.setattr(arithmetics, "of_this_machine", lambda: [Setting("native"), *OTHERS, Setting("2b", {"A": "2"})])
    monkeypatch.setattr(record_baseline, "cpu_name", lambda: "another CPU")
    recorded.clear()
    assert main(["record-baseline", "table7", "--same-seed"]) == 0
    runs = ("random, seed 0", "knn_head of random, seed 0")
    assert recorded == [(label, each) for each in (None, "1", "2", "2") for label in runs]
    now = baseline.load("smoke")
    assert now.cells[RANDOM].same_seed == (52.0, 52.0, 52.1, 52.1)
    assert now.header["same_seed"]["cpu"] == "another CPU" and "same_seed" not in before.header
    assert now.cells[SWAV] == before.cells[SWAV] and now.cells[RANDOM].values == before.cells[RANDOM].values


def test_the_same_seed_of_another_config_is_refused(recorded: list[tuple[str, str | None]]) -> None:
    path = baseline.path("smoke")
    path.write_text(path.read_text().replace(baseline.load("smoke").cells[RANDOM].run_id, "knn_head-s0-0123456789"))
    text = path.read_text()
    with pytest.raises(UserError, match="the config of random/knn_head/knn20 has changed; record its seeds first"):
        main(["record-baseline", "table7", "--same-seed"])
    assert path.read_text() == text
    path.unlink()
    with pytest.raises(UserError, match="nothing is recorded at scale smoke"):
        main(["record-baseline", "table7", "--same-seed"])


def test_another_number_of_test_images_is_a_doubt(recorded: list[tuple[str, str | None]], finish: Finish) -> None:
    plan = build.build_plan(Request(("table7",), "smoke"))
    for number, doubted in ((1000, False), (10, True)):
        for run in plan.runs.values():
            finish(run, 52.0, counts={"num_test_images": number})
        (table,) = check.check_tables(plan)
        says = "knn_head was measured on 10 images, the recorded numbers on 1,000"
        assert (says in table.doubts) is doubted


def test_another_config_is_another_run(recorded: list[tuple[str, str | None]], finish: Finish) -> None:
    plan = build.build_plan(Request(("table7",), "smoke"))
    path = baseline.path("smoke")
    run_id = baseline.load("smoke").cells[RANDOM].run_id
    path.write_text(path.read_text().replace(run_id, "knn_head-s0-0123456789"))
    for run in plan.runs.values():
        finish(run, 52.0, counts={"num_test_images": 1000})
    (table,) = check.check_tables(plan)
    kinds = {cell.interval_kind for row, _, cell in table.cells() if row.label == "Random trunk"}
    assert kinds == {"new seeds"}


def test_other_arithmetic_is_of_the_same_code(
    recorded: list[tuple[str, str | None]], finish: Finish, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = build.build_plan(Request(("table7",), "smoke", tuple(SEEDS)))
    others = [each for _, each in record_baseline.under_other_arithmetic(plan)]
    monkeypatch.setattr(revision, "run_code_fingerprint", lambda commit: commit)
    run = list(others[0].runs.values())[-1]
    finish(run, 52.0, provenance={"git_commit": "d" * 40, "git_dirty": False, "packages": {"torch": "2"}})
    with pytest.raises(UserError, match=r"results in results/smoke or \.cache/other-arithmetic were made by commits"):
        record_baseline.record(plan, others=others)


def test_gpus_and_clusters_have_no_other_arithmetic(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_baseline, "visible_gpus", list)
    plan = build.build_plan(Request(("table7",), "smoke"))
    assert record_baseline.under_other_arithmetic(plan)
    on_slurm = build.build_plan(Request(("table7",), "smoke", cluster="slurm"))
    assert not record_baseline.under_other_arithmetic(on_slurm)
    monkeypatch.setattr(record_baseline, "visible_gpus", lambda: ["0"])
    assert not record_baseline.under_other_arithmetic(plan)
