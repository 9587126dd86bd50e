"""What plans say that a method keeps and computes is what it does: they are made without torch, and know it by name."""

from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from models.methods import registry
from models.networks.resnet import ResNet
from reproduce.config.compose import compose, group_options
from reproduce.config.schema import Network
from reproduce.config.validate import to_dataclass
from reproduce.data.pipeline.sampler import StepSampler
from reproduce.harness.plan.workload import workload_of
from reproduce.system import CONF_DIR

NUM_STEPS = 97
"""Of the epoch: the number of images is then no other size of a config."""


def tensors_of(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else []
    return [tensor for value in values for tensor in tensors_of(value)]


def num_pixels(crops: list[Tensor]) -> int:
    return sum(crop.shape[-1] ** 2 for crop in crops)


def experiment_by_method() -> dict[str, str]:
    """One experiment of each option of conf/method."""
    found: dict[str, str] = {}
    for name in group_options("experiment"):
        for default in OmegaConf.load(CONF_DIR / "experiment" / f"{name}.yaml").defaults:
            found |= {method: name for key, method in default.items() if key == "override /method"}
    return {method: name for method, name in found.items() if method != "none"}


@pytest.mark.parametrize("experiment", experiment_by_method().values(), ids=experiment_by_method())
def test_the_workload_of_a_plan_is_what_the_method_keeps_and_computes(experiment: str) -> None:
    """A method with a bank, a second network or rotations that `workload` does not know would be planned too cheap."""
    # One epoch: BoWNet's of rotations, so that each of its crops passes the network as often as RotNet's.
    cfg = compose("pretrain", [f"experiment={experiment}", "scale=smoke", "epochs=1"])
    workload = workload_of(cfg)
    section = OmegaConf.to_container(cfg.method)
    assert isinstance(section, dict)
    config, build = registry.parse_config({str(key): value for key, value in section.items()})
    num_images = NUM_STEPS * cfg.batch_size
    sizes = [view.size_px for view in cfg.crops.views for _ in range(view.num)]
    with torch.device("meta"):  # sizes without numbers
        net = registry.build_network(to_dataclass(cfg.network, Network, "network"), config, num_classes=10)
        method = build(config, net, num_images, cfg.batch_size)
        given = [torch.empty(cfg.batch_size, 3, size, size) for size in sizes]
        method.on_train_start(net, StepSampler(num_images, cfg.batch_size, 1, 0, first_step=1), ())
        crops = method.before_step(1, given, torch.empty(cfg.batch_size))  # at step 0 some methods label all images
    state = method.state_dict()
    bank_values = sum(
        tensor.numel()
        for tensor in tensors_of(state)
        if num_images in tensor.shape and tensor.shape[-1] == cfg.network.embedding_dim
    )
    num_labels = cfg.method.get("num_heads", 0)
    assert workload.values_per_image == bank_values / num_images + num_labels
    assert workload.queue_values == sum(tensor.numel() for tensor in tensors_of(state.get("queue")))
    assert workload.num_networks == sum(isinstance(module, ResNet) for module in net.modules())
    assert workload.has_key_encoder == bool(method.extra_networks)
    assert workload.pixels == max(num_pixels(crops), num_pixels(given))  # MoCo's key encoder gets the other crop
