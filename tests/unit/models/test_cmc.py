"""CMC: its network's views, its state, and a checkpoint of ours that evaluations read."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from models.methods.cmc import Cmc, CmcConfig, CmcNet
from models.methods.memory_bank import nce_uniform_loss
from models.networks import cmc
from models.networks.cmc import CmcPair
from models.zoo.load import load_trunk
from reproduce import evaluate, pretrain
from reproduce.config.compose import compose
from reproduce.data.pipeline.sampler import StepSampler
from reproduce.errors import UserError
from reproduce.memory import estimate_memory
from tests.runs import TINY, call

NUM_IMAGES, BATCH, DIM, BLOCKS = 12, 4, 8, (1, 1, 1, 1)


def started(num_negatives: int = 5) -> Cmc:
    torch.manual_seed(0)
    net = CmcNet(0.0625, DIM, BLOCKS)
    method = Cmc(CmcConfig("cmc", num_negatives, 0.1, 0.5), net, NUM_IMAGES, BATCH)
    method.on_train_start(net, StepSampler(NUM_IMAGES, BATCH, epochs=2, seed=0), [])
    return method


def test_embeddings_are_those_of_both_views_under_their_heads() -> None:
    torch.manual_seed(0)
    net = CmcNet(0.0625, DIM, BLOCKS).eval()
    images = torch.rand(3, 3, 40, 40)
    embeddings, scores = net([images])
    lightness, colors = net.views(images)
    expected = torch.cat([net.l_head(lightness), net.ab_head(colors)])
    torch.testing.assert_close(embeddings, F.normalize(expected, dim=1))
    assert scores is None and net.num_features == 2 * lightness.shape[1]


def test_activation_checkpointing_reaches_both_networks() -> None:
    net = CmcNet(0.0625, DIM, BLOCKS)
    net.activation_checkpointing = True
    assert (
        net.activation_checkpointing and net.l_to_ab.activation_checkpointing and net.ab_to_l.activation_checkpointing
    )


def test_estimates_of_memory_leave_nothing_to_a_training_and_take_nothing_from_one() -> None:
    """The network keeps its constants; an estimate's have no values, and a training's are none of an estimate's."""
    cfg = compose("pretrain", ["experiment=cmc_w2_240ep", "scale=smoke", "batch_size=2", "precision=fp32"])
    net, images = CmcNet(0.0625, DIM, BLOCKS).eval(), torch.rand(2, 3, 40, 40)
    cmc._uploaded.cache_clear()
    first = estimate_memory(cfg, 1, activation_checkpointing=False)
    trained = net([images])[0]
    assert estimate_memory(cfg, 1, activation_checkpointing=False) == first
    torch.testing.assert_close(net([images])[0], trained, rtol=0, atol=0)


def test_state_dict_round_trip() -> None:
    method, again = started(), started()
    for step in range(2):
        method.loss(F.normalize(torch.randn(2 * BATCH, DIM), dim=1), None, 1, step)
    again.load_state_dict(method.state_dict())
    for one, other in zip(method.banks, again.banks, strict=True):
        assert torch.equal(one.rows, other.rows)
    assert torch.equal(again.log_z, method.log_z) and (method.log_z != 0).all()


def test_equal_predictions_have_the_loss_of_two_views_and_no_negatives_raise() -> None:
    assert started(7).uniform_loss == pytest.approx(2 * nce_uniform_loss(7))
    with pytest.raises(UserError, match="num_negatives"):
        started(0)


def test_a_trained_pair_is_evaluated_with_the_pixels_it_was_trained_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = (f"paths.data_root={data}", f"paths.results={tmp_path}", "logging.wandb=false", "cluster.num_workers=0")
    few = ("experiment=cmc_w2_240ep", "method.num_negatives=30", "epochs=1")
    status, said = call(pretrain.main, monkeypatch, *TINY, *few, *common)
    assert status == 0, said
    (made,) = tmp_path.glob("smoke/cmc_w2_240ep-*/checkpoint.pt")
    assert isinstance(load_trunk(made), CmcPair)
    for statistics in ((), ("normalize=none",)):
        asked = ("eval=knn", f"checkpoint={made}", "protocol.num_neighbors=[1]", *statistics)
        status, said = call(evaluate.main, monkeypatch, *asked, *common)
        assert status == 0, said
    swav, none = (json.loads(path.read_text())["metrics"] for path in tmp_path.glob("smoke/knn-*/result.json"))
    assert swav == none  # the pair undoes the normalization, whichever it was
