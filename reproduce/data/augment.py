"""Multi-crop, the part on the training device: flip, colour jitter, grayscale, blur, normalise, batched (A.2).

Each picture has its own parameters (`reproduce.data.crops.PARAMETERS`); with equal parameters each operation equals
torchvision's on floats in [0, 1]. The blur is a true Gaussian; the reference's (PIL) is three box filters close to it.
"""

import math

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
BLUR_REACH = 3
"""The blur's kernel ends at three standard deviations."""


def augment(crops: Tensor, parameters: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Crops `(N, 3, S, S)` uint8 and parameters `(N, 11)` float32 -> normalised crops `(N, 3, S, S)` float32."""
    x = crops.float() / 255
    flip, brightness, contrast, saturation, hue = parameters[:, :5].unbind(1)
    order, gray, blur = parameters[:, 5:9].long(), parameters[:, 9], parameters[:, 10]
    x = torch.where(_per_picture(flip) > 0, x.flip(3), x)
    x = _jitter(x, (brightness, contrast, saturation, hue), order)
    x = torch.where(_per_picture(gray) > 0, _luma(x), x)
    x = gaussian_blur(x, blur)
    return (x - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def _per_picture(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _luma(x: Tensor) -> Tensor:
    """Grey value `(N, 1, H, W)`."""
    return (x * x.new_tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(other, x, _per_picture(factor)).clamp_(0, 1)


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with black."""
    return (x * _per_picture(factor)).clamp_(0, 1)


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the picture's mean grey."""
    return _blend(x, _luma(x).mean((1, 2, 3), keepdim=True), factor)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey picture."""
    return _blend(x, _luma(x), factor)


def adjust_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by `shift` turns, through HSV."""
    high, low = x.amax(1), x.amin(1)
    span = high - low
    safe = torch.where(span == 0, torch.ones_like(span), span)
    r, g, b = ((high.unsqueeze(1) - x) / safe.unsqueeze(1)).unbind(1)
    hue = torch.where(x[:, 0] == high, b - g, torch.where(x[:, 1] == high, 2 + r - b, 4 + g - r))
    turn = (hue / 6 + shift.view(-1, 1, 1)) * 6
    # value - span * clamp(min(k, 4 - k), 0, 1) with k = (n + 6 hue) mod 6 is HSV's way back to red, green and blue.
    n = x.new_tensor([5.0, 3.0, 1.0]).view(1, 3, 1, 1)
    k = (n + turn.unsqueeze(1)).remainder(6)
    return high.unsqueeze(1) - span.unsqueeze(1) * torch.minimum(k, 4 - k).clamp(0, 1)


OPERATIONS = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)


def _jitter(x: Tensor, factors: tuple[Tensor, ...], order: Tensor) -> Tensor:
    """The four operations, in place, each picture in its own order: at each turn, each on the pictures due for it."""
    neutral = (1, 1, 1, 0)
    for place in range(len(OPERATIONS)):
        for number, operation in enumerate(OPERATIONS):
            due = ((order[:, place] == number) & (factors[number] != neutral[number])).nonzero().squeeze(1)
            if len(due):
                x[due] = operation(x[due], factors[number][due])
    return x


def gaussian_blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Blur each picture `(N, 3, S, S)` with its own standard deviation in pixels (0: leave it); edges are continued.

    Two batched products with S x S matrices, so pictures with different kernels share one call.
    """
    due = (sigma > 0).nonzero().squeeze(1)
    if not len(due):
        return x
    matrix = _blur_matrix(sigma[due], x.shape[-1])
    return x.index_copy(0, due, matrix.unsqueeze(1) @ x[due] @ matrix.transpose(1, 2).unsqueeze(1))


def _blur_matrix(sigma: Tensor, size: int) -> Tensor:
    """`(N, S, S)`: row i holds the weights of the pixels around i, those beyond an edge gathered on the edge."""
    reach = math.ceil(BLUR_REACH * float(sigma.max()))
    at = torch.arange(size, device=sigma.device)
    around = torch.arange(-reach, size + reach, device=sigma.device)
    distance = (around[None, :] - at[:, None]).float()
    weights = torch.exp(-0.5 * (distance[None] / sigma.view(-1, 1, 1)) ** 2)
    weights = weights * (distance[None].abs() <= BLUR_REACH * sigma.view(-1, 1, 1).clamp_min(1 / BLUR_REACH))
    weights = weights / weights.sum(2, keepdim=True)
    folded = torch.zeros(len(sigma), size, size, device=sigma.device)
    return folded.index_add_(2, around.clamp(0, size - 1), weights)
