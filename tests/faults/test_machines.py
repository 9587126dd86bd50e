"""The same run on other machines: what a machine decides does not change the numbers."""

from pathlib import Path

import pytest
import torch

from reproduce import pretrain
from reproduce.engine.loop import Trainer
from tests.runs import TINY, Uninterrupted, call, killed_after, losses, run

STILL = ("optimizer.lr=0", "optimizer.warmup_start_lr=0", "optimizer.final_lr=0")


@pytest.mark.parametrize("option", ["cluster.activation_checkpointing=true", "cluster.compile_backend=aot_eager"])
def test_cluster_options_change_no_loss(
    data: Path, uninterrupted: Uninterrupted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    # Nothing learns here: training multiplies roundings. (That gradients agree stands in tests/unit/models.)
    common = (*TINY, *STILL, "experiment=swav_800ep", f"paths.data_root={data}")
    plain = uninterrupted(pretrain.main, *common)
    status, said = call(pretrain.main, monkeypatch, *common, option, f"paths.results={tmp_path}")
    assert status == 0, said
    (without,), (with_option,) = (folder.glob("smoke/swav_*/") for folder in (plain, tmp_path))
    assert without.name == with_option.name  # one run_id
    assert losses(tmp_path) == pytest.approx(losses(plain), rel=1e-5)


def test_checkpointing_with_compile_is_refused(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = ("cluster.activation_checkpointing=true", "cluster.compile_backend=aot_eager")
    status, said = call(
        pretrain.main, monkeypatch, *TINY, *both, f"paths.data_root={data}", f"paths.results={tmp_path}"
    )
    assert status == 2
    assert "cluster.activation_checkpointing" in said and "cluster.compile_backend" in said


def test_gpu_out_of_memory_names_the_remedy(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines.")

    monkeypatch.setattr(Trainer, "train_step", full)
    status, said = call(pretrain.main, monkeypatch, *TINY, f"paths.data_root={data}", f"paths.results={tmp_path}")
    assert status == 2
    assert "cluster.activation_checkpointing=true" in said
    assert said.count("\n") == 1


def test_a_run_of_one_process_resumes_with_two(
    data: Path, uninterrupted: Uninterrupted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing learns here, as in test_two_processes_have_the_losses_of_one: what goes on is the sampler, and the queue.
    common = (*TINY, *STILL, "experiment=swav_800ep", f"paths.data_root={data}", "method.queue_length=20")
    with killed_after(3):
        call(pretrain.main, monkeypatch, *common, f"paths.results={tmp_path}")
    done = run("reproduce.pretrain", *common, f"paths.results={tmp_path}", processes=2)
    assert done.returncode == 0, done.stderr
    assert "resuming from step 3" in done.stdout
    assert losses(tmp_path) == pytest.approx(losses(uninterrupted(pretrain.main, *common)), rel=1e-4)
