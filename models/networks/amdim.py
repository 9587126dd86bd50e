"""AMDIM's encoder (Bachman et al. 2019, section 3.5), the "Custom-RN" of Table 2, for images of 128 px.

Follows the released code (Philip-Bachman/amdim-public) as its public weights run: without BatchNorm but at the end.
That code builds unused norms and, for training, heads on two further layers. Neither is here, nor in Table 2's count.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from models.networks.trunk import Trunk


class AmdimEncoder(Trunk):
    """The encoder of AMDIM: images `(N, 3, 128, 128)` to features `(N, num_features)`.

    `channels` is the first convolution's number (ndf there), `depth` the number of blocks of each stage. Three
    stages halve the sides and double the channels, two more crop the sides without padding; so images of 128 px end as
    one pixel. Larger ones end as a map, which is averaged.
    """

    def __init__(self, channels: int = 320, num_features: int = 2560, depth: int = 10) -> None:
        super().__init__()
        self.num_features = num_features
        self.stem = nn.Sequential(
            *(nn.Conv2d(3, channels, kernel_size=5, stride=2, padding=2, padding_mode="reflect"), nn.ReLU()),
            *(nn.Conv2d(channels, channels, kernel_size=3), nn.ReLU()),
        )
        last = 8 * channels
        self.stages = nn.Sequential(
            _stage(channels, 2 * channels, kernel_size=4, stride=2, depth=depth),
            _stage(2 * channels, 4 * channels, kernel_size=4, stride=2, depth=depth),
            _stage(4 * channels, last, kernel_size=2, stride=2, depth=depth),
            _stage(last, last, kernel_size=3, stride=1, depth=depth),
            _stage(last, last, kernel_size=3, stride=1, depth=depth),
            _stage(last, num_features, kernel_size=3, stride=1, depth=1),
        )
        self.norm = nn.BatchNorm2d(num_features)

    def forward(self, images: Tensor) -> Tensor:
        """Return features `(N, num_features)` of images `(N, 3, H, W)`; sides are at least 128."""
        return self.norm(self.stages(self.stem(images))).mean(dim=(2, 3))


class AmdimBlock(nn.Module):
    """Two convolutions, the second of 1 x 1, beside an average pooling; new channels of the shortcut are zeros."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.new_channels = kernel_size, stride, out_channels - in_channels
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size, stride, bias=False)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, in_channels, H, W)` to `(N, out_channels, H', W')`."""
        shortcut = F.pad(F.avg_pool2d(x, self.kernel_size, self.stride), (0, 0, 0, 0, 0, self.new_channels))
        return self.conv2(F.relu(self.conv1(x))) + shortcut


def _stage(in_channels: int, out_channels: int, kernel_size: int, stride: int, depth: int) -> nn.Sequential:
    first = AmdimBlock(in_channels, out_channels, kernel_size, stride)
    return nn.Sequential(first, *(AmdimBlock(out_channels, out_channels, 1, 1) for _ in range(depth - 1)))
