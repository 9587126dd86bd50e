"""The methods beside SwAV, killed and resumed, and trained to a collapse."""

from pathlib import Path

import pytest

from reproduce import pretrain
from reproduce.errors import EXIT_TRAINING_FAILED
from reproduce.files import read_json
from tests.runs import (
    FEW_CLUSTERS,
    FEW_NEIGHBORS,
    FEW_WORDS,
    TINY,
    Uninterrupted,
    assert_same_training,
    call,
    curve,
    killed_after,
)

EXPERIMENTS = {
    "deepcluster_v2_400ep_2x160_4x96": ("method.num_prototypes=6",),
    "sela_v2_400ep_2x160_4x96": ("method.num_prototypes=6", "optimizer.lr=0.1", "optimizer.warmup_epochs=0"),
    "simclr_400ep_2x160_4x96": (),
    "moco_v2_200ep": ("method.queue_length=30",),
    "pcl_v1_200ep": FEW_CLUSTERS,
    "npid_200ep": ("method.num_negatives=30",),
    "npid_pp_800ep": ("method.num_negatives=30",),
    "cmc_w2_240ep": ("method.num_negatives=30",),
    "pirl_800ep": ("method.num_negatives=30",),
    "local_aggregation_200ep": FEW_NEIGHBORS,
    "bownet_305ep": FEW_WORDS,
    "supervised": (),
    "rotnet_105ep": (),
}
"""With overrides that fit twenty pictures."""


CLUSTERS_ANEW_EACH_EPOCH = {"deepcluster_v2_400ep_2x160_4x96", "pcl_v1_200ep", "local_aggregation_200ep"}
KILLS = [
    pytest.param(
        experiment, step, marks=() if step == 1 or experiment in CLUSTERS_ANEW_EACH_EPOCH else pytest.mark.campaign
    )
    for experiment in EXPERIMENTS
    for step in (1, 4)  # within an epoch and at its end
]


@pytest.mark.parametrize(("experiment", "step"), KILLS)
def test_resumed_equals_uninterrupted_to_the_bit(
    data: Path,
    uninterrupted: Uninterrupted,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    experiment: str,
    step: int,
) -> None:
    common = (*TINY, f"experiment={experiment}", *EXPERIMENTS[experiment], f"paths.data_root={data}")
    whole = uninterrupted(pretrain.main, *common)
    with killed_after(step):
        call(pretrain.main, monkeypatch, *common, f"paths.results={tmp_path}")
    assert call(pretrain.main, monkeypatch, *common, f"paths.results={tmp_path}")[0] == 0
    assert_same_training(tmp_path, whole, num_steps=6)
    (result,) = whole.glob("smoke/*/result.json")
    assert ("note" in read_json(result)["provenance"]) == experiment.startswith(
        ("moco", "pcl")
    )  # BatchNorm not shuffled


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_identical_images_stop_the_run(
    black_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, experiment: str
) -> None:
    few = ("epochs=20", "collapse.patience_epochs=2", "collapse.on_collapse=stop", f"paths.data_root={black_data}")
    overrides = (*TINY, f"experiment={experiment}", *EXPERIMENTS[experiment], *few, f"paths.results={tmp_path / 'r'}")
    status, said = call(pretrain.main, monkeypatch, *overrides)
    assert status == EXIT_TRAINING_FAILED, said
    assert "check that the images differ" in said
    (failure,) = (tmp_path / "r").glob("smoke/*/failure.json")
    assert read_json(failure)["status"] == "collapsed"
    assert len(curve(tmp_path / "r")) <= 8
