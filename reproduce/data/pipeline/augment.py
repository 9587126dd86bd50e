"""Multi-crop, the part on the training device: flip, colour jitter, grayscale, blur, normalise, batched (A.2).

Each picture has its own parameters (`multicrop.PARAMETERS`); with equal parameters each operation equals
torchvision's on floats in [0, 1]. The blur is a true Gaussian; the reference's (PIL) is three box filters close to it.

The operations work in place, on colour planes that a processor's cache holds: on a CPU the time goes into memory. The
parameters stay on the host, which so knows whom an operation concerns without asking the device.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
BLUR_REACH = 3
"""The blur's kernel ends at three standard deviations."""
BLUR_BAND_PX = 112
BLOCK_PIXELS = {"cpu": 2**16, "cuda": 2**26}
"""Pictures are augmented in blocks of so many pixels, or one by one: 768 KiB, or a GPU's usual batch as a whole."""


@dataclass(frozen=True)
class _Stage:
    """One operation, in place: on whom `(N,)`, told on the host, and each picture's factor, on the device."""

    operation: Callable[..., None]
    concerned: np.ndarray
    factor: Tensor | None = None

    def __call__(self, x: Tensor, first: int) -> None:
        """Do it on a block `x` of pictures, of which the first has number `first`."""
        at = self.concerned[first : first + len(x)].nonzero()[0]
        factors = [] if self.factor is None else [self.factor[first : first + len(x)]]
        if len(at) == len(x):
            self.operation(x, *factors)
        elif len(at):
            there = torch.from_numpy(at).to(x.device, non_blocking=True)
            some = x[there]
            self.operation(some, *(factor[there] for factor in factors))
            x.index_copy_(0, there, some)


@torch.no_grad()
def augment(crops: Tensor, parameters: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Crops `(N, 3, S, S)` uint8 and parameters `(N, 11)` float32 on the host -> normalised crops, float32.

    The result has the crops' shape and is channels-last in memory: what both CPU and GPU convolutions are fastest on.
    """
    out = torch.empty(crops.shape, device=crops.device, memory_format=torch.channels_last)
    scale, shift = (1 / std).view(3, 1, 1), (mean / std).view(3, 1, 1)
    flip, *colours = _stages(parameters, crops.device)
    block = max(1, BLOCK_PIXELS[crops.device.type] // crops[0, 0].numel())
    for first in range(0, len(crops), block):
        pixels = crops[first : first + block].clone(memory_format=torch.contiguous_format)
        flip(pixels, first)
        x = pixels.float().div_(255)
        for stage in colours:
            stage(x, first)
        out[first : first + block] = x.mul_(scale).sub_(shift)
    return out


def _stages(parameters: Tensor, device: torch.device) -> list[_Stage]:
    """The operations in the order of A.2: the flip, on bytes, then those on floats."""
    rows = parameters.numpy()
    order, gray, blur = rows[:, 5:9], rows[:, 9], rows[:, 10]
    factors = parameters.to(device, non_blocking=True).unbind(1)
    jitter = (adjust_brightness_, adjust_contrast_, adjust_saturation_, adjust_hue_)
    unchanged = (1, 1, 1, 0)
    jitters = [
        _Stage(operation, (order[:, place] == number) & (rows[:, 1 + number] != unchanged[number]), factors[1 + number])
        for place in range(len(jitter))
        for number, operation in enumerate(jitter)
    ]
    blurred = partial(gaussian_blur_, reach=math.ceil(BLUR_REACH * blur.max()))
    ends = [_Stage(_gray_, gray > 0), _Stage(blurred, blur > 0, factors[10])]
    return [_Stage(_flip_, rows[:, 0] > 0), *jitters, *ends]


def _per_picture(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _luma(x: Tensor) -> Tensor:
    """Grey value `(N, 1, H, W)`."""
    red, green, blue = x.split(1, dim=1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def _flip_(x: Tensor) -> None:
    x.copy_(x.flip(3))


def _gray_(x: Tensor) -> None:
    x.copy_(_luma(x).expand_as(x))


def adjust_brightness_(x: Tensor, factor: Tensor) -> None:
    """Blend with black."""
    x.mul_(_per_picture(factor)).clamp_(0, 1)


def adjust_contrast_(x: Tensor, factor: Tensor) -> None:
    """Blend with the picture's mean grey."""
    factor = _per_picture(factor)
    mean = _luma(x.mean((2, 3), keepdim=True))
    x.mul_(factor).add_(mean * (1 - factor)).clamp_(0, 1)


def adjust_saturation_(x: Tensor, factor: Tensor) -> None:
    """Blend with the grey picture."""
    factor = _per_picture(factor)
    gray = _luma(x).mul_(1 - factor)
    x.mul_(factor).add_(gray).clamp_(0, 1)


def adjust_hue_(x: Tensor, shift: Tensor) -> None:
    """Turn the hue by `shift` turns, within [-.5, .5].

    As through HSV, in sixths of a turn from red: with colours stretched to [0, 1], the hue lies 1 + g + b - r away from
    red, towards green where g > b. On the way back, a channel stands at the top up to 1 sixth away from its own colour,
    and from 2 on it is at the bottom, the whole span below.
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
    own = torch.tensor([0.0, 2.0, -2.0], device=x.device).view(3, 1, 1)
    torch.sub(hue.unsqueeze(1), own, out=x)
    # Up to 5 away, and 5 one way is 1 the other: 2 - |away - 3| within [0, 1] is the share of the span to go down.
    x.abs_().sub_(3).abs_().clamp_(1, 2).mul_(span.unsqueeze(1)).add_(high.sub_(span, alpha=2).unsqueeze(1))


def gaussian_blur_(x: Tensor, sigma: Tensor, reach: int | None = None) -> None:
    """Blur each picture `(N, 3, S, S)` with its own standard deviation in pixels; edges are continued.

    Batched products with S x S matrices, so pictures with different kernels share one call. `reach` is how many pixels
    the longest kernel goes to each side: what no kernel sees need not be multiplied.
    """
    size = x.shape[-1]
    matrix = _blur_matrix(sigma, size)
    rows = torch.empty_like(x)
    bands = [_band(start, size, size if reach is None else reach) for start in range(0, size, BLUR_BAND_PX)]
    for band, seen in bands:
        weights = matrix[:, band, seen].transpose(1, 2)
        torch.bmm(x.flatten(1, 2)[:, :, seen], weights, out=rows.flatten(1, 2)[:, :, band])
    for channel, values in zip(x.unbind(1), rows.unbind(1), strict=True):
        for band, seen in bands:
            torch.bmm(matrix[:, band, seen], values[:, seen], out=channel[:, band])


def _band(start: int, size: int, reach: int) -> tuple[slice, slice]:
    """Some pixels of a row, and those that their values come from."""
    end = min(start + BLUR_BAND_PX, size)
    return slice(start, end), slice(max(0, start - reach), min(size, end + reach))


def _blur_matrix(sigma: Tensor, size: int) -> Tensor:
    """`(N, S, S)`: row i holds the weights of the pixels around i, those beyond an edge gathered on the edge."""
    sigma = sigma[:, None]
    distance = torch.arange(1 - size, size, device=sigma.device).float()
    kernel = torch.exp((distance / sigma).square_().mul_(-0.5)) * (distance.abs() <= BLUR_REACH * sigma)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    matrix = kernel.unfold(1, size, 1).flip(1)
    beyond = kernel[:, size:].flip(1).cumsum(1).flip(1)  # of row i: what lies more than i away on one side
    matrix[:, :-1, 0] += beyond
    matrix[:, 1:, -1] += beyond.flip(1)
    return matrix
