"""What a person sees while runs go on."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reproduce.harness.execute import workflow
from reproduce.harness.execute.progress import Progress, schedule
from reproduce.harness.execute.status_printer import StatusPrinter
from reproduce.harness.plan import build
from reproduce.harness.plan.durations import cores_in_words, expected_seconds, format_duration
from reproduce.harness.plan.model import Plan, Request, Run
from reproduce.harness.plan.run_state import run_states
from reproduce.harness.plan.workload import Workload


def run(name: str, parents: tuple[str, ...] = (), cores: int = 1) -> Run:
    nothing = Workload("", 0, 0, "", 0, {})
    return Run(name, "evaluate", name, 0, f"results/{name}", [], list(parents), cores, 1, "generated", nothing)


def event(run_id: str, what: str, time: float, attempt: int = 1, **more: object) -> dict[str, object]:
    return {"run_id": run_id, "event": what, "time": time, "attempt": attempt, **more}


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.4, "59 s"), (61, "1 min 01 s"), (3600, "1 h 00 min"), (26_490, "7 h 21 min")],
)
def test_format_duration(seconds: float, words: str) -> None:
    assert format_duration(seconds) == words


def test_one_core_is_no_plural() -> None:
    assert [cores_in_words(1), cores_in_words(2)] == ["1 core", "2 cores"]


def test_schedule_packs_cores_and_waits_for_parents() -> None:
    runs = [run("a", cores=2), run("b", ("a",)), run("c", ("a",)), run("d", ("a",))]
    seconds = {"a": 10.0, "b": 5.0, "c": 3.0, "d": 4.0}
    assert schedule(runs, seconds, 1, set()) == 22
    assert schedule(runs, seconds, 2, set()) == 17
    assert schedule(runs, seconds, 8, set()) == 15
    assert schedule(runs[1:], seconds, 8, set()) == 5  # their parent is done
    assert schedule([], {}, 2, set()) == 0
    assert schedule(runs, dict.fromkeys(seconds, 0.0), 1, set()) == 0


def test_seconds_left_start_from_records_and_follow_measured_times(smoke: Plan, finish: Callable[..., None]) -> None:
    expected = {"pretrain/swav_800ep": 100.0, "pretrain/random": 100.0, "evaluate/knn_head": 10.0}
    progress = Progress(smoke, 1, expected, run_states(smoke))
    at_first = progress.seconds_left(0.0)
    assert at_first is not None
    swav = next(each for each in smoke.runs.values() if each.name == "swav_800ep")
    assert progress.update(event(swav.run_id, "start", 0.0)) == "start   swav_800ep, seed 0"
    assert progress.seconds_left(50.0) == pytest.approx(at_first - 50)
    finish(swav)
    assert (
        progress.update(event(swav.run_id, "end", 200.0, exit_status=0))
        == "done    swav_800ep, seed 0: no metrics (3 min 20 s)"
    )
    assert progress.seconds_left(200.0) == pytest.approx(2 * (at_first - 100))  # this machine takes twice as long
    assert progress.status(200.0).startswith("1/14 done | about ")


def test_seconds_left_of_a_running_training_follow_its_steps(smoke: Plan) -> None:
    swav = next(each for each in smoke.runs.values() if each.name == "swav_800ep")
    alone = replace(smoke, runs={swav.run_id: swav})
    progress = Progress(alone, 2, {}, run_states(alone))
    assert progress.seconds_left(0.0) is None
    assert progress.status(0.0) == "0/1 done"
    metrics = swav.result.with_name("metrics.jsonl")
    metrics.parent.mkdir(parents=True)
    metrics.write_text(json.dumps({"step": 100, "num_steps": 400}) + "\n")
    progress.update(event(swav.run_id, "start", 0.0))  # it goes on from step 100
    with open(metrics, "a") as file:
        file.write(json.dumps({"step": 200, "num_steps": 400}) + '\n{"step": 3')
    assert progress.seconds_left(60.0) == pytest.approx(120)
    assert progress.status(60.0) == "0/1 done | swav_800ep, seed 0 (step 200/400) | about 2 min 00 s to go"


def test_a_run_of_unknown_time_makes_the_time_left_a_least_one(smoke: Plan) -> None:
    swav = next(each for each in smoke.runs.values() if each.name == "swav_800ep")
    knn = next(each for each in smoke.runs.values() if each.name == "knn_head" and swav.run_id in each.parents)
    both = replace(smoke, runs={each.run_id: each for each in (swav, knn)})
    progress = Progress(both, 2, {"pretrain/swav_800ep": 100.0}, run_states(both))
    assert progress.seconds_left(0.0) is None
    assert progress.status(0.0) == "0/2 done | at least 1 min 40 s to go"


def test_recorded_times_are_not_those_of_other_images(checkout: Path) -> None:
    other = build.build_plan(Request(("table7",), "smoke", data="mine", data_config="cifar10"))
    assert expected_seconds(other, {"pretrain/swav_800ep": 367.0}) == {}
    own = build.build_plan(Request(("table7",), "smoke"))
    assert expected_seconds(own, {"pretrain/swav_800ep": 367.0}) == {"pretrain/swav_800ep": 367.0}


def test_a_failure_prints_its_message_and_its_log(smoke: Plan) -> None:
    progress = Progress(smoke, 2, {}, run_states(smoke))
    swav = next(each for each in smoke.runs.values() if each.name == "swav_800ep")
    progress.update(event(swav.run_id, "start", 0.0))
    swav.failure.parent.mkdir(parents=True)
    swav.failure.write_text(json.dumps({"status": "collapsed", "exit_status": 1, "message": "loss stuck at ln K"}))
    said = progress.update(event(swav.run_id, "end", 9.0, exit_status=1))
    assert said == f"collapsed swav_800ep, seed 0: loss stuck at ln K\n        log: {swav.log}"
    assert len(progress.remaining_runs()) == 7  # what builds on it cannot be done
    assert "1 failed" in progress.status(9.0)


def test_expected_seconds_prefer_finished_runs_to_records(smoke: Plan, finish: Callable[..., None]) -> None:
    knn = [each for each in smoke.runs.values() if each.name == "knn_head"]
    for seconds, each in zip((6.0, 8.0), knn, strict=True):
        finish(each, wall_seconds=seconds)
    expected = expected_seconds(smoke, {"evaluate/knn_head": 99.0, "pretrain/random": 1.0})
    assert (expected["evaluate/knn_head"], expected["pretrain/random"]) == (7.0, 1.0)
    progress = Progress(smoke, 2, expected, run_states(smoke))
    assert [progress.expected_seconds(each) for each in knn] == [6.0, 8.0]  # each network has its own time


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_one_status_line() -> None:
    screen = StatusPrinter(Terminal())
    screen.status("1/3 done")
    screen.status("2/3 done")
    screen.line("done knn")
    screen.close()
    assert screen.out.getvalue() == "1/3 done\r\x1b[2K2/3 done\r\x1b[2Kdone knn\n"  # type: ignore[attr-defined]


def test_a_pipe_has_plain_lines_only() -> None:
    screen = StatusPrinter(io.StringIO())
    screen.status("1/3 done")
    screen.line("done knn")
    screen._at -= 60
    screen.status("2/3 done")
    screen.status("2/3 done")
    assert screen.out.getvalue() == "done knn\n2/3 done\n"  # type: ignore[attr-defined]


def test_a_line_that_is_torn_or_only_begun_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs on several nodes append to one file of a network file system."""
    seen: list[str] = []
    progress: Any = SimpleNamespace(update=lambda event: seen.append(event["run_id"]))
    path = tmp_path / "events.jsonl"
    path.write_text('{"run_id": "a"}\n{"run_{"run_id": "b"}\n{"run_id": "c"}\n{"run_id"')
    with open(path) as new_events:
        workflow._print_events(new_events, progress, StatusPrinter(io.StringIO()))
        assert seen == ["a", "c"]
        path.write_text(path.read_text() + ': "d"}\n')
        workflow._print_events(new_events, progress, StatusPrinter(io.StringIO()))
    assert seen == ["a", "c", "d"]
