"""Whole runs on the device: killed and resumed, saved while steps go on, moved between devices, and their errors."""

from pathlib import Path

import pytest
import torch

from reproduce import evaluate, pretrain
from reproduce.data.prepare import synthetic
from reproduce.engine import checkpoint
from reproduce.engine.checkpoint import CheckpointManager, Stateful
from reproduce.errors import EXIT_TRAINING_FAILED, EXIT_USAGE
from reproduce.files import read_json
from tests.gpu.trainings import BATCH, Training, assert_close_to, build_training
from tests.runs import TINY, Uninterrupted, assert_same_training, call, killed_after, losses, run

CPU = torch.device("cpu")


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_killed_run_resumes_as_if_uninterrupted(
    gpu: torch.device,
    data: Path,
    uninterrupted: Uninterrupted,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    deterministic: bool,
) -> None:
    """To the bit if deterministic, else up to kernels that add atomically. tests/faults does the same on the CPU."""
    options = ("method.queue_length=20", f"cluster.deterministic={deterministic}", f"paths.data_root={data}")
    common = (*TINY, "experiment=swav_800ep", *options)
    whole = uninterrupted(pretrain.main, *common)
    with killed_after(4):
        call(pretrain.main, monkeypatch, *common, f"paths.results={tmp_path}")
    status, said = call(pretrain.main, monkeypatch, *common, f"paths.results={tmp_path}")
    assert status == 0, said
    assert losses(tmp_path) == pytest.approx(losses(whole), rel=1e-3)
    if deterministic:
        assert_same_training(tmp_path, whole, num_steps=6)
    (result,) = tmp_path.glob("smoke/*/result.json")
    assert torch.cuda.get_device_name(gpu) in read_json(result)["provenance"]["hardware"]


def states(training: Training) -> dict[str, Stateful]:
    return {"model": training.net, "method": training.method, "optimizer": training.trainer.optimizer}


def test_a_checkpoint_that_is_written_while_steps_run_has_the_state_of_its_step(
    device: torch.device, tmp_path: Path
) -> None:
    training = build_training("swav", device, num_batches=6)
    manager = CheckpointManager(tmp_path / "checkpoint.pt", states(training), save_every_seconds=0)
    training.losses(0, 2)
    expected = {name: value.clone() for name, value in training.net.state_dict().items()}
    manager.save(2)
    training.losses(2, 4)
    manager.wait()
    saved = checkpoint.load(tmp_path / "checkpoint-00000002.pt")
    for name, value in expected.items():
        assert torch.equal(saved["model"][name], value.cpu()), name
        changed = training.net.state_dict()[name]
        assert "num_batches" in name or not torch.equal(changed, value) or "prototypes" in name
    assert saved["method"]["num_filled"] == 2 * BATCH


def test_a_checkpoint_moves_from_the_device_to_the_cpu_and_back(device: torch.device, tmp_path: Path) -> None:
    """Two steps on the device, one on the CPU, one on the device; against all four on the CPU."""
    path = tmp_path / "checkpoint.pt"
    expected = build_training("swav", CPU)
    exact = [loss.item() for loss in expected.losses(0, 4)]
    found: list[float] = []
    for where, steps in ((device, (0, 1)), (CPU, (2,)), (device, (3,))):
        training = build_training("swav", where)
        manager = CheckpointManager(path, states(training), save_every_seconds=0)
        assert manager.resume() == steps[0]
        for step in steps:
            found += [loss.item() for loss in training.losses(step, 1)]
        manager.save(steps[-1] + 1)
        manager.wait()
    assert found == pytest.approx(exact, rel=1e-3)
    weights = expected.net.state_dict()
    for name, value in training.net.state_dict().items():
        if "bias" not in name:  # one in front of a BatchNorm has no gradient but rounding
            assert_close_to(value, weights[name], 1e-3)


def test_a_loss_that_is_not_finite_ends_in_a_sentence(
    device: torch.device, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_sgd = ("optimizer.trust_coefficient=null", "optimizer.warmup_epochs=0", "optimizer.lr=1e30")
    paths = (f"paths.data_root={data}", f"paths.results={tmp_path}")
    overrides = (*TINY, "experiment=swav_800ep", *plain_sgd, *paths)
    status, said = call(pretrain.main, monkeypatch, *overrides)
    assert status == EXIT_TRAINING_FAILED
    assert said.startswith("error: the loss is ") and said.count("\n") == 1
    (dump,) = tmp_path.glob("smoke/*/not-finite-rank0.pt")
    assert f"lower optimizer.lr, or use precision=fp32; its tensors are in {dump}" in said
    assert {tensor.device.type for tensor in checkpoint.load(dump).values() if isinstance(tensor, torch.Tensor)} == {
        "cpu"
    }


def test_full_gpu_memory_ends_in_a_sentence(
    gpu: torch.device, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.cuda.empty_cache()
    used = torch.cuda.memory_reserved(gpu) + 64 * 2**20  # less than the weights of a ResNet-50 and their gradients
    torch.cuda.set_per_process_memory_fraction(used / torch.cuda.get_device_properties(gpu).total_memory, gpu)
    try:
        overrides = (*TINY, "network.width=1", f"paths.data_root={data}", f"paths.results={tmp_path}")
        status, said = call(pretrain.main, monkeypatch, *overrides)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, gpu)
        torch.cuda.empty_cache()
    assert status == EXIT_USAGE
    assert said.startswith("error: a GPU's memory is full (CUDA out of memory") and said.count("\n") == 1


def test_more_processes_than_gpus_are_refused(gpu: torch.device, data: Path, tmp_path: Path) -> None:
    """Before any data is read, in one sentence, and without a restart; NCCL would say `invalid device ordinal`."""
    processes = torch.cuda.device_count() + 1
    overrides = (*TINY, f"batch_size={10 * processes}", f"paths.data_root={data}", f"paths.results={tmp_path}")
    done = run("reproduce.pretrain", *overrides, processes=processes)
    assert done.returncode == EXIT_USAGE
    assert f"has no GPU of its own: CUDA finds {processes - 1} " in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_missing_gpu_is_refused(gpu: torch.device, data: Path, tmp_path: Path) -> None:
    """What was to run on a GPU does not run on the CPU."""
    overrides = (*TINY, "cluster.gpus_per_process=1", f"paths.data_root={data}", f"paths.results={tmp_path}")
    done = run("reproduce.pretrain", *overrides, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == EXIT_USAGE
    assert "cluster.gpus_per_process=1, but CUDA finds no GPU" in done.stderr
    assert done.stderr.count("\n") == 1


def test_swav_of_scale_smoke_beats_its_random_trunk(
    gpu: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole pretraining and its kNN; `make smoke` does the same on a CPU."""
    synthetic.generate(tmp_path / "data")
    common = (
        "scale=smoke",
        "cluster.num_workers=4",
        f"paths.data_root={tmp_path / 'data'}",
        f"paths.results={tmp_path}",
    )
    accuracy = {}
    for experiment in ("swav_800ep", "random"):
        status, said = call(pretrain.main, monkeypatch, f"experiment={experiment}", "logging.wandb=false", *common)
        assert status == 0, said
        (trunk,) = tmp_path.glob(f"smoke/{experiment}-*/checkpoint.pt")
        before = set(tmp_path.glob("smoke/*/result.json"))
        status, said = call(
            evaluate.main, monkeypatch, "eval=knn", f"checkpoint={trunk}", "logging.wandb=false", *common
        )
        assert status == 0, said
        (result,) = set(tmp_path.glob("smoke/*/result.json")) - before
        accuracy[experiment] = read_json(result)["metrics"]["knn20"]
    assert accuracy["swav_800ep"] > accuracy["random"] + 15  # recorded on CPUs: 67.2 (sd 4.3) and 19.5 (4.0)
