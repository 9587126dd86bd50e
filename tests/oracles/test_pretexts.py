"""RotNet: our rotations, losses and learning rates beside its authors' code and VISSL's."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from models.methods.rotnet import NUM_ROTATIONS, Rotnet, RotnetConfig, four_rotations
from models.methods.supervised import ClassifierNet
from reproduce.config.compose import compose
from reproduce.config.schema import Optimizer
from reproduce.config.validate import to_dataclass
from reproduce.engine.schedule import learning_rate
from tests.networks import gradients_of
from tests.oracles.official import checkout, definitions

STEPS_PER_EPOCH = 1_281_167 // 256


def test_rotnets_rotations_are_equal() -> None:
    code = definitions(checkout("rotnet", "dataloader.py") / "dataloader.py", "rotate_img", np=np)
    images = np.random.default_rng(0).integers(0, 256, (3, 9, 9, 3), np.uint8)
    ours = four_rotations(torch.from_numpy(images).permute(0, 3, 1, 2))
    for turned, degrees in zip(ours, (0, 90, 180, 270), strict=True):
        theirs = np.stack([code["rotate_img"](image, degrees) for image in images])
        assert np.array_equal(turned.permute(0, 2, 3, 1).numpy(), theirs)


def test_rotnets_loss_and_gradients_are_equal() -> None:
    """Its loader stacks the rotations image by image, with labels 0 to 3, for torch's cross-entropy."""
    code = definitions(checkout("rotnet", "dataloader.py") / "dataloader.py", "rotate_img", np=np)
    torch.manual_seed(0)
    net = ClassifierNet(0.0625, NUM_ROTATIONS, blocks=(1, 1, 1, 1)).double()
    images = np.random.default_rng(1).standard_normal((4, 40, 40, 3))
    turned = [code["rotate_img"](image, degrees).copy() for image in images for degrees in (0, 90, 180, 270)]
    _, logits = net([torch.from_numpy(np.stack(turned)).permute(0, 3, 1, 2)])
    theirs = F.cross_entropy(logits, torch.arange(4).repeat(4))
    theirs.backward()
    gradients = gradients_of(net)
    net.zero_grad()
    method = Rotnet(RotnetConfig("rotnet"), net, 4, 4)
    crops = method.before_step(0, [torch.from_numpy(images).permute(0, 3, 1, 2)], torch.zeros(0))
    ours, _ = method.loss(*net(crops), len(crops), 0)
    ours.backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients_of(net), gradients, rtol=1e-9, atol=1e-12)


def test_rotnets_learning_rates_are_those_of_vissls_resnet() -> None:
    name = "configs/config/pretrain/rotnet/rotnet_8gpu_resnet.yaml"
    theirs = yaml.safe_load((checkout("vissl", name) / name).read_text())["config"]["OPTIMIZER"]
    schedule = theirs["param_schedulers"]["lr"]
    assert schedule["auto_lr_scaling"] == {"auto_scale": True, "base_value": 0.1, "base_lr_batch_size": 256}
    cfg = compose("pretrain", ["experiment=rotnet_105ep", "scale=paper"])
    optimizer = to_dataclass(cfg.optimizer, Optimizer, "optimizer")
    values = (cfg.epochs, cfg.batch_size, optimizer.weight_decay, optimizer.momentum)
    assert values == (theirs["num_epochs"], 256, theirs["weight_decay"], theirs["momentum"])
    for epoch in range(cfg.epochs):
        expected = schedule["values"][sum(epoch >= start for start in schedule["milestones"])]
        found = learning_rate(epoch * STEPS_PER_EPOCH, cfg.epochs * STEPS_PER_EPOCH, cfg.epochs, optimizer)
        assert found == pytest.approx(expected, rel=1e-9)
