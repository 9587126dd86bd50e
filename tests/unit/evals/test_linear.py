"""The linear classifiers of Places205 and iNaturalist18 normalize their features, ImageNet's does not (A.3, A.5).

They can take a grid of features in place of the average over the whole map.
"""

import re
import shlex
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from evals.linear import (
    GridAverage,
    LinearProbe,
    ProtocolConfig,
    build_classifier,
    build_optimizer,
    divide_map,
    learning_rate,
)
from models.networks.cmc import CmcPair
from models.networks.resnet import BLOCKS, ResNet
from models.networks.trunk import Trunk
from reproduce import evaluate
from reproduce.config.compose import compose
from reproduce.config.identity import identity
from reproduce.config.validate import to_dataclass
from reproduce.errors import UserError
from reproduce.system import CONF_DIR
from tests.runs import call

NUM_FEATURES, NUM_CLASSES = 32, 10


def protocol(name: str, *overrides: str) -> ProtocolConfig:
    cfg = compose("evaluate", [f"eval={name}", "checkpoint=x", "scale=paper", *overrides])
    return to_dataclass(cfg.protocol, ProtocolConfig, "protocol")


def accuracy(name: str, scale: float) -> float:
    """Train the protocol's classifier on clusters of features times `scale` for 15 epochs; return its test accuracy."""
    torch.manual_seed(0)
    centers = torch.randn(NUM_CLASSES, NUM_FEATURES)
    labels = torch.arange(NUM_CLASSES).repeat(200)
    train, test = (scale * (centers[labels] + 2 * torch.randn(len(labels), NUM_FEATURES)) for _ in range(2))
    probe = LinearProbe(nn.Identity(), build_classifier(protocol(name), NUM_FEATURES, NUM_CLASSES))
    optimizer = build_optimizer(protocol(name), probe.classifier)
    probe.train()
    for epoch in range(15):
        for batch in torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(probe(train[batch]), labels[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        return float((probe.eval()(test).argmax(dim=1) == labels).float().mean() * 100)


@pytest.mark.parametrize("name", ["linear_places205", "linear_inat18"])
def test_accuracy_does_not_depend_on_the_scale_of_the_features(name: str) -> None:
    found = [accuracy(name, scale) for scale in (1, 0.1, 0.02)]
    assert found == pytest.approx(
        [found[0]] * 3, abs=0.6
    )  # BatchNorm's epsilon, 1e-5, is 1/160 of the smallest variance
    assert found[0] > 60


@pytest.mark.parametrize("name", ["linear_places205", "linear_inat18"])
def test_the_batchnorm_has_no_scale_and_shift_and_the_momentum_is_nesterovs(name: str) -> None:
    classifier = build_classifier(protocol(name), NUM_FEATURES, NUM_CLASSES)
    assert [key for key, _ in classifier.named_parameters()] == ["1.weight", "1.bias"]
    assert isinstance(classifier[0], nn.BatchNorm1d)  # type: ignore[index]
    assert build_optimizer(protocol(name), classifier).param_groups[0]["nesterov"] is True


def test_imagenets_classifier_stays_plain() -> None:
    classifier = build_classifier(protocol("linear_imagenet"), NUM_FEATURES, NUM_CLASSES)
    assert isinstance(classifier, nn.Linear)
    assert build_optimizer(protocol("linear_imagenet"), classifier).param_groups[0]["nesterov"] is False


GRIDDED = pytest.mark.parametrize("name", ["linear_places205", "linear_inat18"])


def small_resnet() -> ResNet:
    torch.manual_seed(0)
    return ResNet(0.125, BLOCKS[14])


@torch.no_grad()
def test_a_grid_of_two_is_vissls_pooling_of_the_last_map_in_torchs_order() -> None:
    """On the 7 x 7 map of a 224-pixel image; without a grid, the average over all of it."""
    trunk = small_resnet().eval()
    maps: list[torch.Tensor] = []
    trunk.layer4[-1].register_forward_hook(lambda _, __, output: maps.append(output))
    images = torch.randn(2, 3, 224, 224) * torch.linspace(0, 2, 224)  # varies from left to right
    averages = trunk(images)
    torch.testing.assert_close(averages, maps[0].mean((2, 3)))
    divide_map(trunk, 2)
    features = trunk(images)
    assert maps[1].shape[2:] == (7, 7)
    assert features.shape == (2, 4 * trunk.num_features)
    torch.testing.assert_close(features, F.avg_pool2d(maps[1], 6, stride=1).flatten(1), rtol=0, atol=0)
    positions = features.unflatten(1, (trunk.num_features, 4))
    assert not torch.allclose(positions[..., 0], positions[..., 1])


def test_a_grid_takes_as_many_windows_from_a_map_of_any_size_that_has_them() -> None:
    """At scale smoke a 40-pixel image has a 2 x 2 map, which is its own grid."""
    assert small_resnet().layer4(torch.randn(1, 128, 3, 3)).shape[2:] == (2, 2)
    for size in (2, 3, 10):
        features = torch.randn(2, 5, size, size)
        expected = F.avg_pool2d(features, size - 1, stride=1)
        torch.testing.assert_close(GridAverage(2)(features), expected, rtol=0, atol=0)
    with pytest.raises(UserError, match=r"protocol\.grid=2 .* 1 x 1"):
        GridAverage(2)(torch.randn(2, 5, 1, 1))


def test_a_pair_of_resnets_has_a_grid_of_both_and_another_network_none() -> None:
    pair = CmcPair(0.125, BLOCKS[14]).eval()
    divide_map(pair, 2)
    with torch.no_grad():
        assert pair(torch.rand(2, 3, 64, 64)).shape == (2, 4 * pair.num_features)
    with pytest.raises(UserError, match=r"protocol\.grid=2 needs a ResNet"):
        divide_map(Trunk(), 2)


@GRIDDED
def test_the_classifier_of_a_grid_has_a_weight_per_position_and_statistics_per_channel(name: str) -> None:
    assert build_classifier(protocol(name), 2048, NUM_CLASSES)[1].in_features == 2048  # type: ignore[index]
    classifier = build_classifier(protocol(name, "protocol.grid=2"), 2048, NUM_CLASSES)
    (linear,) = [module for module in classifier.modules() if isinstance(module, nn.Linear)]
    assert linear.in_features == 8192
    features = torch.randn(6, 2048, 2, 2) * torch.tensor([1.0, 3.0]) + 2
    expected = linear(F.batch_norm(features, None, None, training=True).flatten(1))
    torch.testing.assert_close(classifier(features.flatten(1)), expected)


def test_a_grid_without_batchnorm_is_a_plain_classifier() -> None:
    plain = protocol("linear_places205", "protocol.grid=2", "protocol.feature_batchnorm=false")
    classifier = build_classifier(plain, 2048, NUM_CLASSES)
    assert isinstance(classifier, nn.Linear) and classifier.in_features == 8192


def test_an_evaluation_trains_the_classifier_of_the_grid_that_is_set(
    random_checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = ("protocol.batch_size=8", "protocol.base_batch_size=8", "protocol.epochs=1")
    asked = ("eval=linear_places205", f"checkpoint={random_checkpoint}", f"paths.data_root={data}", *size)
    common = ("cluster.num_workers=0", "logging.wandb=false")
    num_inputs = {}
    for grid in ("null", "2"):
        results = tmp_path / grid
        status, said = call(
            evaluate.main, monkeypatch, *asked, f"protocol.grid={grid}", *common, f"paths.results={results}"
        )
        assert status == 0, said
        (path,) = results.glob("smoke/linear_places205-*/checkpoint.pt")
        state = torch.load(path, weights_only=True)["classifier"]
        (num_inputs[grid],) = [value.shape[1] for value in state.values() if value.ndim == 2]
    assert num_inputs["2"] == 4 * num_inputs["null"]


@GRIDDED
def test_only_a_grid_that_is_set_is_in_the_runs_name(name: str) -> None:
    asked = [f"eval={name}", "checkpoint=x", "scale=smoke"]
    assert "grid" not in identity(compose("evaluate", asked))["protocol"]
    assert identity(compose("evaluate", [*asked, "protocol.grid=2"]))["protocol"]["grid"] == 2


@pytest.mark.parametrize("grid", [0, 1, -2])
def test_a_grid_of_less_than_two_is_refused(grid: int) -> None:
    with pytest.raises(UserError, match=r"protocol\.grid"):
        protocol("linear_places205", f"protocol.grid={grid}")


def test_the_command_beside_mocos_experiment_is_mocos_own_protocol() -> None:
    """Its linear classifier (main_lincls.py): learning rate 30, divided by 10 at epochs 60 and 80, no weight decay."""
    opening = (CONF_DIR / "experiment" / "moco_v2_200ep.yaml").read_text().partition("defaults:")[0]
    command = re.search(r"`make evaluate-linear_imagenet .*?`", opening.replace("\n# ", " "))
    assert command is not None
    options = dict(word.split("=", 1) for word in shlex.split(command[0].strip("`"))[2:])
    asked = ["eval=linear_imagenet", "checkpoint=x", "scale=paper", *options["OVERRIDES"].split()]
    moco = to_dataclass(compose("evaluate", asked).protocol, ProtocolConfig, "protocol")
    rates = [learning_rate(moco, epoch) for epoch in range(100)]
    assert rates == pytest.approx([30] * 60 + [3] * 20 + [0.3] * 20)
    assert (moco.epochs, moco.batch_size, moco.weight_decay, moco.nesterov) == (100, 256, 0, False)
