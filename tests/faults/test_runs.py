"""Runs that are killed, shared, fed broken files or refused."""

import errno
import io
import json
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from models.methods.base import Method, PretrainTask
from reproduce import evaluate, pretrain
from reproduce.engine import checkpoint
from reproduce.engine.loop import StepLogger, Trainer
from reproduce.engine.nan_guard import FiniteGuard
from reproduce.engine.precision import loss_scaler
from reproduce.engine.preemption import INTERRUPTED
from reproduce.engine.runs.attempts import Attempts
from reproduce.engine.runs.metrics_log import MetricsLog
from reproduce.errors import REQUEUE, TrainingFailed, UserError
from reproduce.files import read_json, write_json
from tests.networks import LinearNet
from tests.runs import (
    TINY,
    Killed,
    Uninterrupted,
    assert_same_training,
    call,
    killed_after,
    losses,
    run,
    start,
    start_anew,
)

QUEUE = ("method.queue_length=10", "method.queue_start_epochs=1")
NUM_STEPS = 24


def test_resumed_equals_uninterrupted_to_the_bit(
    data: Path, uninterrupted: Uninterrupted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed within each of the three epochs; the queue starts with the second."""
    common = (*TINY, *QUEUE, "experiment=swav_800ep", f"paths.data_root={data}", "checkpointing.save_every_seconds=0")
    whole = uninterrupted(pretrain.main, *common)
    for step in (1, 3, 5):
        with killed_after(step):
            call(pretrain.main, monkeypatch, *common, f"paths.results={tmp_path}")
    assert call(pretrain.main, monkeypatch, *common, f"paths.results={tmp_path}")[0] == 0
    assert_same_training(tmp_path, whole, num_steps=6)


@pytest.fixture
def saving_often(data: Path) -> tuple[str, ...]:
    """Overrides of a run that saves after each of its steps."""
    return (
        *TINY, *QUEUE, "experiment=swav_800ep", f"paths.data_root={data}", f"epochs={NUM_STEPS // 2}",
        "checkpointing.save_every_seconds=0",
    )  # fmt: skip


def test_sigterm_saves_and_exits_for_requeue(
    saving_often: tuple[str, ...],
    uninterrupted: Uninterrupted,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With an interpreter of its own, as users start it."""
    arguments = (*saving_often, "checkpointing.save_every_seconds=300", f"paths.results={tmp_path}")
    stopped = start_anew("reproduce.pretrain", *arguments)
    assert stopped.stdout is not None
    while not stopped.stdout.readline().startswith("step 2/"):
        assert stopped.poll() is None
    stopped.send_signal(signal.SIGTERM)
    _, said = stopped.communicate(timeout=60)
    assert stopped.returncode == REQUEUE
    assert "stop requested; saved after step" in said
    assert not list(tmp_path.glob("smoke/*/failure.json"))
    (kept,) = tmp_path.glob("smoke/*/checkpoint-*.pt")
    assert 2 <= checkpoint.load(kept)["step"] < NUM_STEPS

    assert call(pretrain.main, monkeypatch, *arguments)[0] == 0
    assert "resuming from step" in capsys.readouterr().out
    assert_same_training(tmp_path, uninterrupted(pretrain.main, *saving_often), NUM_STEPS)
    (result,) = tmp_path.glob("smoke/*/result.json")
    assert read_json(result)["num_attempts"] == 2


def test_ctrl_c_saves_and_resumes(
    saving_often: tuple[str, ...],
    uninterrupted: Uninterrupted,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As a terminal sends it: to the run and its data-loader workers. A direct run lost up to an epoch."""
    arguments = (
        *saving_often, "checkpointing.save_every_seconds=300", "cluster.num_workers=1", f"paths.results={tmp_path}",
    )  # fmt: skip
    stopped = start("reproduce.pretrain", *arguments)
    while not stopped.stdout.readline().startswith("step 2/"):
        assert stopped.returncode is None
    os.killpg(stopped.pid, signal.SIGINT)
    _, said = stopped.communicate(timeout=60)
    assert stopped.returncode == REQUEUE, said
    first, second = said.splitlines()
    assert f"{first}\n" == INTERRUPTED.decode()
    assert second.startswith("stop requested; saved after step")

    assert call(pretrain.main, monkeypatch, *arguments)[0] == 0
    assert "resuming from step" in capsys.readouterr().out
    assert_same_training(tmp_path, uninterrupted(pretrain.main, *saving_often), NUM_STEPS)


@pytest.mark.parametrize("num_kills", [8, pytest.param(50, marks=pytest.mark.campaign)])
def test_killed_many_times_equals_uninterrupted_to_the_bit(
    saving_often: tuple[str, ...], uninterrupted: Uninterrupted, tmp_path: Path, num_kills: int
) -> None:
    asked = ["0", str(num_kills), str(NUM_STEPS), *saving_often, f"paths.results={tmp_path}"]
    done = run("tests.faults.campaign", *asked)
    assert done.returncode == 0, done.stdout + done.stderr
    kills = [line for line in done.stdout.splitlines() if line.startswith("killed ")]
    assert len(kills) == num_kills
    assert sum(" .checkpoint" in line for line in kills) >= num_kills // 2  # every second kill cut off a save
    assert len({line.split()[1] for line in kills}) > min(num_kills // 2, 10)  # at many different steps
    assert_same_training(tmp_path, uninterrupted(pretrain.main, *saving_often), NUM_STEPS)
    (result,) = tmp_path.glob("smoke/*/result.json")
    assert read_json(result)["num_attempts"] == num_kills + 1
    left = {path.name for path in result.parent.iterdir()}
    files = {
        ".lock",
        "attempts.json",
        "checkpoint.pt",
        "config.yaml",
        "metrics.jsonl",
        "result.json",
        "thresholds.json",
    }
    assert left == {*files, "pictures"}
    assert {path.name for path in (result.parent / "pictures").iterdir()} == {"crops.jpg", "crops.json"}


def test_killed_data_loader_worker_is_named(
    saving_often: tuple[str, ...], uninterrupted: Uninterrupted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (*saving_often, "cluster.num_workers=1", f"paths.results={tmp_path}")
    process = start("reproduce.pretrain", *arguments)
    while not process.stdout.readline().startswith("step 2/"):
        assert process.returncode is None
    (worker,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(worker), signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.startswith("error: a data-loader worker died (")
    assert "the same command resumes from the last checkpoint" in said
    assert said.count("\n") == 1
    (failure,) = tmp_path.glob("smoke/*/failure.json")
    assert read_json(failure)["message"] == said.removeprefix("error: ").rstrip()

    again = run("reproduce.pretrain", *arguments)
    assert again.returncode == 0, again.stderr
    assert "resuming from step" in again.stdout
    assert_same_training(tmp_path, uninterrupted(pretrain.main, *saving_often), NUM_STEPS)


def test_full_disk_while_saving_then_resume(
    saving_often: tuple[str, ...], uninterrupted: Uninterrupted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (*saving_often, f"paths.results={tmp_path}")

    def on_the_full_device(dir: Path, prefix: str) -> tuple[int, str]:
        return os.open("/dev/full", os.O_WRONLY), f"{dir}/{prefix}"

    original = MetricsLog.log

    def log(self: MetricsLog, step: int, num_steps: int, **metrics: float) -> None:
        original(self, step, num_steps, **metrics)
        if step == NUM_STEPS // 2:
            patch.setattr(tempfile, "mkstemp", on_the_full_device)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "log", log)
        status, said = call(pretrain.main, patch, *arguments)
    assert status == 2
    assert said.startswith("error: could not write ") and said.count("\n") == 1
    assert "the disk is full; free some space there, and run the same command again" in said
    (folder,) = tmp_path.glob("smoke/swav_*")
    kept = sorted(folder.glob("checkpoint-*.pt"))
    assert len(kept) == checkpoint.NUM_KEPT
    assert all(checkpoint.load(path)["step"] == int(path.stem.split("-")[1]) for path in kept)

    assert call(pretrain.main, monkeypatch, *arguments)[0] == 0
    assert_same_training(tmp_path, uninterrupted(pretrain.main, *saving_often), NUM_STEPS)


def test_wall_time_sums_all_attempts(tmp_path: Path) -> None:
    first = Attempts(tmp_path)
    first.begin()
    metrics = tmp_path / "metrics.jsonl"
    metrics.touch()
    begun = first.first_started
    os.utime(metrics, (begun + 100, begun + 100))  # killed then; nobody knows for how long it lay
    second = Attempts(tmp_path)
    second.begin()
    assert (second.number, second.first_started) == (2, begun)
    now = begun + 1000
    wall_seconds, device_seconds = second.totals(now)
    assert wall_seconds == pytest.approx(device_seconds) == pytest.approx(100 + now - read_json(second.file)["started"])


class Counter:
    """A part whose whole state is a number."""

    def __init__(self) -> None:
        self.value = torch.zeros(1)

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


def saved_checkpoints(folder: Path, steps: int) -> None:
    part = Counter()
    checkpoints = checkpoint.CheckpointManager(folder / "checkpoint.pt", {"counter": part}, save_every_seconds=0)
    for step in range(1, steps + 1):
        part.value += 1
        checkpoints.save(step)
        part.value += 100  # what comes after a save must not reach it
        checkpoints.wait()
        part.value -= 100
    checkpoints.wait()


def test_damaged_newest_checkpoint_falls_back_to_the_previous(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved_checkpoints(tmp_path, steps=4)
    kept = sorted(path.name for path in tmp_path.glob("*.pt"))
    assert kept == ["checkpoint-00000003.pt", "checkpoint-00000004.pt"]
    newest = tmp_path / kept[1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)

    part = Counter()
    step = checkpoint.CheckpointManager(tmp_path / "checkpoint.pt", {"counter": part}, save_every_seconds=0).resume()
    assert (step, part.value.item()) == (3, 3.0)
    assert f"{newest} is damaged; using the previous one" in capsys.readouterr().err
    assert [path.name for path in tmp_path.glob("*.pt")] == ["checkpoint-00000003.pt"]  # it is not one of two kept


class NeverAsked:
    def state_dict(self) -> dict[str, Any]:
        raise AssertionError

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: ARG002
        raise AssertionError


def test_a_disk_without_room_is_noticed_before_the_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The room runs out, comes back and runs out again. No state is asked for: a method's is a collective."""
    (tmp_path / "checkpoint-00000001.pt").write_bytes(b"x" * 120)
    free = iter([120, 119, 100, 5000, 0])
    now = [0.0]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=next(free)))
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    manager = checkpoint.CheckpointManager(tmp_path / "checkpoint.pt", {"network": NeverAsked()}, 600.0)
    manager.save_if_due(1)  # too early to look
    said = []
    for step in range(2, 7):
        now[0] += checkpoint.ROOM_CHECK_SECONDS
        manager.save_if_due(step)
        said.append(capsys.readouterr().err)
    assert [bool(each) for each in said] == [False, True, False, False, True]
    assert f"warning: {tmp_path} has 0.0 GB free" in said[1] and "within 10 minutes" in said[1]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-00000001.pt"]


def test_saves_are_as_far_apart_as_the_config_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, saved = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    manager = checkpoint.CheckpointManager(tmp_path / "checkpoint.pt", {}, save_every_seconds=100)
    monkeypatch.setattr(manager, "_write", lambda step, _: saved.append(step))
    for step in range(1, 11):
        now[0] += 40
        manager.save_if_due(step)
    manager.wait()
    assert saved == [3, 6, 9]


def test_ranks_agree_on_a_save_only_when_they_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each agreement waits for the device, so several ranks have one every `sync_every_steps` steps."""
    asked, step = [], 0

    def agree(flag: bool) -> bool:
        asked.append((step, flag))
        return False

    monkeypatch.setattr(checkpoint, "world_size", lambda: 2)
    manager = checkpoint.CheckpointManager(tmp_path / "checkpoint.pt", {}, save_every_seconds=0, sync_every_steps=4)
    monkeypatch.setattr(checkpoint, "any_rank", agree)
    for step in range(1, 10):
        manager.save_if_due(step)
    assert asked == [(4, True), (8, True)]


def test_all_checkpoints_damaged_is_an_error_and_deletes_none(tmp_path: Path) -> None:
    saved_checkpoints(tmp_path, steps=2)
    for path in tmp_path.glob("*.pt"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="are damaged; delete them to start"):
        checkpoint.CheckpointManager(tmp_path / "checkpoint.pt", {"counter": Counter()}, save_every_seconds=0).resume()
    assert len(list(tmp_path.glob("*.pt"))) == 2


@pytest.mark.parametrize("renames", range(1, 7))
def test_interrupted_save_keeps_the_older_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int) -> None:
    rename, done = os.replace, []

    def rename_and_be_killed(source: Any, target: Any) -> None:
        rename(source, target)
        done.append(target)
        if len(done) == renames:
            raise Killed

    monkeypatch.setattr(os, "replace", rename_and_be_killed)
    with pytest.raises(Killed):
        saved_checkpoints(tmp_path, steps=3)
    whole = len(list(tmp_path.glob("*.pt")))
    part = Counter()
    step = checkpoint.CheckpointManager(tmp_path / "checkpoint.pt", {"counter": part}, save_every_seconds=0).resume()
    assert step == part.value.item() == renames // 2  # two renames a save: its SHA-256, then itself
    assert len(list(tmp_path.glob("*.pt"))) == whole


def test_finish_leaves_one_checkpoint(tmp_path: Path) -> None:
    part = Counter()
    checkpoints = checkpoint.CheckpointManager(tmp_path / "checkpoint.pt", {"counter": part}, save_every_seconds=0)
    for step in range(1, 4):
        checkpoints.save_if_due(step)
    part.value += 7
    checkpoints.finish(4)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert checkpoint.load(tmp_path / "checkpoint.pt") == {"step": 4, "counter": {"value": torch.tensor([7.0])}}


def test_nonfinite_weights_are_not_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved_checkpoints(tmp_path, steps=2)
    part = Counter()
    part.value += float("nan")
    checkpoints = checkpoint.CheckpointManager(
        tmp_path / "checkpoint.pt", {"counter": part}, save_every_seconds=0, nonfinite_remedy="lower protocol.lr_head"
    )
    checkpoints.save(3)
    with pytest.raises(TrainingFailed, match=r"after the last step, 4, are not finite: lower protocol\.lr_head$"):
        checkpoints.finish(4)
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["checkpoint-00000001.pt", "checkpoint-00000002.pt"]
    assert "the state after step 3 is not finite; not saved" in capsys.readouterr().err


def test_two_processes_have_the_losses_of_one(data: Path, tmp_path: Path) -> None:
    still = ("optimizer.lr=0", "optimizer.warmup_start_lr=0", "optimizer.final_lr=0")
    common = (*TINY, *still, "experiment=swav_800ep", f"paths.data_root={data}", "method.queue_length=20")
    for processes in (1, 2):
        done = run("reproduce.pretrain", *common, f"paths.results={tmp_path / str(processes)}", processes=processes)
        assert done.returncode == 0, done.stderr
    alone, shared = (losses(tmp_path / name) for name in ("1", "2"))
    # Pictures, crops, BatchNorm and assignments, over epochs. Nothing learns here: a small, untrained R50 makes
    # gradients of single-precision rounding. That steps agree is shown in double precision, in
    # tests/unit/engine/test_distributed.py.
    assert shared == pytest.approx(alone, rel=1e-4)
    assert len(set(alone)) == 6


def test_unreadable_image_stops_the_run_or_is_counted(
    own_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = sorted((own_data / "imagenet" / "train").glob("*/*.jpg"))[3]
    broken.write_bytes(broken.read_bytes()[:300])
    common = (*TINY, "experiment=swav_800ep", f"paths.data_root={own_data}", f"paths.results={tmp_path / 'results'}")

    status, said = call(pretrain.main, monkeypatch, *common)
    assert status == 2
    assert str(broken) in said
    assert "Traceback" not in said
    (failure,) = (tmp_path / "results").glob("smoke/*/failure.json")
    assert str(broken) in read_json(failure)["message"]

    status, said = call(pretrain.main, monkeypatch, *common, "on_bad_image=skip")
    assert status == 0
    (result,) = (tmp_path / "results").glob("smoke/*/result.json")
    assert read_json(result)["counts"]["num_skipped_images"] == 1


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["experiment=swav_80ep"], "did you mean 'swav_800ep' or"),
        (["scale=smok"], "did you mean 'smoke'?"),
        (["optimizer.learning_rate=1"], "there is no config key 'optimizer.learning_rate'"),
        (["method.epsilonn=1"], "did you mean 'method.epsilon'"),
        (["seed"], "'seed' sets no key: write KEY=VALUE"),
        (["=3"], "'=3' sets no key"),
        (["seed=[1"], "seed=[1': no viable alternative"),
        (["name='mine; touch x'"], "config name='mine; touch x': use letters, digits and any of _ . + - only"),
        (["name=../mine"], "config name='../mine': use letters, digits and any of _ . + - only"),
        (["epochs=-1"], "config epochs=-1: it must be 1 or more"),
        (["batch_size=0"], "config batch_size=0: it must be 1 or more"),
        (["seed=-1"], "config seed=-1: it must be 0 or more"),
        (["method.queue_length=-8"], "config method.queue_length=-8: it must be 0 or more"),
        (["network.width=0"], "config network.width=0.0: it must be 0.015625 or more"),
        (["network.width=nan"], "config network.width=nan: it must be 0.015625 or more"),
        (["on_bad_image=Stop"], "there is no on_bad_image 'Stop': did you mean 'stop'"),
        (["crops.views=[]"], "config crops.views=[]: there must be at least one view"),
        (["crops.augment.color_jitter=[0.1]"], "config crops.augment.color_jitter=[0.1]: it must have 4 values"),
        (["epochs=many"], "could not be converted to Integer (at epochs)"),
        (["method.temperature=warm"], "config method.temperature"),
        (["precision=fp8"], "did you mean"),
        (["+optimizer.accumulation_steps=16"], "gradient accumulation is not offered"),
        (["cluster.sync_batchnorm=apx"], "did you mean 'apex'"),
        (["cluster.sync_batchnorm=apex"], "cluster.sync_batchnorm=apex needs GPUs"),
        (["cluster.compile_backend=inductr"], "did you mean 'inductor'"),
        (["network.batchnorm_group_size=3"], "BatchNorm over 3 images can't be had with 1 processes"),
        (["paths.data_root=/nowhere"], "DATA folder /nowhere does not exist"),
        (["paths.data_root=.", "data=cifar10"], "cifar10 is missing"),
        (["batch_size=4000"], "fewer than one batch of 4000"),
    ],
)
def test_wrong_overrides_are_a_one_line_error(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], sentence: str
) -> None:
    asked = [*TINY, f"paths.data_root={data}", f"paths.results={tmp_path}", *overrides]
    names = {item.split("=")[0] for item in overrides}
    asked = [item for item in asked if item in overrides or item.split("=")[0] not in names]
    status, said = call(pretrain.main, monkeypatch, *asked)
    assert status == 2
    assert sentence in said
    assert said.count("\n") == 1


def test_missing_voc_folder_is_named(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "VOCdevkit" / "VOC2007" / "JPEGImages").mkdir(parents=True)
    status, said = call(
        evaluate.main, monkeypatch, "eval=voc07_svm", "checkpoint=x.pt", f"paths.data_root={tmp_path}",
        f"paths.results={tmp_path / 'results'}", "logging.wandb=false",
    )  # fmt: skip
    assert status == 2
    assert f"folder {tmp_path}/VOCdevkit/VOC2007/Annotations is missing" in said


def test_full_disk_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path / "checkpoint.pt", {"step": 1})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"checkpoint\.pt: the disk is full"):
        checkpoint.save(tmp_path / "checkpoint.pt", {"step": 2})
    assert checkpoint.load(tmp_path / "checkpoint.pt") == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_full_disk_inside_torch_save_is_an_os_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            if self.tell() > 2000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    monkeypatch.setattr(checkpoint, "write_atomic_with", lambda _, write: write(Full()))
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path / "checkpoint.pt", {"weights": torch.zeros(10_000)})


def test_truncated_json_is_named(tmp_path: Path) -> None:
    write_json(tmp_path / "result.json", {"metrics": {"top1": 1.0}})
    text = (tmp_path / "result.json").read_text()
    (tmp_path / "result.json").write_text(text[:20])
    with pytest.raises(UserError, match=r"result\.json is cut short or damaged"):
        read_json(tmp_path / "result.json")


def test_a_locked_run_folder_is_refused(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = (*TINY, "experiment=random", f"paths.data_root={data}", f"paths.results={tmp_path}")
    said = []
    original = pretrain.save_initial_weights

    def start_another(*work: Any) -> None:
        monkeypatch.setattr(pretrain, "save_initial_weights", original)
        said.append(call(pretrain.main, monkeypatch, *common))
        original(*work)

    monkeypatch.setattr(pretrain, "save_initial_weights", start_another)
    assert call(pretrain.main, monkeypatch, *common)[0] == 0
    ((status, sentence),) = said
    assert status == 2
    assert f"is already running here (process {os.getpid()}" in sentence


def test_nonfinite_loss_stops_the_trainer_and_dumps_its_tensors(tmp_path: Path) -> None:
    class Diverges(Method):
        def loss(self, embeddings, _scores, _num_crops, step):  # type: ignore[no-untyped-def]
            return embeddings.sum() * float("nan" if step == 2 else 1), {"unit_length_error": torch.zeros(())}

    net = LinearNet(2, 2)
    trainer = Trainer(
        task=PretrainTask(net, Diverges(None, net, 1, 1), "fp32"),
        optimizer=torch.optim.SGD(net.parameters(), 0.1),
        learning_rates=lambda _: [0.1],
        scaler=loss_scaler("fp32"),
        guard=FiniteGuard(lambda made: checkpoint.save(tmp_path / "scores.pt", made)),
        logger=StepLogger(print, log_every=20, batch_size=1),
    )
    with pytest.raises(TrainingFailed, match=r"the loss is nan at step 3: .*its tensors are in .*scores\.pt"):
        trainer.train([([torch.ones(1, 2)], torch.zeros(1))] * 20, first_step=0, num_steps=20)
    kept = checkpoint.load(tmp_path / "scores.pt")
    assert kept["step"] == 3
    assert kept["embeddings"].shape == (1, 2)


def test_every_evaluation_runs_on_a_checkpoint(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = (f"paths.data_root={data}", f"paths.results={tmp_path}", "logging.wandb=false", "cluster.num_workers=0")
    assert call(pretrain.main, monkeypatch, *TINY, "experiment=random", f"paths.results={tmp_path}")[0] == 0
    (made,) = tmp_path.glob("smoke/random-*/checkpoint.pt")
    expected = {
        "knn": {"knn20", "knn200"},
        "knn_head": {"knn20", "knn200"},
        "voc07_svm": {"map"},
    }
    trained = [f"linear_{data}" for data in ("places205", "inat18", "imagenet")]
    trained += ["semisup_1pct", "semisup_10pct", "lowshot_13", "lowshot_128"]
    expected |= {name: {"top1", "top5", "top1_best", "top5_best"} for name in trained}
    from reproduce.config.compose import group_options

    # run by test_trained_evaluations, test_voc_detection and, its variants, test_identity
    variants = {f"voc_detection_{each}" for each in ("moco", "bownet", "pirl", "supervised")}
    detectors = {"coco_detr", "voc_detection"} | variants
    public_only = {"own_classifier"}  # test_own_classifier
    assert set(group_options("eval")) == set(expected) | detectors | public_only
    for name, metrics in expected.items():
        few = ["protocol.epochs=1", "protocol.batch_size=8"] if name in trained else []
        few += ["protocol.subset.images_per_class=2"] if name.startswith("lowshot") else []
        status, said = call(evaluate.main, monkeypatch, f"eval={name}", f"checkpoint={made.parent.name}", *few, *common)
        assert status == 0, said
        (path,) = tmp_path.glob(f"smoke/{name}-*/result.json")
        result = json.loads(path.read_text())
        assert set(result["metrics"]) == metrics
        assert all(0 <= value <= 100 for value in result["metrics"].values())
        assert result["parents"] == [made.parent.name]
        assert result["counts"]["num_test_images"] > 0
        assert len(result["provenance"]["checkpoint_sha256"]) == 64
