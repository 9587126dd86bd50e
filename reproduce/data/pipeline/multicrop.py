"""Multi-crop, the part on the CPU: random-resized crops as bytes, and each crop's colour parameters (A.2).

Everything is drawn from one generator per (seed, epoch, index), so a picture's crops do not depend on the number of
workers or processes.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from reproduce.config.schema import Augment, View

RATIO = (3 / 4, 4 / 3)
"""Aspect ratios of a crop, drawn log-uniformly (torchvision's default)."""

PARAMETERS = (
    "flip",
    "brightness",
    "contrast",
    "saturation",
    "hue",
    "order0",
    "order1",
    "order2",
    "order3",
    "gray",
    "blur",
)
"""One row of colour parameters per crop: factors (1 = unchanged), hue shift in turns, the order of the four jitter
operations, grayscale as 0/1, and the blur's standard deviation in pixels (0 = none)."""


def generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The random numbers of one picture in one epoch: a counter-based generator keyed by all three."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, (epoch << 40) | index], dtype=np.uint64)))


def random_box(rng: np.random.Generator, width: int, height: int, area: Sequence[float]) -> tuple[int, int, int, int]:
    """A crop `(left, top, right, bottom)` in pixels covering a share of the picture within `area`.

    Distributed as torchvision's RandomResizedCrop: ten tries, then the largest centre crop within the aspect ratios.
    """
    for _ in range(10):
        pixels = width * height * rng.uniform(area[0], area[1])
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return left, top, left + w, top + h
    w = min(width, round(height * RATIO[1]))
    h = min(height, round(width / RATIO[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def resized(image: Tensor, box: tuple[int, int, int, int], size_px: int) -> Tensor:
    """Cut `box` out of a picture `(3, H, W)` uint8, then resize it: `(3, size_px, size_px)` uint8.

    Bilinear and antialiased, as torchvision does it to a PIL picture (to a rounding, 1/255).
    """
    left, top, right, bottom = box
    cut = image[None, :, top:bottom, left:right]
    return functional.interpolate(cut, (size_px, size_px), mode="bilinear", antialias=True)[0]


def colour_parameters(rng: np.random.Generator, augment: Augment) -> np.ndarray:
    """One row of `PARAMETERS`, float32, distributed as in SimCLR's augmentation."""
    flip = float(rng.random() < augment.flip_probability)
    factors, order = [1.0, 1.0, 1.0, 0.0], [0, 1, 2, 3]
    if rng.random() < augment.jitter_probability:
        *strengths, hue = augment.jitter
        factors = [rng.uniform(max(0, 1 - strength), 1 + strength) for strength in strengths]
        factors.append(rng.uniform(-hue, hue))
        order = rng.permutation(4).tolist()
    gray = float(rng.random() < augment.grayscale_probability)
    least, most = augment.blur_radius_px
    blur = rng.uniform(least, most) if rng.random() < augment.blur_probability else 0.0
    return np.array([flip, *factors, *order, gray, blur], dtype=np.float32)


def multi_crop(
    image: Tensor, views: Sequence[View], augment: Augment, rng: np.random.Generator
) -> list[tuple[Tensor, Tensor]]:
    """Of a picture `(3, H, W)` uint8, per view its crops and their colour parameters.

    These are `(num, 3, S, S)` uint8 and `(num, len(PARAMETERS))` float32.
    """
    height, width = image.shape[1:]
    out = []
    for view in views:
        boxes = [random_box(rng, width, height, view.area) for _ in range(view.num)]
        crops = torch.stack([resized(image, box, view.size_px) for box in boxes])
        out.append((crops, torch.from_numpy(np.stack([colour_parameters(rng, augment) for _ in boxes]))))
    return out
