"""The trunk: activation checkpointing changes memory, and nothing else; plain torchvision takes our weights."""

import pytest
import torch
import torchvision
from torch import Tensor, nn

from models.networks.resnet import BLOCKS, STEMS, ResNet, blocks_of_depth, require_stem, resnet50
from reproduce.errors import UserError
from tests.networks import kept_for_backward


def after_one_step(activation_checkpointing: bool) -> tuple[ResNet, Tensor, int]:
    """A trunk with its gradients, its features, and the bytes that the forward pass kept for the backward pass."""
    torch.manual_seed(0)
    trunk = ResNet(0.0625)
    trunk.activation_checkpointing = activation_checkpointing
    with kept_for_backward() as kept:
        features = trunk(torch.randn(4, 3, 32, 32))
    num_bytes = sum(storage.nbytes() for storage in kept.values())
    features.square().mean().backward()
    return trunk, features, num_bytes


def test_activation_checkpointing_saves_memory_bit_exactly() -> None:
    (plain, features, kept), (thrifty, same, kept_less) = after_one_step(False), after_one_step(True)
    assert torch.equal(features, same)
    for (name, ours), (_, theirs) in zip(plain.named_parameters(), thrifty.named_parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.equal(ours.grad, theirs.grad), name
    for (name, ours_), (_, theirs_) in zip(plain.named_buffers(), thrifty.named_buffers(), strict=True):
        assert torch.equal(ours_, theirs_), name
    assert all(m.momentum == 0.1 for m in thrifty.modules() if isinstance(m, nn.BatchNorm2d))
    assert kept_less < kept / 3


@pytest.mark.parametrize("depth", [*BLOCKS, None])
def test_a_trunk_has_as_many_layers_as_its_depth_says(depth: int | None) -> None:
    """Convolutions and the classifier count, shortcuts do not."""
    trunk = ResNet(0.0625, blocks_of_depth(depth))
    layers = [
        name for name, module in trunk.named_modules() if isinstance(module, nn.Conv2d) and "downsample" not in name
    ]
    assert len(layers) + 1 == (depth or 50)


def test_an_unknown_depth_raises() -> None:
    with pytest.raises(UserError, match=r"network\.depth=18"):
        blocks_of_depth(18)


def test_the_stem_of_small_images_halves_their_sides_once() -> None:
    """3x3 and no pooling, so that the first stage sees maps of 16 x 16 of an image of 32 pixels, not of 8 x 8."""
    seen = {}
    for stem in STEMS:
        trunk = ResNet(0.0625, blocks_of_depth(14), stem=stem)
        trunk.layer1[0].register_forward_pre_hook(lambda _, inputs, stem=stem: seen.update({stem: inputs[0].shape}))
        trunk(torch.randn(2, 3, 32, 32))
    assert seen == {"7x7": (2, 4, 8, 8), "3x3": (2, 4, 16, 16)}


def test_an_unknown_stem_raises() -> None:
    with pytest.raises(UserError, match=r"network\.stem=5x5"):
        require_stem("5x5")


def test_torchvision_loads_our_weights_with_equal_features() -> None:
    ours, theirs = resnet50().eval(), torchvision.models.resnet50().eval()
    reported = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert sorted(reported.missing_keys) == ["fc.bias", "fc.weight"]
    assert reported.unexpected_keys == []
    theirs.fc = nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))
