"""RevNet-50 (Gomez et al. 2017), as Rotation's and BigBiGAN's rows of Table 2 have it, four times as wide.

Follows the code of Kolesnikov et al. 2019 (google/revisiting-self-supervised): residual branches of pre-activation
bottlenecks, TensorFlow's BatchNorm, and stages that double their channels by zeros.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks.trunk import Trunk

NUM_BLOCKS = (3, 4, 6, 3)
EPSILON, MOMENTUM = 1e-3, 0.01
"""Of BatchNorm: TensorFlow's defaults. Its momentum of .99 is the share of the old value."""


class RevNet(Trunk):
    """A RevNet-50 `width` times as wide: images `(N, 3, H, W)` to pooled features `(N, 2048 * width)`."""

    def __init__(self, width: float = 4) -> None:
        super().__init__()
        channels = max(8, round(256 * width / 8) * 8)
        self.stem = nn.Conv2d(3, channels, kernel_size=7, stride=2, padding=3, bias=False)
        stages = []
        for number, num_blocks in enumerate(NUM_BLOCKS):
            half = channels * 2**number // 2
            stages.append(nn.Sequential(*(ReversibleBlock(half) for _ in range(num_blocks))))
        self.stages = nn.ModuleList(stages)
        self.num_features = 8 * channels
        self.norm = _batch_norm(self.num_features)

    def forward(self, images: Tensor) -> Tensor:
        """Return pooled features `(N, num_features)` of images `(N, 3, H, W)`."""
        # The pooling pads with zeros, not with -inf: no ReLU comes before it.
        x = F.max_pool2d(F.pad(self.stem(images), (1, 1, 1, 1)), kernel_size=3, stride=2)
        for number, stage in enumerate(self.stages):
            x = stage(_halved_and_doubled(x) if number else x)
        return F.relu(self.norm(x)).mean(dim=(2, 3))


class ReversibleBlock(nn.Module):
    """A reversible residual block: maps the channels' halves `(x1, x2)` to `(x2, x1 + branch(x2))`."""

    def __init__(self, half: int) -> None:
        super().__init__()
        middle = half // 4
        self.branch = nn.Sequential(
            *(_batch_norm(half), nn.ReLU(), nn.Conv2d(half, middle, kernel_size=1, bias=False)),
            *(_batch_norm(middle), nn.ReLU(), nn.Conv2d(middle, middle, kernel_size=3, padding=1, bias=False)),
            *(_batch_norm(middle), nn.ReLU(), nn.Conv2d(middle, half, kernel_size=1, bias=False)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, of the shape of `x (N, 2 * half, H, W)`."""
        first, second = x.chunk(2, dim=1)
        return torch.cat([second, first + self.branch(second)], dim=1)


def _halved_and_doubled(x: Tensor) -> Tensor:
    """Halve the sides `(N, C, H, W)` by averages, and double the channels by zeros on both sides of them.

    An odd side is rounded up, and its last average is of fewer pixels, as TensorFlow's SAME padding has it.
    """
    pooled = F.avg_pool2d(x, kernel_size=2, stride=2, ceil_mode=True)
    padding = x.shape[1] // 2
    return F.pad(pooled, (0, 0, 0, 0, padding, padding))


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=EPSILON, momentum=MOMENTUM)
