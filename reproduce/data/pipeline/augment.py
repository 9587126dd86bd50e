"""Multi-crop on the training device: flip, color jitter, grayscale, blur and normalize whole batches (A.2).

Each crop has its own `multicrop.AUGMENT_PARAMETERS`; with equal parameters each operation equals torchvision's on
floats in [0, 1]. The blur equals OpenCV's GaussianBlur of 23 x 23, which the authors' runs used (an early README; their
release has PIL's, which approximates a Gaussian by three box filters).

Operations work in place, on blocks that fit a processor's cache, because memory traffic dominates on a CPU. Parameters
stay on the host, so that selecting the crops of an operation needs no synchronization with the device.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reproduce.data.pipeline.upload import upload

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a gray value (ITU-R BT.601)."""
BLUR_RADIUS_PX = 11
"""Radius of the blur's kernel, 23 x 23, for any standard deviation."""
BLUR_BAND_PX = 112
"""Rows or columns blurred by one matrix product, which skips the pixels out of the kernel's reach."""
BLOCK_PIXELS = {"cpu": 2**16, "cuda": 2**26}
"""Crops are augmented in blocks of so many pixels (at least one crop): 768 KiB on a CPU, a whole batch on a GPU."""


class _Draw(NamedTuple):
    """One in-place operation on some crops of a batch, as drawn on the host."""

    apply: Callable[..., None]
    mask: np.ndarray
    """Which crops it changes, `(N,)` bool."""
    factor: np.ndarray | None = None
    """Its factor for each crop, `(N,)` float32, if it has one."""


@dataclass(frozen=True)
class _Operation:
    """One in-place operation on the crops `rows` `(n,)` of a block, with a factor `(n,)` for each."""

    apply: Callable[..., None]
    rows: Tensor
    factors: tuple[Tensor, ...]

    def __call__(self, x: Tensor) -> None:
        """Apply it to a block `x` of crops."""
        if len(self.rows) == len(x):
            self.apply(x, *self.factors)
        elif len(self.rows):
            some = x[self.rows]
            self.apply(some, *self.factors)
            x.index_copy_(0, self.rows, some)


@torch.no_grad()
def augment(crops: Tensor, parameters: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Augment and normalize crops `(N, 3, S, S)` uint8, given their parameters `(N, 11)` float32 on the host.

    `mean` and `std` are `(3,)`, for pixels in [0, 1]. Returns the default dtype in the crops' shape on their device,
    channels-last in memory, the layout in which CPU and GPU convolutions are fastest.
    """
    out = torch.empty(crops.shape, device=crops.device, memory_format=torch.channels_last)
    scale, shift = (1 / std).view(3, 1, 1), (mean / std).view(3, 1, 1)
    draws = _draws(parameters)
    block = max(1, BLOCK_PIXELS[crops.device.type] // crops[0, 0].numel())
    for first in range(0, len(crops), block):
        pixels = crops[first : first + block].clone(memory_format=torch.contiguous_format)
        flip, *float_operations = _operations(draws, slice(first, first + len(pixels)), crops.device, out.dtype)
        flip(pixels)
        x = pixels.to(out.dtype).div_(255)
        for operation in float_operations:
            operation(x)
        out[first : first + block] = x.mul_(scale).sub_(shift)
    return out


def _draws(parameters: Tensor) -> list[_Draw]:
    """Return the operations in the order of A.2: the flip, on bytes, then those on floats."""
    rows = parameters.numpy()
    order, gray, blur = rows[:, 5:9], rows[:, 9], rows[:, 10]
    jitter = (adjust_brightness_, adjust_contrast_, adjust_saturation_, adjust_hue_)
    identity = (1, 1, 1, 0)
    jitters = [
        _Draw(apply, (order[:, place] == number) & (rows[:, 1 + number] != identity[number]), rows[:, 1 + number])
        for place in range(len(jitter))
        for number, apply in enumerate(jitter)
    ]
    flip, to_gray = _Draw(_flip_, rows[:, 0] > 0), _Draw(_gray_, gray > 0)
    return [flip, *jitters, to_gray, _Draw(gaussian_blur_, blur > 0, blur)]


def _operations(draws: Sequence[_Draw], block: slice, device: torch.device, dtype: torch.dtype) -> list[_Operation]:
    """Return the operations on one block of crops; two copies take the indices and factors of all to the device."""
    rows = [draw.mask[block].nonzero()[0] for draw in draws]
    factors = [draw.factor[block][at] for draw, at in zip(draws, rows, strict=True) if draw.factor is not None]
    all_rows, all_factors = (
        iter(upload(np.concatenate(values), device).split([len(each) for each in values])) for values in (rows, factors)
    )
    return [
        _Operation(draw.apply, next(all_rows), () if draw.factor is None else (next(all_factors).to(dtype),))
        for draw in draws
    ]


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _luma(x: Tensor) -> Tensor:
    """Return the gray values `(N, 1, H, W)` of crops `(N, 3, H, W)`."""
    red, green, blue = x.split(1, dim=1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def _flip_(x: Tensor) -> None:
    x.copy_(x.flip(3))


def _gray_(x: Tensor) -> None:
    x.copy_(_luma(x).expand_as(x))


def adjust_brightness_(x: Tensor, factor: Tensor) -> None:
    """Blend crops `(N, 3, H, W)` in [0, 1] with black, in place; `factor` `(N,)`, 1 = unchanged."""
    x.mul_(_per_image(factor)).clamp_(0, 1)


def adjust_contrast_(x: Tensor, factor: Tensor) -> None:
    """Blend crops `(N, 3, H, W)` in [0, 1] with their mean gray, in place; `factor` `(N,)`, 1 = unchanged."""
    factor = _per_image(factor)
    mean = _luma(x.mean((2, 3), keepdim=True))
    x.mul_(factor).add_(mean * (1 - factor)).clamp_(0, 1)


def adjust_saturation_(x: Tensor, factor: Tensor) -> None:
    """Blend crops `(N, 3, H, W)` in [0, 1] with their grayscale, in place; `factor` `(N,)`, 1 = unchanged."""
    factor = _per_image(factor)
    gray = _luma(x).mul_(1 - factor)
    x.mul_(factor).add_(gray).clamp_(0, 1)


def adjust_hue_(x: Tensor, shift: Tensor) -> None:
    """Shift the hue of crops `(N, 3, H, W)` in [0, 1], in place, by `shift` `(N,)` turns within [-.5, .5].

    Equals the way through HSV. Hue counts sixths of a turn from red: with colors stretched to [0, 1], it is
    1 + g + b - r, towards green if g > b. On the way back, a channel has the highest value up to 1 sixth away from its
    own color, and the lowest value from 2 sixths on.
    """
    red, green, blue = x.unbind(1)
    low = torch.minimum(torch.minimum(red, green), blue)
    high = torch.maximum(torch.maximum(red, green), blue)
    towards_green = green - blue
    hue = (green + blue).sub_(red).sub_(low)
    span = low.neg_().add_(high)
    hue = hue.div_(span.clamp_min(torch.finfo(x.dtype).tiny)).add_(1).copysign_(towards_green)
    hue.add_(shift.view(-1, 1, 1), alpha=6)
    hue.sub_((hue / 6).round_(), alpha=6)
    torch.sub(hue.unsqueeze(1), _own_hues(x.device, x.dtype), out=x)
    # Up to 5 away, and 5 one way is 1 the other: 2 - |away - 3| within [0, 1] is the share of the span to go down.
    x.abs_().sub_(3).abs_().clamp_(1, 2).mul_(span.unsqueeze(1)).add_(high.sub_(span, alpha=2).unsqueeze(1))


@cache
def _own_hues(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return each channel's own hue in sixths of a turn, `(3, 1, 1)`. Kept, because its upload waits for the device."""
    return torch.tensor([0.0, 2.0, -2.0], device=device, dtype=dtype).view(3, 1, 1)


def gaussian_blur_(x: Tensor, sigma: Tensor) -> None:
    """Blur crops `(N, 3, S, S)` in place, each with its own standard deviation `sigma` `(N,)` in pixels.

    The image is mirrored at its edges without repeating the edge pixel (OpenCV's REFLECT_101). Uses batched products
    with S x S matrices, so that crops with different kernels share one call.
    """
    size = x.shape[-1]
    matrix = _blur_matrix(sigma, size)
    rows = torch.empty_like(x, memory_format=torch.contiguous_format)  # whose views below write to it
    bands = [_band(start, size) for start in range(0, size, BLUR_BAND_PX)]
    for band, seen in bands:
        weights = matrix[:, band, seen].transpose(1, 2)
        torch.bmm(x.flatten(1, 2)[:, :, seen], weights, out=rows.flatten(1, 2)[:, :, band])
    for channel, values in zip(x.unbind(1), rows.unbind(1), strict=True):
        for band, seen in bands:
            torch.bmm(matrix[:, band, seen], values[:, seen], out=channel[:, band])


def _band(start: int, size: int) -> tuple[slice, slice]:
    """Return a band of a row's pixels, and the pixels that its blurred values depend on."""
    end = min(start + BLUR_BAND_PX, size)
    return slice(start, end), slice(max(0, start - BLUR_RADIUS_PX), min(size, end + BLUR_RADIUS_PX))


def _blur_matrix(sigma: Tensor, size: int) -> Tensor:
    """Return `(N, S, S)`: row i has the weights of the pixels around i; an edge mirrors those beyond it."""
    radius = min(BLUR_RADIUS_PX, size - 1)  # a crop smaller than the kernel cuts it
    distance = torch.arange(1 - size, size, device=sigma.device)
    kernel = torch.exp((distance / sigma[:, None]).square_().mul_(-0.5)) * (distance.abs() <= radius)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    matrix = kernel.unfold(1, size, 1).flip(1)
    # Row i and column j of a corner: the weight at distance i + j, of the pixel that j mirrors.
    mirrored = F.pad(kernel[:, size : size + radius], (0, radius)).unfold(1, radius, 1)[:, :radius]
    matrix[:, :radius, 1 : radius + 1] += mirrored
    matrix[:, -radius:, -radius - 1 : -1] += mirrored.flip(1, 2)
    return matrix
