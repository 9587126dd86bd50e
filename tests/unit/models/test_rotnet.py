"""RotNet: the four rotations, their labels, and the loss written out."""

import math

import torch

from models.methods.rotnet import NUM_ROTATIONS, Rotnet, RotnetConfig, four_rotations
from models.methods.supervised import ClassifierNet

NO_LABELS = torch.zeros(0)


def test_a_quarter_turn_is_counterclockwise() -> None:
    """The right column becomes the top row."""
    crop = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).expand(1, 3, 2, 2)
    expected = ([[1, 2], [3, 4]], [[2, 4], [1, 3]], [[4, 3], [2, 1]], [[3, 1], [4, 2]])
    for turned, rows in zip(four_rotations(crop), expected, strict=True):
        assert turned[0, 0].tolist() == rows
        assert turned.is_contiguous(memory_format=torch.channels_last)


def test_loss_is_cross_entropy_of_the_rotation() -> None:
    torch.manual_seed(0)
    net = ClassifierNet(0.0625, NUM_ROTATIONS, blocks=(1, 1, 1, 1))
    method = Rotnet(RotnetConfig("rotnet"), net, 8, 3)
    crops = method.before_step(0, [torch.randn(3, 3, 32, 32) for _ in range(2)], NO_LABELS)
    assert len(crops) == 8
    features, logits = net(crops)
    loss, watched = method.loss(features, logits, len(crops), 0)
    likely = logits.softmax(dim=1)
    written_out = [-likely[3 * crop + image, crop % 4].log() for crop in range(8) for image in range(3)]
    torch.testing.assert_close(loss, torch.stack(written_out).mean())
    hits = sum(int(likely[3 * crop + image].argmax()) == crop % 4 for crop in range(8) for image in range(3))
    torch.testing.assert_close(watched["rotation_accuracy"], torch.tensor(hits / 24))
    assert method.uniform_loss == math.log(4)
