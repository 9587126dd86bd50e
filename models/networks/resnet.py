"""The paper's trunk: ResNet-50 with every width multiplied (B.2), names as in torchvision and the released weights."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import Bottleneck

BLOCKS_R50 = (3, 4, 6, 3)


class ResNet(nn.Module):
    """Bottleneck ResNet up to the pooled features.

    `width` multiplies all channels; fractions serve the smoke scale (channels are rounded to multiples of 4).
    `forward` maps images `(N, 3, H, W)` to pooled features `(N, num_features)`, `num_features = 2048 * width`.

    The released network pads its input by one pixel and then convolves with padding 2: the usual padding 3. Its
    residual branches' last BatchNorms start at one, not at zero, its convolutions from Kaiming's fan-out normal.

    With `activation_checkpointing`, training keeps of each block only its input, and calculates the rest again.
    """

    activation_checkpointing = False

    def __init__(self, width: float = 1, blocks: Sequence[int] = BLOCKS_R50) -> None:
        super().__init__()
        base = max(4, round(64 * width / 4) * 4)
        self.num_features = 8 * base * Bottleneck.expansion
        self.conv1 = nn.Conv2d(3, base, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = _stage(base, base, blocks[0], stride=1)
        self.layer2 = _stage(4 * base, 2 * base, blocks[1], stride=2)
        self.layer3 = _stage(8 * base, 4 * base, blocks[2], stride=2)
        self.layer4 = _stage(16 * base, 8 * base, blocks[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Pooled features `(N, num_features)` of images `(N, 3, H, W)`."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for block in (*self.layer1, *self.layer2, *self.layer3, *self.layer4):
            x = _recomputed(block, x) if self.activation_checkpointing and self.training else block(x)
        return self.avgpool(x).flatten(1)


def _stage(in_channels: int, channels: int, num_blocks: int, stride: int) -> nn.Sequential:
    out_channels = channels * Bottleneck.expansion
    downsample = None
    if stride != 1 or in_channels != out_channels:
        downsample = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
            nn.BatchNorm2d(out_channels),
        )
    first = Bottleneck(in_channels, channels, stride, downsample)
    return nn.Sequential(first, *(Bottleneck(out_channels, channels) for _ in range(num_blocks - 1)))


def _recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """`block(x)`, whose inner activations the backward pass calculates anew."""
    contexts = lambda: (nullcontext(), _running_statistics_stand_still(block))  # noqa: E731
    out: Tensor = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
    return out


@contextmanager
def _running_statistics_stand_still(block: nn.Module) -> Iterator[None]:
    """The second forward pass must not count a batch twice."""
    norms = [module for module in block.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, momentum, num_batches in before:
            norm.momentum = momentum
            norm.num_batches_tracked = num_batches


def resnet50(width: float = 1) -> ResNet:
    """ResNet-50, `width` times as wide: pooled features `(N, 2048 * width)`."""
    return ResNet(width)


def resnet50w2() -> ResNet:
    """93.9 M parameters, features `(N, 4096)`."""
    return ResNet(2)


def resnet50w4() -> ResNet:
    """375.4 M parameters, features `(N, 8192)`."""
    return ResNet(4)


def resnet50w5() -> ResNet:
    """586.5 M parameters, features `(N, 10240)`."""
    return ResNet(5)
