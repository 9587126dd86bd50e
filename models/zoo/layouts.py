"""How publishers lay out a ResNet-50's tensors, and the way from each layout to torchvision's names of the trunk.

A layout is a function from a checkpoint's content to the trunk's tensors. It passes over heads, queues and optimisers;
what it doesn't find, `models.zoo.load.load_trunk` lists.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from models.networks.resnet import BLOCKS_R50

Layout = Callable[[Mapping[str, Any]], dict[str, Tensor]]


def torchvision(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Torchvision's names: ours, the released SwAV, DeepCluster-v2 and SeLa-v2, and torchvision's own.

    Wrapped in "model" or "state_dict" or not, names with `module.` or not.
    """
    for wrapper in ("model", "state_dict"):
        content = _inside(content, wrapper)
    return _below(r"module\.", content) or _below("", content)


def moco(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """MoCo and PCL: the query encoder's are the trunk's; the key encoder's moving average is not what was evaluated."""
    return _below(r"module\.encoder_q\.", _inside(content, "state_dict"))


def vissl(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """VISSL: trunk and heads apart, the trunk's tensors below `_feature_blocks.`."""
    for wrapper in ("classy_state_dict", "base_model", "model", "trunk"):
        content = _inside(content, wrapper)
    return _below(r"(?:trunk\.)?(?:base_model\.)?_feature_blocks\.", content)


def simclr_tensorflow(variables: Mapping[str, Any]) -> dict[str, Tensor]:
    """SimCLR's TensorFlow variables: numbered in the order in which the network was built, kernels as HWIO."""
    parts = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
    weights: dict[str, Tensor] = {}
    for number, (convolution, norm) in enumerate(_as_simclr_builds()):
        suffix = f"_{number}" if number else ""
        kernel = variables.get(f"base_model/conv2d{suffix}/kernel")
        if kernel is not None:
            weights[f"{convolution}.weight"] = kernel.permute(3, 2, 0, 1).contiguous()
        for theirs, ours in parts.items():
            value = variables.get(f"base_model/batch_normalization{suffix}/{theirs}")
            if value is not None:
                weights[f"{norm}.{ours}"] = value
    return weights


LAYOUTS: dict[str, Layout] = {
    "torchvision": torchvision,
    "moco": moco,
    "vissl": vissl,
    "simclr_tensorflow": simclr_tensorflow,
}


class SamePool(nn.MaxPool2d):
    """Max-pooling, `SamePool(3, stride=2)`, padded as TensorFlow's SAME: sides of H become `ceil(H / 2)`.

    An even side is padded after its end only, where torch pads on both: the windows then lie one pixel further.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Pool."""
        height, width = x.shape[-2:]
        return super().forward(F.pad(x, (width % 2, 1, height % 2, 1), value=-math.inf))


def _as_simclr_builds() -> Iterator[tuple[str, str]]:
    """Names of each convolution and its BatchNorm: a block's projection shortcut comes first, not last."""
    yield "conv1", "bn1"
    for stage, num_blocks in enumerate(BLOCKS_R50, 1):
        for block in range(num_blocks):
            at = f"layer{stage}.{block}"
            if block == 0:
                yield f"{at}.downsample.0", f"{at}.downsample.1"
            for number in (1, 2, 3):
                yield f"{at}.conv{number}", f"{at}.bn{number}"


def _inside(content: Mapping[str, Any], wrapper: str) -> Mapping[str, Any]:
    inner = content.get(wrapper)
    return inner if isinstance(inner, Mapping) else content


def _below(prefix: str, content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors whose names start with a prefix (a regular expression), without it."""
    found = {name: re.match(prefix, name) for name, value in content.items() if isinstance(value, Tensor)}
    return {name[match.end() :]: content[name] for name, match in found.items() if match}
