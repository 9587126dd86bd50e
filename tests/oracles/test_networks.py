"""Networks of Table 2 beside their authors' code: as many parameters, and the same features from the same file."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks.amdim import AmdimEncoder
from models.networks.cmc import CmcPair, normalized_lab
from models.zoo.load import load_trunk
from tests.oracles.official import checkout, definitions, module

AMDIM_LAYERS = ("MaybeBatchNorm2d", "NopNet", "Conv3x3", "FakeRKHSConvNet", "ConvResNxN", "ConvResBlock")


def count(net: nn.Module) -> int:
    return sum(weight.numel() for weight in net.parameters())


def randomized(net: nn.Module) -> nn.Module:
    """The network in evaluation mode, with norms that do something and no branch of zeros."""
    torch.manual_seed(0)
    for each in net.modules():
        if isinstance(each, nn.BatchNorm2d):
            assert each.running_mean is not None and each.running_var is not None
            each.running_mean.uniform_(-0.5, 0.5)
            each.running_var.uniform_(0.5, 2)
            each.weight.data.uniform_(0.5, 1.5)
    return net.eval()


def amdim_encoder(**sizes: Any) -> nn.Module:
    file = checkout("amdim", "model.py") / "model.py"
    bool_masks = SimpleNamespace(
        zeros=lambda shape, **_: np.zeros(shape, bool), uint8=None
    )  # torch takes no others now
    code = definitions(
        file, "Encoder", "has_many_gpus", *AMDIM_LAYERS,
        torch=torch, nn=nn, F=F, np=bool_masks, print=lambda *_: None,
    )  # fmt: skip
    return code["Encoder"](torch.zeros(2, 3, 128, 128), encoder_size=128, **sizes)


def test_amdims_features_are_those_of_the_official_encoder(tmp_path: Path) -> None:
    theirs = randomized(amdim_encoder(ndf=4, n_rkhs=48, n_depth=3))
    model = {f"encoder.module.{name}": value for name, value in theirs.state_dict().items()}
    torch.save({"model": model, "hyperparams": {"ndf": 4}}, tmp_path / "amdim.pth")
    ours = load_trunk(tmp_path / "amdim.pth", "amdim").double()
    images = torch.randn(2, 3, 128, 128, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs.double()(images)[0].flatten(1), rtol=1e-10, atol=1e-12)


def test_amdims_largest_encoder_has_the_parameters_that_the_official_one_uses() -> None:
    """Without norms that it builds and never uses, and without the heads of training."""
    with torch.device("meta"):
        theirs, ours = amdim_encoder(ndf=320, n_rkhs=2560, n_depth=10), AmdimEncoder()
    layers: Any = theirs.layer_list
    unused = sum(
        count(each) for each in layers.modules() if type(each).__name__ == "MaybeBatchNorm2d" and not each.use_bn
    )
    assert count(layers) - unused == count(ours) == 626_410_560


@pytest.fixture
def cmc() -> Any:
    return module(checkout("cmc", "models/resnet.py") / "models/resnet.py")


def test_cmcs_features_are_those_of_the_official_pair(cmc: Any, tmp_path: Path) -> None:
    """Its smallest pair, R50 of half the width, on images of 224 px, which its average pooling needs."""
    theirs = randomized(cmc.MyResNetsCMC("resnet50v1"))
    torch.save({"model": theirs.state_dict(), "epoch": 240}, tmp_path / "cmc.pth")
    ours = load_trunk(tmp_path / "cmc.pth", "cmc").double()
    images = torch.rand(1, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        of_both: list[Tensor] = theirs.double()(normalized_lab(images), layer=6)
        torch.testing.assert_close(ours(images), torch.cat(of_both, dim=1), rtol=1e-10, atol=1e-12)


def test_cmcs_widest_pair_has_as_many_parameters(cmc: Any) -> None:
    """Without the linear heads of training: 188 million, where the heads would make 189 of them."""
    with torch.device("meta"):
        theirs, ours = cmc.MyResNetsCMC("resnet50v3"), CmcPair(2)
    heads = sum(count(each) for each in theirs.modules() if isinstance(each, nn.Linear))
    assert count(theirs) - heads == count(ours) == 187_703_744
    assert heads > 1_000_000
