"""The paper's trunk: ResNet-50 with all widths multiplied (B.2). Tensor names as in torchvision."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import Bottleneck

from models.networks.trunk import Trunk
from reproduce.errors import UserError

BLOCKS_R50 = (3, 4, 6, 3)
BLOCKS = {14: (1, 1, 1, 1), 26: (2, 2, 2, 2), 50: BLOCKS_R50}
"""Bottleneck blocks in each of the four stages, by the number of layers. The paper's trunks have 50; small pictures
need fewer."""


class Stem(NamedTuple):
    """The first convolution, and whether a 3x3 max pooling of stride 2 follows its ReLU."""

    kernel_px: int
    stride: int
    pooling: bool


STEM_R50 = "7x7"
STEMS = {STEM_R50: Stem(7, 2, pooling=True), "3x3": Stem(3, 2, pooling=False)}
"""By the size of the kernel. The paper's trunks have 7x7, which divides the sides of an image by 4 before the first
stage; 3x3 divides those of 32-pixel images by 2. (The usual stem of such images divides by 1: four times the cost.)"""


class ResNet(Trunk):
    """Bottleneck ResNet without classifier: images `(N, 3, H, W)` to pooled features `(N, num_features)`.

    `width` multiplies all channels, so `num_features = 2048 * width`. Fractional widths serve the smoke scale; channels
    are rounded to multiples of 4.

    As in the released code, the last BatchNorm of each residual branch starts at one, not at zero, and convolutions
    start from Kaiming's fan-out normal. The released code pads its input by 1 and convolves with padding 2, which
    equals the padding of 3 here.

    `in_channels` is the number of channels of an image, `stem_channels` that of the first convolution's output; None
    takes it from the width, too. `stem` is a key of `STEMS`.

    With `activation_checkpointing`, training keeps each block's input only and recomputes the rest in the backward.
    """

    activation_checkpointing = False

    def __init__(
        self,
        width: float = 1,
        blocks: Sequence[int] = BLOCKS_R50,
        in_channels: int = 3,
        stem_channels: int | None = None,
        stem: str = STEM_R50,
    ) -> None:
        super().__init__()
        base = max(4, round(64 * width / 4) * 4)
        channels = stem_channels or base
        kernel_px, stride, pooling = STEMS[stem]
        self.num_features = 8 * base * Bottleneck.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, kernel_px, stride, padding=kernel_px // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool: nn.Module = nn.MaxPool2d(kernel_size=3, stride=2, padding=1) if pooling else nn.Identity()
        self.layer1 = _stage(channels, base, blocks[0], stride=1)
        self.layer2 = _stage(4 * base, 2 * base, blocks[1], stride=2)
        self.layer3 = _stage(8 * base, 4 * base, blocks[2], stride=2)
        self.layer4 = _stage(16 * base, 8 * base, blocks[3], stride=2)
        self.avgpool: nn.Module = nn.AdaptiveAvgPool2d(1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Return pooled features `(N, num_features)` of images `(N, 3, H, W)`."""
        return self.pooled_features(images)

    def pooled_features(self, images: Tensor) -> Tensor:
        """Return what `forward` returns of a trunk; a subclass with heads, whose `forward` takes crops, calls this."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for block in (*self.layer1, *self.layer2, *self.layer3, *self.layer4):
            x = _checkpointed_block(block, x) if self.activation_checkpointing and self.training else block(x)
        return self.avgpool(x).flatten(1)


def require_stem(stem: str | None) -> str:
    """Return the key of `STEMS` that `network.stem` means; None is a ResNet-50's. Raises `UserError` for another."""
    if stem is None:
        return STEM_R50
    if stem not in STEMS:
        raise UserError(f"network.stem={stem} is no stem that the trunk has: {', '.join(STEMS)}")
    return stem


def blocks_of_depth(depth: int | None) -> tuple[int, ...]:
    """Return the blocks of a trunk's four stages; None is a ResNet-50. Raises `UserError` for an unknown depth."""
    if depth is None:
        return BLOCKS_R50
    if depth not in BLOCKS:
        raise UserError(f"network.depth={depth} is no depth that the trunk has: {', '.join(map(str, BLOCKS))}")
    return BLOCKS[depth]


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


def _checkpointed_block(block: nn.Module, x: Tensor) -> Tensor:
    """Return `block(x)`; the backward pass recomputes its inner activations."""
    contexts = lambda: (nullcontext(), _frozen_running_stats(block))  # noqa: E731
    out: Tensor = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
    return out


@contextmanager
def _frozen_running_stats(block: nn.Module) -> Iterator[None]:
    """Keep BatchNorm's running statistics: the recomputation must not count a batch twice."""
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
    """Build a ResNet-50 that is `width` times as wide: pooled features `(N, 2048 * width)`."""
    return ResNet(width)
