"""Layouts: how each publisher names a ResNet-50's tensors, mapped to torchvision's names.

A layout is a function from a checkpoint's content to tensors by our names: torchvision's for the trunk, and
`projection_head.{0,1,3}` for the head, where we read the publisher's. It ignores queues and optimizers. It does not
report missing tensors; `models.zoo.load` does.
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
    """Read torchvision names: our checkpoints, the released SwAV, DeepCluster-v2 and SeLa-v2, torchvision's own.

    The tensors may be nested in "model" or "state_dict", and the names may start with `module.`.
    """
    for wrapper in ("model", "state_dict"):
        content = unwrap(content, wrapper)
    return strip_prefix(r"module\.", content) or strip_prefix("", content)


def moco(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read MoCo and PCL. The trunk is the query encoder, which the papers evaluate, not the averaged key encoder.

    Their `fc` is the projection head: one linear layer, or two with a ReLU between them.
    """
    tensors = strip_prefix(r"module\.encoder_q\.", unwrap(content, "state_dict"))
    return {re.sub(r"^fc\.(\d\.)?", _moco_head_layer, name): value for name, value in tensors.items()}


def _moco_head_layer(layer: re.Match[str]) -> str:
    return "projection_head.3." if layer[1] == "2." else "projection_head.0."


def vissl(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read VISSL, which keeps trunk and heads apart; trunk names start with `_feature_blocks.`.

    Weights that VISSL converted from others' files have the trunk alone, in `model_state_dict`.
    """
    for wrapper in ("model_state_dict", "classy_state_dict", "base_model", "model", "trunk"):
        content = unwrap(content, wrapper)
    return strip_prefix(r"(?:trunk\.)?(?:base_model\.)?_feature_blocks\.", content)


def simclr_tensorflow(variables: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read SimCLR's TensorFlow variables: numbered in the order of construction, with kernels in HWIO layout."""
    parts = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
    weights: dict[str, Tensor] = {}
    for number, (convolution, norm) in enumerate(_simclr_build_order()):
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
    """Max-pooling with TensorFlow's SAME padding, `SamePool(3, stride=2)`: a side H becomes `ceil(H / 2)`.

    An even side is padded at its end only. torch pads both ends, which shifts the windows by one pixel.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Pool `(N, C, H, W)`."""
        height, width = x.shape[-2:]
        return super().forward(F.pad(x, (width % 2, 1, height % 2, 1), value=-math.inf))


def _simclr_build_order() -> Iterator[tuple[str, str]]:
    """Yield the names of each convolution and its BatchNorm; a block's projection shortcut comes first, not last."""
    yield "conv1", "bn1"
    for stage, num_blocks in enumerate(BLOCKS_R50, 1):
        for block in range(num_blocks):
            at = f"layer{stage}.{block}"
            if block == 0:
                yield f"{at}.downsample.0", f"{at}.downsample.1"
            for number in (1, 2, 3):
                yield f"{at}.conv{number}", f"{at}.bn{number}"


def unwrap(content: Mapping[str, Any], wrapper: str) -> Mapping[str, Any]:
    """Return the mapping that `content` has under this name, or `content` itself if there is none."""
    inner = content.get(wrapper)
    return inner if isinstance(inner, Mapping) else content


def strip_prefix(prefix: str, content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors whose names match a prefix (a regular expression), with the prefix removed."""
    found = {name: re.match(prefix, name) for name, value in content.items() if isinstance(value, Tensor)}
    return {name[match.end() :]: content[name] for name, match in found.items() if match}
