"""ResNet-161, the network of CPC v2 (Hénaff et al. 2020), whose code and weights were never published.

The paper's description: a ResNet-101 without its fourth stack, whose third stack has 46 blocks of 4096 channels and
bottlenecks of 512 (from 23 of 1024 and 256), and layer normalization in place of BatchNorm. It leaves open what decides
the last million of parameters. Here blocks are pre-activation ones, as in CPC's first paper, and a layer norm covers
channels and pixels, with a scale and an offset per channel.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from models.networks.trunk import Trunk

STACKS = ((3, 64, 256), (4, 128, 512), (46, 512, 4096))
"""Blocks, channels of the bottleneck, and channels of the output of each stack."""


class ResNet161(Trunk):
    """CPC v2's encoder: images, or patches of them, `(N, 3, H, W)` to pooled features `(N, 4096)`."""

    num_features = STACKS[-1][2]

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        blocks, channels = [], 64
        for number, (num_blocks, middle, out_channels) in enumerate(STACKS):
            for block in range(num_blocks):
                stride = 2 if number and not block else 1
                blocks.append(PreActivationBlock(channels, middle, out_channels, stride))
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.norm = _layer_norm(channels)

    def forward(self, images: Tensor) -> Tensor:
        """Return pooled features `(N, 4096)` of images `(N, 3, H, W)`."""
        x = self.blocks(self.pool(self.stem(images)))
        return F.relu(self.norm(x)).mean(dim=(2, 3))


class PreActivationBlock(nn.Module):
    """A bottleneck whose norms come before its convolutions (He et al. 2016), with layer norms."""

    def __init__(self, in_channels: int, middle: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = _layer_norm(in_channels), _layer_norm(middle), _layer_norm(middle)
        self.conv1 = nn.Conv2d(in_channels, middle, kernel_size=1, bias=False)
        self.conv2 = nn.Conv2d(middle, middle, kernel_size=3, stride=stride, padding=1, bias=False)
        self.conv3 = nn.Conv2d(middle, out_channels, kernel_size=1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, in_channels, H, W)` to `(N, out_channels, H', W')`."""
        active = F.relu(self.norm1(x))
        shortcut = self.shortcut(active) if self.shortcut else x
        inner = self.conv2(F.relu(self.norm2(self.conv1(active))))
        return shortcut + self.conv3(F.relu(self.norm3(inner)))


def _layer_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(1, channels)
