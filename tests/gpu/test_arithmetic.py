"""What the device computes in fp32, against double precision on the CPU: networks, augmentation, Sinkhorn, steps.

The golden values of the reference implementation are compared on the device, too: tests/golden.
"""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.methods.sinkhorn import sinkhorn
from models.networks.resnet import ResNet
from reproduce.config.schema import Augment
from reproduce.data.pipeline import augment
from reproduce.data.pipeline.multicrop import AUGMENT_PARAMETERS, draw_augment_parameters
from reproduce.data.pipeline.sampler import rng_for
from reproduce.engine.optimizer import Larc
from tests.gpu.trainings import CONFIGS, assert_close_to, build_training, gradients

CPU = torch.device("cpu")
LEVEL = 1 / 255
"""One step of an 8-bit pixel."""
STRONG = Augment(0.5, [0.8, 0.8, 0.8, 0.2], 0.8, 0.2, 0.5, [0.1, 2.0])
NUM_CROPS, SIZE_PX = 24, 48
HEADS = ("projection_head.", "prototypes.", "fc.")


def test_trunk_features_gradients_and_running_statistics(device: torch.device) -> None:
    torch.manual_seed(0)
    exact = ResNet(0.25, blocks=(2, 1, 1, 1)).double()
    found = copy.deepcopy(exact).to(device, torch.float32).to(memory_format=torch.channels_last)
    images, direction = torch.randn(4, 3, 64, 64), torch.randn(4, exact.num_features)
    features = found(images.to(device).contiguous(memory_format=torch.channels_last))
    expected = exact(images.double())
    assert_close_to(features, expected, 1e-4)
    (features * direction.to(device)).sum().backward()
    (expected * direction.double()).sum().backward()
    ours, theirs = gradients(found), gradients(exact)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert_close_to(ours[name], value, 0.02)
    buffers = dict(exact.named_buffers())
    for name, value in found.named_buffers():
        assert_close_to(value.double(), buffers[name].double(), 1e-4)


def crops() -> Tensor:
    """Soft random images `(NUM_CROPS, 3, SIZE_PX, SIZE_PX)` uint8."""
    coarse = torch.rand(NUM_CROPS, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, SIZE_PX, mode="bicubic").clamp(0, 1).mul(255).byte()


def some(low: float, high: float) -> Tensor:
    return torch.linspace(low, high, NUM_CROPS)


OPERATIONS: dict[str, tuple[Callable[..., None], Tensor]] = {
    "brightness": (augment.adjust_brightness_, some(0.2, 1.8)),
    "contrast": (augment.adjust_contrast_, some(0.2, 1.8)),
    "saturation": (augment.adjust_saturation_, some(0.2, 1.8)),
    "hue": (augment.adjust_hue_, some(-0.2, 0.2)),
    "blur": (augment.gaussian_blur_, some(0.1, 2.0)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_of_the_augmentation(device: torch.device, name: str) -> None:
    apply, factors = OPERATIONS[name]
    found, exact = crops().to(device).float() / 255, crops().double() / 255
    apply(found, factors.to(device))
    apply(exact, factors.double())
    assert (found.cpu() - exact).abs().max() < LEVEL / 20


def test_the_whole_augmentation(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the CPU's way, in blocks of a few crops; on the CPU itself, a GPU's way: all crops in one block."""
    rows = torch.from_numpy(
        np.stack([draw_augment_parameters(rng_for(0, 0, seed), STRONG) for seed in range(NUM_CROPS)])
    )
    assert all(0 < (rows[:, AUGMENT_PARAMETERS.index(name)] > 0).sum() < NUM_CROPS for name in ("flip", "gray", "blur"))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.228, 0.224, 0.225])
    monkeypatch.setitem(augment.BLOCK_PIXELS, "cpu", 5 * SIZE_PX**2)
    expected = augment.augment(crops(), rows, mean, std)
    monkeypatch.setitem(augment.BLOCK_PIXELS, "cpu", augment.BLOCK_PIXELS["cuda"])
    found = augment.augment(crops().to(device), rows, mean.to(device), std.to(device))
    assert found.device.type == device.type
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (found.cpu() - expected).abs().max() < LEVEL / 20 / float(std.min())


@pytest.mark.parametrize("num_prototypes", [300, 3000])
def test_sinkhorn(device: torch.device, num_prototypes: int) -> None:
    rows, prototypes = (
        F.normalize(torch.randn(n, 16, generator=torch.Generator().manual_seed(n))) for n in (64, num_prototypes)
    )
    scores = rows @ prototypes.T
    exact = torch.exp(scores.double() / 0.05)
    for _ in range(3):
        exact /= exact.sum(dim=0)
        exact /= exact.sum(dim=1, keepdim=True)
    assert_close_to(sinkhorn(scores.to(device), 0.05, 3), exact, 1e-4)


def test_larc_equals_a_loop_over_parameters(device: torch.device) -> None:
    draw = torch.Generator().manual_seed(0)
    given = [(torch.randn(n, 7, generator=draw), torch.randn(n, 7, generator=draw)) for n in range(1, 9)]
    given += [(torch.zeros(5), torch.ones(5)), (torch.ones(5), torch.zeros(5))]
    parameters = [torch.nn.Parameter(weight.clone().to(device)) for weight, _ in given]
    for parameter, (_, gradient) in zip(parameters, given, strict=True):
        parameter.grad = gradient.clone().to(device)
    Larc(parameters, lr=0.5, momentum=0.9, weight_decay=1e-2, trust_coefficient=0.001).step()
    for parameter, (weight, gradient) in zip(parameters, given, strict=True):
        w, g = weight.double(), gradient.double()
        w_norm, g_norm = float(w.norm()), float(g.norm())
        rate = 0.001 * w_norm / (g_norm + 1e-2 * w_norm + 1e-8)
        step = rate * (g + 1e-2 * w) if w_norm and g_norm else g
        torch.testing.assert_close(parameter.detach().cpu().double(), w - 0.5 * step, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", CONFIGS)
def test_steps_of_each_method(device: torch.device, name: str) -> None:
    """The first step's gradients, and the losses of four."""
    found, exact = build_training(name, device), build_training(name, CPU, dtype=torch.float64)
    first = [training.trainer.task.forward(training.batches[0], 0) for training in (found, exact)]
    for output in first:
        output.loss.backward()
    ours, theirs = gradients(found.net), gradients(exact.net)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        if value.norm() > 1e-6:  # a bias in front of a BatchNorm has no gradient but rounding
            # Deep below, a value that rounding takes to the other side of a ReLU counts among few.
            assert_close_to(ours[key], value, 1e-3 if key.startswith(HEADS) else 0.05)
    losses, expected = found.losses(0, 4), exact.losses(0, 4)
    assert all(loss.device.type == device.type for loss in losses)
    assert [loss.item() for loss in losses] == pytest.approx([loss.item() for loss in expected], rel=1e-3)
