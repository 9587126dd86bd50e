"""The time of a result is that of its own attempts, not that of a result before it."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reproduce.data.datasets.voc import read_voc_labels
from reproduce.engine.runs import attempts as attempts_module
from reproduce.engine.runs.attempts import Attempts
from reproduce.engine.runs.run import run_context
from reproduce.files import read_json, write_json
from tests.runs import evaluation_of_bytes

CODE = {"git_commit": "c" * 40, "git_dirty": False, "code_sha256": "d" * 64}


class Clock:
    """A clock that a test sets, for what the attempts record and for the times of the files that they write."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000_000.0
        monkeypatch.setattr(attempts_module, "time", SimpleNamespace(time=lambda: self.now))
        monkeypatch.setattr(attempts_module, "write_json", self._write_json)

    def _write_json(self, file: Path, content: Any) -> None:
        write_json(file, content)
        os.utime(file, (self.now, self.now))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def begun(folder: Path) -> Attempts:
    attempts = Attempts(folder)
    attempts.begin(CODE)
    return attempts


def test_a_result_that_replaces_another_begins_to_count_anew(tmp_path: Path, clock: Clock) -> None:
    first = begun(tmp_path)
    clock.now += 100
    first.end_with_result(CODE)
    clock.now += 1000  # nobody computes
    begun(tmp_path)  # killed before it knew that it can't resume
    clock.now += 7
    second = begun(tmp_path)
    assert second.number == 3 and second.totals(clock.now + 5) == (105, 105)
    second.start_over(CODE)
    assert second.number == 1 and second.first_started == first.first_started + 1107
    assert second.totals(clock.now + 5) == (5, 5)

    clock.now += 50
    (tmp_path / "metrics.jsonl").touch()
    os.utime(tmp_path / "metrics.jsonl", (clock.now, clock.now))  # the last that it wrote
    clock.now += 1000
    third = begun(tmp_path)  # killed before its first checkpoint: its time counts
    third.start_over(CODE)
    assert third.number == 2 and third.totals(clock.now + 5) == (55, 55)


def test_a_finished_training_that_is_resumed_adds_up(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its result was deleted, its checkpoint was not. First it ran on four devices, then on two."""
    monkeypatch.setattr(attempts_module, "world_size", lambda: 4)
    first = begun(tmp_path)
    clock.now += 100
    first.end_with_result(CODE)
    clock.now += 1000
    monkeypatch.setattr(attempts_module, "world_size", lambda: 2)
    again = begun(tmp_path)
    assert again.number == 2 and again.totals(clock.now + 10) == (110, 420)


def test_attempts_of_earlier_versions_ended_if_there_is_a_result(tmp_path: Path) -> None:
    begun(tmp_path)
    record = read_json(tmp_path / "attempts.json")
    del record["result_written"]
    write_json(tmp_path / "attempts.json", record)
    write_json(tmp_path / "result.json", {})
    again = begun(tmp_path)
    again.start_over(CODE)
    assert again.number == 1


@pytest.mark.parametrize("change", ["checkpoint", "images", "nothing"])
def test_evaluations_of_another_checkpoint_or_other_images_count_anew(
    own_data: Path, tmp_path: Path, change: str
) -> None:
    """VOC's SVMs never tell from which step they go on."""
    cfg = evaluation_of_bytes("voc07_svm", own_data, tmp_path)

    def result(trunk: str) -> Any:
        with run_context(cfg) as run:
            run.discard_checkpoints_of_other_trunk(trunk)
            for split in (run.dataset.train, run.dataset.val):
                run.record_split(split, read_voc_labels(run.dataset_root, run.dataset, split)[0])
            run.finish({"map": 50.0})
        return read_json(run.folder / "result.json")

    assert result("a")["num_attempts"] == 1
    if change == "images":
        image = min(own_data.glob("VOCdevkit/VOC2007/JPEGImages/*.jpg"))
        image.write_bytes(image.read_bytes() + b"\0")
        assert result("b" if change == "checkpoint" else "a")["num_attempts"] == (2 if change == "nothing" else 1)
