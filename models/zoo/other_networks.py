"""Public weights of networks that are no plain ResNets: how each publisher names their tensors (Table 2)."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from models.networks.amdim import AmdimEncoder
from models.networks.cmc import CmcPair
from models.networks.efficientnet import EfficientNetB7
from models.networks.resnet import STEM_R50
from models.networks.revnet import NUM_BLOCKS, RevNet
from models.networks.trunk import Trunk
from models.zoo.layouts import Layout, block_counts, from_tensorflow, strip_prefix, torchvision, unwrap


@dataclass(frozen=True)
class OtherNetwork:
    """How a file becomes a network: its layout, a tensor that only this network has, and what builds the network.

    `build` gets the tensors by our names, whose shapes decide the sizes.
    """

    layout: Layout
    marker: str
    build: Callable[[Mapping[str, Tensor]], Trunk]


def amdim(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read AMDIM's released code: layers are numbered, and unused norms and the heads of training are left out."""
    parts = {0: "stem.0", 1: "stem.2", **{n: f"stages.{i}" for i, n in enumerate((2, 3, 4, 6, 7))}, 8: "stages.5.0"}
    layers = strip_prefix(r"encoder\.module\.layer_list\.", unwrap(content, "model"))
    found = {}
    for name, value in layers.items():
        number, _, rest = name.partition(".")
        rest = re.sub(r"^(layer_list|conv)\.", "", rest)
        if number == "9":
            found[f"norm.{rest.removeprefix('bn.')}"] = value
        elif number.isdecimal() and int(number) in parts and not re.match(r"(\d+\.)?bn1\.", rest):
            found[f"{parts[int(number)]}.{rest}"] = value
    return found


def _build_amdim(weights: Mapping[str, Tensor]) -> Trunk:
    depth = sum(re.fullmatch(r"stages\.0\.\d+\.conv1\.weight", name) is not None for name in weights)
    num_features = len(weights["norm.weight"]) if "norm.weight" in weights else 1
    return AmdimEncoder(len(weights["stem.0.weight"]), num_features, depth)


def cmc(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read CMC's released code, without the heads."""
    pairs = strip_prefix(r"(encoder\.)?(module\.)?(?=(l_to_ab|ab_to_l)\.)", unwrap(content, "model"))
    return {name: value for name, value in pairs.items() if not re.match(r"\w+\.fc\.", name)}


def _build_cmc(weights: Mapping[str, Tensor]) -> Trunk:
    first = weights.get("l_to_ab.layer1.0.conv1.weight")
    stem = "3x3" if weights["l_to_ab.conv1.weight"].shape[-1] == 3 else STEM_R50
    return CmcPair(len(first) / 64 if first is not None else 1, block_counts(weights, "l_to_ab."), stem)


def revnet_tensorflow(variables: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read the TensorFlow variables of Kolesnikov et al. 2019.

    They are those of an exported module, or, below `module/`, of a training. The layer of the pretext task is left out.
    """
    variables = {name.removeprefix("module/"): value for name, value in variables.items()}
    return from_tensorflow(variables, _revnet_convolutions(), _revnet_norms())


def _revnet_branches() -> Iterator[str]:
    for stage, num_blocks in enumerate(NUM_BLOCKS):
        for block in range(num_blocks):
            yield f"stages.{stage}.{block}.branch"


def _revnet_convolutions() -> Iterator[str]:
    yield "stem"
    yield from (f"{branch}.{layer}" for branch in _revnet_branches() for layer in (2, 5, 8))


def _revnet_norms() -> Iterator[str]:
    yield from (f"{branch}.{layer}" for branch in _revnet_branches() for layer in (0, 3, 6))
    yield "norm"


def _build_revnet(weights: Mapping[str, Tensor]) -> Trunk:
    return RevNet(len(weights["stem.weight"]) / 256)


OTHER_NETWORKS: dict[str, OtherNetwork] = {
    "amdim": OtherNetwork(amdim, "stem.0.weight", _build_amdim),
    "cmc": OtherNetwork(cmc, "l_to_ab.conv1.weight", _build_cmc),
    "efficientnet_b7": OtherNetwork(torchvision, "features.0.0.weight", lambda _: EfficientNetB7()),
    "revnet_tensorflow": OtherNetwork(revnet_tensorflow, "stem.weight", _build_revnet),
}
