"""Rehearsals: what they change of a recipe, how they are run, and what becomes of one that fails."""

import json
import math
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from reproduce import rehearse
from reproduce.errors import UserError
from reproduce.harness import arithmetics, revision
from reproduce.harness.arithmetics import Setting
from reproduce.harness.execute import slurm
from reproduce.harness.preflight import record
from reproduce.harness.preflight import rehearsals as module
from reproduce.harness.preflight.rehearsals import NUM_FP64_STEPS, Rehearsal, rehearsals
from reproduce.harness.preflight.run import run_rehearsals
from reproduce.harness.spec import golden, tables
from reproduce.harness.spec.golden import Golden, GoldenFile
from reproduce.rehearsal import REHEARSALS_FILE, Request

NUM_IMAGES = 100
OPTIMIZER = {"lr": 1.0, "final_lr": 0.0, "warmup_epochs": 1, "warmup_start_lr": 0.5}


def schedule(name: str, **changes: Any) -> Rehearsal:
    """A rehearsal that takes no time: the rates of ten epochs of two steps."""
    config = {"optimizer": OPTIMIZER | changes, "epochs": 10, "batch_size": 50}
    config |= {"method": {"name": "supervised"}, "network": {"width": 0.25, "head_hidden_dim": None}}
    return Rehearsal(f"schedule_{name}", "schedule", config, NUM_IMAGES, recipes=[name])


@pytest.fixture(scope="module")
def of_swav() -> dict[str, Rehearsal]:
    names = [name for name in NUM_FP64_STEPS if name.startswith("swav")]
    return {each.name.removesuffix(".fp64"): each for each in rehearsals("smoke", "images", ("fp64",), only=names)}


@pytest.mark.parametrize("name", [name for name in NUM_FP64_STEPS if name.startswith("swav")])
def test_every_transition_happens_within_the_steps(of_swav: dict[str, Rehearsal], name: str) -> None:
    rehearsal = of_swav[name]
    cfg, method, num_steps = rehearsal.config, rehearsal.config["method"], rehearsal.num_steps
    per_epoch = NUM_IMAGES // cfg["batch_size"]
    assert per_epoch * cfg["epochs"] >= num_steps
    if num_steps == 12 and cfg["optimizer"]["warmup_epochs"]:
        assert 0 < cfg["optimizer"]["warmup_epochs"] * per_epoch < num_steps
    if method["train_prototypes"]:
        frozen = math.ceil(method["freeze_prototypes_epochs"] * NUM_IMAGES / cfg["batch_size"])
        assert 0 < frozen < num_steps
    if method["queue_length"]:
        first_use = method["queue_start_epochs"] * per_epoch + method["queue_length"] // cfg["batch_size"]
        assert first_use < num_steps
        assert method["queue_start_epochs"] == 0 or method["queue_start_epochs"] * per_epoch > 0


def test_rates_of_a_whole_pretraining() -> None:
    found = rehearse.rehearse(Request(**schedule("a").request()), Path())
    assert found["number of steps"] == [20]
    rates = found["learning rate"]
    assert len(rates) == rehearse.NUM_SCHEDULE_POINTS
    assert rates[0] == 0.5
    assert max(rates) == 1.0
    assert rates[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 17 / 18)))


def test_one_that_fails_says_why_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = {"paths": {"results": ""}, "cluster": {}, "scale": "smoke", "name": "random", "seed": 0}
    planned = [Rehearsal("random", "pretrain", trunk), schedule("bad", lr="fast"), schedule("good")]
    (tmp_path / REHEARSALS_FILE).write_text(json.dumps([each.request() for each in planned]))
    done = rehearse.rehearse
    monkeypatch.setattr(rehearse, "rehearse", lambda each, at: {} if each.name == "random" else done(each, at))
    rehearse.rehearse_all(tmp_path)
    bad, good = (json.loads((tmp_path / f"schedule_{name}.json").read_text()) for name in ("bad", "good"))
    assert "optimizer.lr" in bad["error"] and "values" not in bad
    assert good["values"]["number of steps"] == [20]


FAKE = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[-1])
for number, each in enumerate(json.loads((folder / "rehearsals.json").read_text())[1:]):
    if each["name"] == "schedule_last":
        sys.exit("error: the disk is full")
    (folder / f"{each['name']}.json").write_text(json.dumps({"values": {"loss": [number]}}))
"""


def test_results_are_handed_on_as_they_come(tmp_path: Path) -> None:
    (tmp_path / "fake.py").write_text(FAKE)
    planned = [schedule(name) for name in ("trunk", "a", "b")]
    seen: list[str] = []
    folder = tmp_path / "folder"
    python = [sys.executable, str(tmp_path / "fake.py")]
    found = run_rehearsals(planned, folder, 1, None, 1, python, lambda each, _: seen.append(each.name))
    assert sorted(seen) == sorted(found) == ["schedule_a", "schedule_b"]
    assert found["schedule_b"] == {"values": {"loss": [1]}}


def test_what_a_dead_process_leaves_has_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "fake.py").write_text(FAKE)
    planned = [schedule(name) for name in ("trunk", "a", "last")]
    python = [sys.executable, str(tmp_path / "fake.py")]
    found = run_rehearsals(planned, tmp_path / "folder", 1, None, 1, python)
    assert found["schedule_a"] == {"values": {"loss": [0]}}
    assert re.search(r"a process ended \(the disk is full; see .*log-0.txt\)", found["schedule_last"]["error"])


ENDLESS = """
import os, pathlib, signal, sys
folder = pathlib.Path(sys.argv[-1])
(folder / "pid").write_text(str(os.getpid()))
(folder / "schedule_a.json").write_text("{}")
signal.pause()
"""


def test_sigterm_leaves_no_process_behind(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text(ENDLESS)
    folder, planned = tmp_path / "folder", [schedule(name) for name in ("trunk", "a", "b")]
    python = [sys.executable, str(tmp_path / "endless.py")]
    with pytest.raises(KeyboardInterrupt):
        run_rehearsals(planned, folder, 1, None, 1, python, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(ProcessLookupError):
        os.kill(int((folder / "pid").read_text()), 0)


def test_a_job_of_independent_tasks() -> None:
    site = {
        "partition": "gpu", "account": "", "qos": "high", "constraint": "", "gres": "gpu:a100", "memory_gb": 64.0,
        "time_limit_hours": 0.5, "extra_args": "--reservation=june", "container_command": "",
    }  # fmt: skip
    cluster = {
        "slurm": site,
        "gpus_per_process": 1,
        "cores_per_gpu": 8,
        "num_processes": 1,
        "num_threads": 1,
        "image_python": "/app/python",
    }
    assert slurm.command_of_tasks(cluster, 2) == [
        *("srun", "--job-name=preflight", "--nodes=1", "--ntasks=2", "--kill-on-bad-exit=1", "--partition=gpu"),
        *("--qos=high", "--mem=64000M", "--time=30", "--cpus-per-task=8", "--gres=gpu:a100:2", "--reservation=june"),
        sys.executable,
    ]
    site["container_command"] = "apptainer exec image.sif"
    assert slurm.command_of_tasks(cluster, 1)[-4:] == ["apptainer", "exec", "image.sif", "/app/python"]


def test_equal_recipes_are_rehearsed_once() -> None:
    found = rehearsals("smoke", "images", ("fp64",), only=["simclr_100ep", "simclr_200ep", "swav_100ep"])
    (of_simclr,) = [each for each in found if "simclr_100ep" in each.recipes and each.kind == "pretrain"]
    assert of_simclr.recipes == ["simclr_100ep", "simclr_200ep"]
    assert {each.name for each in found if each.kind == "schedule"} == {
        "schedule_simclr_100ep", "schedule_simclr_200ep", "schedule_swav_100ep",
    }  # fmt: skip
    assert found[0].name == module.TRUNK


VALUES = {
    "indices": [1.0],
    "loss": [2.0],
    "movement of trunk matrices": [3.0],
    "state of queue": [4.0],
    "metric a": [5.0],
}


@pytest.mark.parametrize(
    ("rehearsal", "kept"),
    [
        ({}, set(VALUES)),
        ({"of_table": True}, {"indices", "loss", "movement of trunk matrices"}),
        ({"of_table": True, "trained_trunk": True}, {"indices"}),
        ({"of_table": True, "config": {"protocol": {"name": "coco_detr"}}}, {"indices"}),
    ],
)
def test_of_a_run_only_what_its_result_will_have_is_recorded(rehearsal: dict[str, Any], kept: set[str]) -> None:
    given = Rehearsal(**{"name": "a", "kind": "evaluate", "config": {}, **rehearsal})
    recorded = record._golden(given, VALUES, {name: [0.1] for name in VALUES})
    assert set(recorded.values) == set(recorded.tolerances) == kept


def test_a_recording_goes_on_unless_code_or_request_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(revision, "dirty", lambda: False)
    code = ["one"]
    monkeypatch.setattr(revision, "run_code_fingerprint", lambda _: code[0])
    done: list[int] = []

    def run(asked: list[Rehearsal], folder: Path, *_: Any) -> dict[str, Any]:
        folder.mkdir(parents=True, exist_ok=True)
        found = {each.name: {"values": {"loss": [len(done)]}} for each in asked[1:]}
        for name, content in found.items():
            (folder / f"{name}.json").write_text(json.dumps(content))
        done.append(len(asked))
        return found

    monkeypatch.setattr(record, "run_rehearsals", run)
    planned, setting = [schedule(name) for name in ("trunk", "a", "b")], Setting("native")
    first = record._run(planned, setting, "smoke", 1)
    assert record._run(planned, setting, "smoke", 1) == first
    assert done == [3]
    record._run([*planned, schedule("c")], setting, "smoke", 1)
    code[0] = "two"
    record._run([*planned, schedule("c")], setting, "smoke", 1)
    assert done == [3, 4, 4]


def test_earlier_entries_that_this_machine_agrees_with_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their tolerances know another machine's arithmetic; an entry with other numbers or overrides is replaced."""
    monkeypatch.setattr(tables, "TABLES_DIR", tmp_path)
    header = {"commit": "a", "date": "before", "hardware": "other", "settings": ["native"]}

    def entry(value: float, tolerance: float, *overrides: str) -> Golden:
        return Golden(["recipe"], [*overrides], {"loss": [value, 2]}, {"loss": [tolerance, None]})

    before = {
        "near": entry(1, 0.1),
        "far": entry(1, 0.1),
        "asked otherwise": entry(1, 0.1, "epochs=2"),
        "gone": entry(1, 1),
    }
    record.write(golden.path("smoke"), GoldenFile(header, before))
    now = {name: entry(1.2 if name == "far" else 1.05, 0.01) for name in ("near", "far", "asked otherwise", "new")}
    found = record._keep_matching_entries(GoldenFile({"hardware": "this"}, now), "smoke")
    assert found.rehearsals == now | {"near": before["near"]}
    assert found.recorded == {"hardware": "this", "earlier": [{**header, "entries_that_stand": 1}]}
    record.write(golden.path("smoke"), found)
    assert golden.load("smoke").rehearsals["near"] == before["near"]


@pytest.mark.parametrize(("scale", "at_once", "num_tried"), [("smoke", 4, 1), ("paper", 1, 0)])
def test_at_full_size_one_process_does_all_under_few_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: str, at_once: int, num_tried: int
) -> None:
    """Two of the largest at once do not fit the memory that one was made for."""
    started: list[int] = []

    def run(asked: list[Rehearsal], _folder: Path, num_processes: int, *_: Any) -> dict[str, Any]:
        started.append(num_processes)
        return {each.name: {"values": {"loss": [1.0]}, "packages": {}} for each in asked[1:]}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tables, "TABLES_DIR", tmp_path)
    monkeypatch.setattr(revision, "dirty", lambda: True)  # so that nothing is taken from an earlier recording
    monkeypatch.setattr(record, "run_rehearsals", run)
    monkeypatch.setattr(record, "generate_images", lambda _: "images")
    monkeypatch.setattr(record, "rehearsals", lambda *_: [schedule(name) for name in ("trunk", "a")])
    monkeypatch.setattr(record, "runs_of_tables", lambda _: [])
    monkeypatch.setattr(arithmetics, "possible", lambda _: [Setting("native")])
    recorded = golden.load(record.record(scale, 4, lambda _: None).stem).recorded
    assert set(started) == {at_once} and len(recorded["held_out"]) == num_tried


def test_only_what_is_not_recorded_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry whose overrides have changed is; one that nobody plans any more goes."""
    monkeypatch.setattr(tables, "TABLES_DIR", tmp_path)
    header = {"commit": "a", "date": "before", "hardware": "other", "settings": ["native"]}
    planned = [Rehearsal(name, "pretrain", {}, recipes=[name], overrides=["x=1"]) for name in ("trunk", "a", "b", "c")]

    def entry(each: Rehearsal, *overrides: str) -> Golden:
        return Golden(each.recipes, [*(overrides or each.overrides)], {"loss": [1]}, {"loss": [0.1]})

    _, a, b, c = planned
    assert record._unrecorded(planned, "smoke") == planned
    before = {"a": entry(a), "b": entry(b, "x=2"), "gone": entry(a)}
    record.write(golden.path("smoke"), GoldenFile(header, before))
    assert [each.name for each in record._unrecorded(planned, "smoke")] == ["trunk", "b", "c"]
    new = {"b": entry(b), "c": entry(c)}
    found = record._keep_matching_entries(GoldenFile({}, new), "smoke", {each.name for each in planned})
    assert found.rehearsals == {**new, "a": before["a"]}
    assert found.recorded["earlier"] == [{**header, "entries_that_stand": 1, "repeated": False, "held_out": {}}]
    record.write(golden.path("smoke"), GoldenFile(header, {**new, "a": before["a"]}))
    with pytest.raises(UserError, match="every rehearsal of scale smoke is recorded"):
        record._unrecorded(planned, "smoke")
