"""The supervised reference: cross-entropy of the loader's labels; its trunk is read like any other."""

from pathlib import Path

import torch

from models.methods.supervised import ClassifierNet, Supervised, SupervisedConfig
from models.zoo.load import load_trunk
from reproduce.engine import checkpoint


def test_loss_is_cross_entropy_of_labels() -> None:
    torch.manual_seed(0)
    net = ClassifierNet(0.0625, 3, blocks=(1, 1, 1, 1))
    method = Supervised(SupervisedConfig("supervised"), net, 8, 4)
    labels = torch.tensor([2, 0, 1, 2])
    crops = method.before_step(0, [torch.randn(4, 3, 32, 32) for _ in range(2)], labels)
    features, logits = net(crops)
    torch.testing.assert_close(logits, features @ net.fc.weight.T + net.fc.bias)
    loss, watched = method.loss(features, logits, 2, 0)
    likely = logits.softmax(dim=1)
    written_out = [-likely[crop * 4 + image, label].log() for crop in range(2) for image, label in enumerate(labels)]
    torch.testing.assert_close(loss, torch.stack(written_out).mean())
    assert 0 < watched["embedding_spread"] < 1


def test_trunk_loads_from_its_checkpoint(tmp_path: Path) -> None:
    net = ClassifierNet(0.0625, 3)
    checkpoint.save(tmp_path / "checkpoint.pt", {"model": net.state_dict()})
    trunk = load_trunk(tmp_path / "checkpoint.pt")
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(trunk(images), net.eval()([images])[0])
