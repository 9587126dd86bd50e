"""Layouts: how each publisher names a ResNet-50's tensors, mapped to torchvision's names.

A layout is a function from a checkpoint's content to tensors by our names: torchvision's for the trunk, and
`projection_head.{0,1,3}` for the head, where we read the publisher's. It ignores queues and optimizers. It does not
report missing tensors; `models.zoo.load` does.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from models.networks.resnet import BLOCKS_R50

Layout = Callable[[Mapping[str, Any]], dict[str, Tensor]]
BATCH_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
"""TensorFlow's names of BatchNorm's variables, and ours."""


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
    """Read SimCLR's TensorFlow variables."""
    convolutions, norms = zip(*_simclr_build_order(), strict=True)
    return from_tensorflow(strip_prefix("base_model/", variables), convolutions, norms)


def from_tensorflow(
    variables: Mapping[str, Any], convolutions: Iterable[str], norms: Iterable[str]
) -> dict[str, Tensor]:
    """Read TensorFlow variables, which are numbered in the order of construction, with kernels in HWIO layout.

    `convolutions` and `norms` are our names of the layers, in that order.
    """
    weights: dict[str, Tensor] = {}
    for number, convolution in enumerate(convolutions):
        kernel = variables.get(f"conv2d{_suffix(number)}/kernel")
        if isinstance(kernel, Tensor) and kernel.ndim == 4:
            weights[f"{convolution}.weight"] = kernel.permute(3, 2, 0, 1).contiguous()
    for number, norm in enumerate(norms):
        for theirs, ours in BATCH_NORM.items():
            value = variables.get(f"batch_normalization{_suffix(number)}/{theirs}")
            if isinstance(value, Tensor):
                weights[f"{norm}.{ours}"] = value
    return weights


def _suffix(number: int) -> str:
    return f"_{number}" if number else ""


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


def block_counts(weights: Mapping[str, Tensor], trunk: str = "") -> tuple[int, ...]:
    """Return how many blocks a ResNet has in each of the four stages; its tensors' names begin with `trunk`."""
    names = {name.rsplit(".", 1)[0] for name in weights if name.endswith(".conv1.weight")}
    return tuple(sum(name.startswith(f"{trunk}layer{stage}.") for name in names) for stage in range(1, 5))
