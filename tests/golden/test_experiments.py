"""Every experiment and evaluation, resolved, at every scale: a default that changes shows in the diff of these files.

To take a change up: `python -m tests.golden.test_experiments`, and read the diff.
"""

import functools
import importlib
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import DictConfig, OmegaConf

from models.methods.registry import METHODS, build_network, parse_config
from models.networks.heads import MultiCropNet
from reproduce.config.compose import compose, group_options
from reproduce.config.identity import identity
from reproduce.config.schema import Network
from reproduce.config.validate import to_dataclass
from reproduce.memory import NUM_GPUS

GOLDEN = Path(__file__).parent


@functools.cache
def pretraining(experiment: str, scale: str) -> DictConfig:
    return compose("pretrain", [f"experiment={experiment}", f"scale={scale}"])


@functools.cache
def evaluation(name: str, scale: str) -> DictConfig:
    return compose("evaluate", [f"eval={name}", "checkpoint=any", f"scale={scale}"])


def resolved(scale: str) -> str:
    """All that decides what runs compute at a scale, as YAML."""
    configs = {name: identity(pretraining(name, scale)) for name in group_options("experiment")}
    configs |= {name: identity(evaluation(name, scale)) for name in group_options("eval")}
    return yaml.safe_dump(configs, sort_keys=True, default_flow_style=None, width=120)


@pytest.mark.parametrize("scale", group_options("scale"))
@pytest.mark.parametrize("experiment", group_options("experiment"))
def test_every_experiment_is_complete_at_every_scale(experiment: str, scale: str) -> None:
    cfg = pretraining(experiment, scale)
    assert cfg.name == experiment
    assert not OmegaConf.missing_keys(cfg.dataset)


@pytest.mark.parametrize("scale", group_options("scale"))
@pytest.mark.parametrize("name", group_options("eval"))
def test_every_evaluation_is_complete_at_every_scale(name: str, scale: str) -> None:
    cfg = evaluation(name, scale)
    assert cfg.name == name
    to_dataclass(cfg.protocol, importlib.import_module(f"evals.{cfg.protocol.name}").ProtocolConfig, "protocol")


@pytest.mark.parametrize("scale", group_options("scale"))
def test_what_each_experiment_resolves_to(scale: str) -> None:
    now, then = resolved(scale), (GOLDEN / f"experiments-{scale}.yaml").read_text()
    assert now == then, "meant so? `python -m tests.golden.test_experiments` takes it up"


@pytest.mark.parametrize(
    ("experiment", "millions"),
    [("swav_800ep", 23.5), ("swav_w2_400ep", 93.9), ("swav_w4_400ep", 375.4), ("swav_w5_400ep", 586.5)],
)
def test_parameters_of_each_trunk(experiment: str, millions: float) -> None:
    """B.2 and Table 2 (which prints 188 for R50-w2: an erratum)."""
    network = pretraining(experiment, "paper").network
    with torch.device("meta"):
        net = MultiCropNet(network.width, network.head_hidden_dim, network.embedding_dim, 3000, network.head_batchnorm)
    outside = ("projection_head", "prototypes")
    count = sum(value.numel() for name, value in net.named_parameters() if not name.startswith(outside))
    assert round(count / 1e6, 1) == millions


@pytest.mark.parametrize("experiment", [name for name in group_options("experiment") if name.startswith("swav")])
def test_batchnorm_groups_of_swav_are_those_of_the_code_published_with_the_scripts(experiment: str) -> None:
    """Of num_gpus // 8 GPUs each, i.e. an eighth of a large batch; a small batch is one group."""
    cfg = pretraining(experiment, "paper")
    large = cfg.batch_size > 256
    assert cfg.network.batchnorm_group_size == (cfg.batch_size // 8 if large else None)
    if large and experiment in NUM_GPUS:
        num_gpus = NUM_GPUS[experiment][0]
        assert cfg.network.batchnorm_group_size == num_gpus // 8 * (cfg.batch_size // num_gpus)


def test_every_methods_trunk_has_the_layers_of_its_scale() -> None:
    """At lite a first convolution of 3x3, and one block a stage."""
    seen = set()
    for experiment in group_options("experiment"):
        cfg = pretraining(experiment, "lite")
        if cfg.method.name in seen or cfg.method.name == "none":
            continue
        seen.add(cfg.method.name)
        section = OmegaConf.to_container(cfg.method)
        assert isinstance(section, dict)
        config, _ = parse_config({str(key): value for key, value in section.items()})
        net = build_network(to_dataclass(cfg.network, Network, "network"), config, num_classes=10)
        first = [
            value.shape[2:]
            for name, value in net.named_parameters()
            if name.split(".")[-2:] == ["conv1", "weight"] and "layer" not in name
        ]
        assert first and set(first) == {(3, 3)}, experiment
        assert not any(".1.conv1" in name for name, _ in net.named_parameters()), experiment
    assert seen == METHODS.keys()


@pytest.mark.parametrize("experiment", group_options("experiment"))
def test_pretraining_at_scale_paper_has_the_precision_of_its_authors_code(experiment: str) -> None:
    """Every SwAV script has fp16, and Table 1 mixed precision; DeepCluster-v2, MoCo and torchvision train in fp32."""
    half = experiment.startswith(("swav", "simclr"))
    assert pretraining(experiment, "paper").precision == ("fp16" if half else "fp32")
    assert pretraining(experiment, "smoke").precision == "fp32"


def test_evaluations_at_scale_paper_are_in_full_precision() -> None:
    assert {evaluation(name, "paper").precision for name in group_options("eval")} == {"fp32"}


if __name__ == "__main__":
    for name in group_options("scale"):
        (GOLDEN / f"experiments-{name}.yaml").write_text(resolved(name))
