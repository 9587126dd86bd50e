"""The methods beside SwAV, killed and resumed, and trained to a collapse."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reproduce import pretrain
from reproduce.engine import checkpoint
from reproduce.errors import EXIT_TRAINING_FAILED
from reproduce.files import read_json
from tests.faults.test_runs import Killed, weights
from tests.runs import TINY, call, curve, tiny_pictures

EXPERIMENTS = {
    "deepcluster_v2_400ep_2x160_4x96": ("method.num_prototypes=6",),
    "sela_v2_400ep_2x160_4x96": ("method.num_prototypes=6", "optimizer.lr=0.1", "optimizer.warmup_epochs=0"),
    "simclr_400ep_2x160_4x96": (),
    "moco_v2_200ep": ("method.queue_length=30",),
    "supervised": (),
}
"""With overrides that fit twenty pictures."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    tiny_pictures(root)
    return root


@pytest.mark.parametrize("killed_after", [1, 4])  # within an epoch and at its end
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_resumed_equals_uninterrupted_to_the_bit(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, experiment: str, killed_after: int
) -> None:
    common = (*TINY, f"experiment={experiment}", *EXPERIMENTS[experiment], f"paths.data_root={data}")
    status, said = call(pretrain.main, monkeypatch, *common, f"paths.results={tmp_path / 'whole'}")
    assert status == 0, said

    def kill(self: checkpoint.CheckpointManager, step: int) -> None:
        if step == killed_after:
            self.save(step)
            self.wait()
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.CheckpointManager, "save_if_due", kill)
        with pytest.raises(Killed):
            call(pretrain.main, patch, *common, f"paths.results={tmp_path / 'killed'}")
    assert call(pretrain.main, monkeypatch, *common, f"paths.results={tmp_path / 'killed'}")[0] == 0

    losses = [[point["loss"] for point in curve(tmp_path / name)] for name in ("whole", "killed")]
    assert len(losses[0]) == 6
    assert losses[0] == losses[1]
    (result,) = (tmp_path / "whole").glob("smoke/*/result.json")
    assert ("note" in read_json(result)["provenance"]) == experiment.startswith("moco")  # BatchNorm not shuffled
    whole, killed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_pictures_that_are_all_the_same_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, experiment: str
) -> None:
    tiny_pictures(tmp_path)
    for path in (tmp_path / "imagenet" / "train").glob("*/*.jpg"):
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(path)
    few = ("epochs=20", "collapse.patience_epochs=2", "collapse.on_collapse=stop", f"paths.data_root={tmp_path}")
    overrides = (*TINY, f"experiment={experiment}", *EXPERIMENTS[experiment], *few, f"paths.results={tmp_path / 'r'}")
    status, said = call(pretrain.main, monkeypatch, *overrides)
    assert status == EXIT_TRAINING_FAILED, said
    assert "check that the pictures differ" in said
    (failure,) = (tmp_path / "r").glob("smoke/*/failure.json")
    assert read_json(failure)["status"] == "collapsed"
    assert len(curve(tmp_path / "r")) <= 8
