"""Channels-last at every BatchNorm, groups of BatchNorm, activation checkpointing."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from reproduce.engine.batchnorm import BatchNormGroups, convert_batchnorm
from tests.gpu.trainings import BATCH, CONFIGS, assert_close_to, build_training, gradients

GROUPED = BatchNormGroups(1, per_rank=2, images=BATCH // 2)


@pytest.mark.parametrize(("name", "precision"), [*((name, "fp32") for name in CONFIGS), ("swav", "bf16")])
@pytest.mark.parametrize("groups", [None, GROUPED], ids=["batch", "groups"])
def test_every_batchnorm_gets_and_returns_channels_last(
    device: torch.device, name: str, groups: BatchNormGroups | None, precision: str
) -> None:
    training = build_training(name, device, groups=groups, precision=precision)
    seen: list[bool] = []

    def look(_module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        maps = [tensor for tensor in (*inputs, output) if tensor.dim() == 4 and min(tensor.shape[1:]) > 1]
        seen.extend(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in maps)

    for network in (training.net, *training.method.extra_networks):
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.register_forward_hook(look)
    training.losses(0, 1)
    assert len(seen) > 20
    assert all(seen)


@pytest.mark.parametrize("shape", [(6,), (6, 5, 5)])
def test_grouped_batchnorm_equals_separate_ones(device: torch.device, shape: tuple[int, ...]) -> None:
    """Outputs, gradients and running statistics; those of the first group, as rank 0's would be."""
    num_crops, num_groups, images = 3, 2, 4
    torch.manual_seed(0)
    exact = (nn.BatchNorm1d if len(shape) == 1 else nn.BatchNorm2d)(6)
    nn.init.uniform_(exact.weight)
    exact = exact.double()
    found = convert_batchnorm(copy.deepcopy(exact).to(device, torch.float32), BatchNormGroups(1, num_groups, images))
    x, direction = torch.randn(2, num_crops, num_groups, images, *shape)
    ours = x.flatten(0, 2).to(device)
    if len(shape) == 3:
        ours = ours.contiguous(memory_format=torch.channels_last)
    ours.requires_grad_()
    normalized = found(ours)
    (normalized * direction.flatten(0, 2).to(device)).sum().backward()
    assert ours.grad is not None
    rows = num_crops, num_groups, images
    weight_gradient = torch.zeros(6, dtype=torch.float64)
    for group in range(num_groups):
        separate, own = copy.deepcopy(exact), x[:, group].double().flatten(0, 1).requires_grad_()
        expected = separate(own)
        (expected * direction[:, group].double().flatten(0, 1)).sum().backward()
        assert own.grad is not None
        assert_close_to(normalized.unflatten(0, rows)[:, group].flatten(0, 1), expected, 1e-5)
        assert_close_to(ours.grad.unflatten(0, rows)[:, group].flatten(0, 1), own.grad, 1e-4)
        assert separate.weight.grad is not None
        weight_gradient += separate.weight.grad
        if group == 0:
            for name, value in separate.named_buffers():
                assert_close_to(dict(found.named_buffers())[name], value, 1e-5)
    found_gradient = found.get_parameter("weight").grad
    assert found_gradient is not None
    assert_close_to(found_gradient, weight_gradient, 1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("groups", [None, GROUPED], ids=["batch", "groups"])
def test_activation_checkpointing_changes_no_number(
    device: torch.device, groups: BatchNormGroups | None, precision: str
) -> None:
    plain, checkpointed = (
        build_training("swav", device, precision=precision, groups=groups, activation_checkpointing=active)
        for active in (False, True)
    )
    for training in (plain, checkpointed):
        training.losses(0, 1)
    expected, found = gradients(plain.net), gradients(checkpointed.net)
    assert expected.keys() == found.keys()
    for name, value in expected.items():  # kernels that add atomically differ from call to call
        assert_close_to(found[name], value, 1e-5 if precision == "fp32" else 1e-2)
    buffers = dict(plain.net.named_buffers())
    for name, value in checkpointed.net.named_buffers():
        assert_close_to(value, buffers[name], 1e-6)
