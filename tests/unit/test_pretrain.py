"""What a pretraining sets up before its first step."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import HashStore
from torch.nn.modules.batchnorm import _BatchNorm

from models.methods.base import PretrainTask
from models.methods.registry import METHODS
from reproduce import network, pretrain
from reproduce.config.compose import compose
from reproduce.engine import batchnorm, checkpoint
from reproduce.engine.collapse import CollapseDetector
from reproduce.engine.loop import Trainer
from reproduce.engine.runs.run import run_context
from tests.runs import FEW_CLUSTERS, FEW_NEIGHBORS, FEW_WORDS, TINY, Uninterrupted, call

EXPERIMENTS = {
    "swav": ("experiment=swav_800ep", "method.queue_length=0"),
    "deepcluster_v2": ("experiment=deepcluster_v2_400ep_2x224", "method.num_prototypes=6"),
    "sela_v2": ("experiment=sela_v2_400ep_2x224", "method.num_prototypes=6"),
    "simclr": ("experiment=simclr_400ep",),
    "moco": ("experiment=moco_v2_200ep", "method.queue_length=30"),
    "pcl": ("experiment=pcl_v1_200ep", *FEW_CLUSTERS),
    "npid": ("experiment=npid_200ep", "method.num_negatives=30"),
    "cmc": ("experiment=cmc_w2_240ep", "method.num_negatives=30"),
    "pirl": ("experiment=pirl_800ep", "method.num_negatives=30"),
    "local_aggregation": ("experiment=local_aggregation_200ep", *FEW_NEIGHBORS),
    "bownet": ("experiment=bownet_305ep", *FEW_WORDS),
    "supervised": ("experiment=supervised",),
    "rotnet": ("experiment=rotnet_105ep",),
}
"""An experiment of each method, with overrides that fit twenty images."""
CONVERSIONS = {
    "torch": (),
    "apex": ("cluster.sync_batchnorm=apex",),
    "grouped": ("network.batchnorm_group_size=5",),
}
"""What becomes of BatchNorm: synchronized by torch or apex, or over groups of a rank's images."""


WRONG_CROPS = {
    "swav": ("supervised", "needs 2 or more crops of an image, and crops has 1: use crops=2x224_6x96"),
    "deepcluster_v2": ("supervised", "needs 2 or more crops of an image, and crops has 1"),
    "sela_v2": ("supervised", "needs 2 or more crops of an image, and crops has 1"),
    "simclr": ("supervised", "needs 2 or more crops of an image, and crops has 1"),
    "moco": ("2x224_6x96", "needs 2 crops of an image, and crops has 8: use crops=moco_v2"),
    "pcl": ("supervised", "needs 2 crops of an image, and crops has 1: use crops=moco_v1"),
    "cmc": ("2x224", "needs 1 crop of an image, and crops has 2: use crops=cmc"),
    "pirl": ("2x224", "needs 10 crops of an image, and crops has 2: use crops=pirl"),
    "local_aggregation": ("2x224", "needs 1 crop of an image, and crops has 2"),
    "bownet": ("2x224", "needs 1 crop of an image, and crops has 2"),
    "supervised": ("2x224_6x96", "needs crops of one size, and crops has several: use crops=supervised"),
    "rotnet": ("2x224_6x96", "needs crops of one size, and crops has several"),
}
"""Crops that a method can't learn from, and the error. NPID can from any."""


class AtFirstStep(BaseException):
    """Ends a run where its training would begin; nothing catches it."""


@pytest.fixture
def one_rank() -> Iterator[None]:
    """A process group of this process alone, so that BatchNorm is converted."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def apex(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for apex, whose conversion gives every BatchNorm new parameters."""

    def convert(module: nn.Module, process_group: Any) -> nn.Module:
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                converted = type(child)(child.num_features)
                converted.load_state_dict(child.state_dict())
                module.add_module(name, converted)
            convert(child, process_group)
        return module

    parallel: Any = ModuleType("apex.parallel")
    parallel.convert_syncbn_model = convert
    monkeypatch.setitem(sys.modules, "apex", ModuleType("apex"))
    monkeypatch.setitem(sys.modules, "apex.parallel", parallel)
    for module in (network, batchnorm):  # it refuses apex on a CPU
        monkeypatch.setattr(module, "validate_sync_batchnorm", lambda _: None)


@pytest.mark.usefixtures("one_rank", "apex")
@pytest.mark.parametrize("conversion", CONVERSIONS)
@pytest.mark.parametrize("method", METHODS)
def test_the_optimizer_has_every_parameter_of_the_network(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, conversion: str
) -> None:
    trained: list[tuple[list[nn.Parameter], list[nn.Parameter]]] = []

    def train(self: Trainer[Any], *_: object) -> None:
        assert isinstance(self.task, PretrainTask)
        groups = self.optimizer.param_groups
        trained.append((list(self.task.net.parameters()), [each for group in groups for each in group["params"]]))
        raise AtFirstStep

    monkeypatch.setattr(Trainer, "train", train)
    overrides = (*TINY, *EXPERIMENTS[method], *CONVERSIONS[conversion], f"paths.data_root={data}")
    with pytest.raises(AtFirstStep):
        call(pretrain.main, monkeypatch, *overrides, f"paths.results={tmp_path}")
    ((of_network, of_optimizer),) = trained
    assert set(map(id, of_network)) == set(map(id, of_optimizer))
    assert len(of_network) == len(of_optimizer)


@pytest.mark.parametrize(("asked", "scale"), [((), 65536), (("initial_loss_scale=256",), 256)])
def test_fp16_begins_with_the_configured_loss_scale(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: tuple[str, ...], scale: float
) -> None:
    scales: list[float] = []

    def train(self: Trainer[Any], *_: object) -> None:
        scales.append(self.scaler.get_scale())
        raise AtFirstStep

    monkeypatch.setattr(Trainer, "train", train)
    overrides = (*TINY, *EXPERIMENTS["swav"], "precision=fp16", *asked, f"paths.data_root={data}")
    with pytest.raises(AtFirstStep):
        call(pretrain.main, monkeypatch, *overrides, f"paths.results={tmp_path}")
    assert scales == [scale]


@pytest.mark.usefixtures("one_rank", "apex")
def test_apex_with_bf16_is_refused(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = (*TINY, *CONVERSIONS["apex"], "precision=bf16", f"paths.data_root={data}", f"paths.results={tmp_path}")
    status, said = call(pretrain.main, monkeypatch, *overrides)
    assert status == 2
    assert "cluster.sync_batchnorm=apex does not work with precision=bf16" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("method", [method for method in METHODS if method != "npid"])
def test_crops_that_a_method_cannot_use_are_refused_before_the_first_step(
    method: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops, words = WRONG_CROPS[method]
    asked = (*TINY, *EXPERIMENTS[method], f"crops={crops}", f"paths.data_root={data}", f"paths.results={tmp_path}")
    monkeypatch.setattr(Trainer, "train", None)
    status, said = call(pretrain.main, monkeypatch, *asked)
    assert (status, words in said) == (2, True), said


def test_a_checkpoint_has_the_last_epochs_metrics_for_the_collapse_detector(
    data: Path, uninterrupted: Uninterrupted
) -> None:
    asked = (*TINY, *EXPERIMENTS["swav"], f"paths.data_root={data}")
    (path,) = uninterrupted(pretrain.main, *asked).glob("smoke/*/checkpoint.pt")
    assert [step for step, _ in checkpoint.load(path)["collapse_detector"]["history"]] == [5, 6]


def test_only_rank_0_writes_the_random_trunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another rank's file would replace the one whose hash is in the result."""
    saved: list[Path] = []
    monkeypatch.setattr(checkpoint, "save", lambda path, _: saved.append(path))
    cfg = compose("pretrain", [*TINY, "experiment=random", f"paths.results={tmp_path}"])
    with run_context(cfg) as run:
        monkeypatch.setattr(pretrain, "is_main", lambda: False)
        pretrain.save_initial_weights(cfg, run)
        assert saved == []
        monkeypatch.setattr(pretrain, "is_main", lambda: True)
        pretrain.save_initial_weights(cfg, run)
    assert saved == [run.checkpoint]


def test_the_collapse_detector_sees_steps_of_each_epoch_however_few_are_logged(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else `logging.every_steps`, which is in no run's name, would make a result of a collapsed training."""
    seen: list[int] = []
    monkeypatch.setattr(CollapseDetector, "update", lambda _, step, __: seen.append(step))
    asked = (*TINY, *EXPERIMENTS["simclr"], "logging.every_steps=100000", "epochs=11", f"paths.data_root={data}")
    status, said = call(pretrain.main, monkeypatch, *asked, f"paths.results={tmp_path}")
    assert (status, seen) == (0, [10, 20, 22]), said
    assert [pretrain.max_log_interval(steps) for steps in (2, 50, 1000)] == [10, 10, 200]
