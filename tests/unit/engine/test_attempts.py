"""The time of a result is that of its own attempts, not that of a result before it."""

from pathlib import Path
from typing import Any

import pytest

from reproduce.data.datasets.voc import read_voc_labels
from reproduce.engine.runs.attempts import Attempts
from reproduce.engine.runs.run import run_context
from reproduce.files import read_json, write_json
from tests.runs import evaluation_of_bytes

CODE = {"git_commit": "c" * 40, "git_dirty": False, "code_sha256": "d" * 64}


def begun(folder: Path) -> Attempts:
    attempts = Attempts(folder)
    attempts.begin(CODE)
    return attempts


def aged(folder: Path, seconds: float) -> None:
    """Let the last attempt have begun so long ago."""
    record = read_json(folder / "attempts.json")
    earlier = {key: record[key] - seconds for key in ("started", "first_started")}
    write_json(folder / "attempts.json", {**record, **earlier})


def wall_seconds(attempts: Attempts) -> float:
    return attempts.totals(read_json(attempts.file)["started"])[0]


def test_a_result_that_replaces_another_begins_to_count_anew(tmp_path: Path) -> None:
    first = begun(tmp_path)
    first.end_with_result(CODE)
    aged(tmp_path, 100)
    begun(tmp_path)  # killed before it knew that it can't resume
    second = begun(tmp_path)
    assert second.number == 3 and wall_seconds(second) == pytest.approx(100, abs=30)
    second.start_over(CODE)
    assert second.number == 1 and second.first_started > first.first_started and wall_seconds(second) == 0

    aged(tmp_path, 50)
    third = begun(tmp_path)  # killed before its first checkpoint: its time counts
    third.start_over(CODE)
    assert third.number == 2 and wall_seconds(third) == pytest.approx(50, abs=30)


def test_a_finished_training_that_is_resumed_adds_up(tmp_path: Path) -> None:
    """Its result was deleted, its checkpoint was not."""
    begun(tmp_path).end_with_result(CODE)
    aged(tmp_path, 100)
    again = begun(tmp_path)
    assert again.number == 2 and wall_seconds(again) == pytest.approx(100, abs=30)


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
