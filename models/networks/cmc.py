"""CMC's pair of networks (Tian et al. 2020): one sees the lightness of an image, the other its colors.

Follows the released code (HobbitLong/CMC) for ResNets: both are as wide as they are called, but for their first
convolution, which has 64 channels at every width. So the pair of R50-w2 has 187.7 million parameters without heads, the
188 of Table 2: each network is a whole R50-w2, not a half of it.
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from models.networks.resnet import BLOCKS_R50, STEM_R50, ResNet
from models.networks.trunk import Trunk

STEM_CHANNELS = 64
Values = tuple[float | tuple[float, ...], ...]
LAB_CENTER, LAB_RANGE = (50.0, 6.025, -6.6895), (50.0, 92.208, 101.1675)
"""The middle of L, a and b over all colors, and half of their range, by which the released code normalizes."""
RGB_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
"""From linear sRGB, for the observer of 2 degrees."""
WHITE_XYZ = (0.95047, 1.0, 1.08883)
"""The white of daylight, D65."""


class CmcPair(Trunk):
    """Two ResNets `width` times as wide: images `(N, 3, H, W)` to pooled features `(N, num_features)` of both.

    Images are RGB, normalized with `mean` and `std` per channel (`set_normalization`); the pair converts them. The
    first half of the features is the lightness's.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, width: float = 2, blocks: Sequence[int] = BLOCKS_R50, stem: str = STEM_R50) -> None:
        super().__init__()
        self.l_to_ab = ResNet(width, blocks, in_channels=1, stem_channels=STEM_CHANNELS, stem=stem)
        self.ab_to_l = ResNet(width, blocks, in_channels=2, stem_channels=STEM_CHANNELS, stem=stem)
        self.num_features = self.l_to_ab.num_features + self.ab_to_l.num_features
        self.register_buffer("mean", torch.zeros(3), persistent=False)
        self.register_buffer("std", torch.ones(3), persistent=False)

    @property
    def activation_checkpointing(self) -> bool:
        """Whether training keeps only the blocks' inputs, see `ResNet`; of both networks."""
        return self.l_to_ab.activation_checkpointing

    @activation_checkpointing.setter
    def activation_checkpointing(self, value: bool) -> None:
        self.l_to_ab.activation_checkpointing = self.ab_to_l.activation_checkpointing = value

    def set_normalization(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the statistics with which images come normalized; without it, they are RGB in [0, 1]."""
        self.mean.copy_(torch.tensor(list(mean)))
        self.std.copy_(torch.tensor(list(std)))

    def forward(self, images: Tensor) -> Tensor:
        """Return the pooled features `(N, num_features)` of images `(N, 3, H, W)`."""
        return torch.cat(self.views(images), dim=1)

    def views(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of lightness and of colors, each `(N, num_features / 2)`."""
        mean, std = (each.to(images).view(3, 1, 1) for each in (self.mean, self.std))
        lab = normalized_lab(images * std + mean)
        return self.l_to_ab(lab[:, :1]), self.ab_to_l(lab[:, 1:])


def normalized_lab(rgb: Tensor) -> Tensor:
    """Convert sRGB in [0, 1] `(N, 3, H, W)` to L, a and b, each from -1 to 1 over all colors; in fp32 or more."""
    with torch.autocast(rgb.device.type, enabled=False):
        exact = rgb.to(torch.promote_types(rgb.dtype, torch.float32))
        center, scale = (_constant(each, exact).view(3, 1, 1) for each in (LAB_CENTER, LAB_RANGE))
        return (rgb_to_lab(exact) - center) / scale


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """Convert sRGB in [0, 1] `(N, 3, H, W)` to CIE L*a*b* under D65: L from 0 to 100, a and b around 0.

    Values outside [0, 1], which rounding leaves, are clamped.
    """
    rgb = rgb.clamp(0, 1)
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    to_xyz, white = (_constant(each, rgb) for each in (RGB_TO_XYZ, WHITE_XYZ))
    matrix = to_xyz / white.unsqueeze(1)
    xyz = torch.einsum("ij,njhw->nihw", matrix, linear)
    # The clamp keeps the unused branch's gradient and value finite at 0.
    root = torch.where(xyz > 0.008856, xyz.clamp(min=0.008856) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = root.unbind(dim=1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def _constant(values: Values, like: Tensor) -> Tensor:
    """Return `values` as a tensor of the device and dtype of another."""
    if isinstance(like, FakeTensor):  # of an estimate of memory: it has no values, and must not be kept
        return like.new_tensor(values)
    return _uploaded(values, like.device, like.dtype)


@cache
def _uploaded(values: Values, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return `values` as a tensor. Kept, because its upload waits for the device; no buffer, which `to` would round."""
    return torch.tensor(values, device=device, dtype=dtype)
