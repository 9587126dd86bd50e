"""The linear classifiers of Places205 and iNaturalist18 normalize their features, ImageNet's does not (A.3, A.5)."""

import re
import shlex

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from evals.linear import LinearProbe, ProtocolConfig, build_classifier, build_optimizer, learning_rate
from reproduce.config.compose import compose
from reproduce.config.validate import to_dataclass
from reproduce.system import CONF_DIR

NUM_FEATURES, NUM_CLASSES = 32, 10


def protocol(name: str) -> ProtocolConfig:
    cfg = compose("evaluate", [f"eval={name}", "checkpoint=x", "scale=paper"])
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
