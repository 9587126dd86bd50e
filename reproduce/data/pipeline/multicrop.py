"""Multi-crop on the CPU: cut random-resized uint8 crops and draw each crop's augmentation parameters (A.2).

All draws come from `rng_for(seed, epoch, index)`, so an image's crops do not depend on the number of workers or ranks.
`augment` applies the parameters on the training device.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from reproduce.config.schema import Augment, View
from reproduce.data.datasets.image_folder import ImageList
from reproduce.data.pipeline.image_io import decode_image, read_or_next
from reproduce.data.pipeline.sampler import rng_for
from reproduce.errors import UserError

ASPECT_RATIOS = (3 / 4, 4 / 3)
"""Range of a crop's width / height, drawn log-uniformly (torchvision's default)."""

AUGMENT_PARAMETERS = (
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
"""Columns of the augmentation parameters, one row per crop: flip and gray are 0 or 1; brightness, contrast and
saturation are factors (1 = unchanged); hue is a shift in turns; order0..3 is the order of the four jitter operations;
blur is a standard deviation in pixels (0 = none)."""


Box = tuple[int, int, int, int]
"""Left, top, right and bottom of a crop, in pixels."""


class CropDraw(NamedTuple):
    """One view's crops of an image, as drawn: what to cut and how to augment it."""

    boxes: list[Box]
    parameters: Tensor
    """`AUGMENT_PARAMETERS` `(num, 11)` float32."""
    size_px: int
    """Side of the crops after they are resized."""


class MultiCropSample(NamedTuple):
    """One image's crops: per view, crops `(num, 3, S, S)` uint8 and `AUGMENT_PARAMETERS` `(num, 11)` float32."""

    views: list[tuple[Tensor, Tensor]]
    label: int
    unreadable: list[str]
    """Files that could not be read and were replaced by the next one."""


@dataclass
class MultiCropBatch:
    """One rank's share of a step: per view, crops `(num * B, 3, S, S)` uint8 and parameters float32, crop 0 first."""

    crops: list[Tensor]
    parameters: list[Tensor]
    labels: Tensor
    unreadable: list[str]

    def pin_memory(self) -> "MultiCropBatch":
        """Return the batch in pinned memory, so that copies to a GPU do not block; a DataLoader on CUDA calls this."""
        crops, parameters = ([each.pin_memory() for each in tensors] for tensors in (self.crops, self.parameters))
        return MultiCropBatch(crops, parameters, self.labels.pin_memory(), self.unreadable)


class MultiCropDataset(Dataset[MultiCropSample]):
    """The crops of each image in each epoch, indexed by `(epoch, image index)`."""

    def __init__(self, images: ImageList, views: Sequence[View], augment: Augment, seed: int) -> None:
        self.images, self.views, self.augment, self.seed = images, views, augment, seed

    def __getitem__(self, at: tuple[int, int]) -> MultiCropSample:
        """Return the crops of image `index` in `epoch`, or of the next readable image, with that image's label."""
        epoch, index = at
        images = self.images
        used_index, image, unreadable = read_or_next(
            len(images), index, lambda number: decode_image(images.read_bytes(number), images.paths[number])
        )
        views = multi_crop(image, self.views, self.augment, rng_for(self.seed, epoch, index))
        return MultiCropSample(views, images.labels[used_index], unreadable)


def collate_multicrop(samples: list[MultiCropSample]) -> MultiCropBatch:
    """Stack samples crop by crop: `(num * B, ...)`, with crop 0 of all images first."""
    views = list(zip(*(sample.views for sample in samples), strict=True))
    crops = [torch.stack([crops for crops, _ in view], dim=1).flatten(0, 1) for view in views]
    rows = [torch.stack([rows for _, rows in view], dim=1).flatten(0, 1) for view in views]
    labels = torch.tensor([sample.label for sample in samples])
    return MultiCropBatch(crops, rows, labels, [name for sample in samples for name in sample.unreadable])


def multi_crop(
    image: Tensor, views: Sequence[View], augment: Augment, rng: np.random.Generator
) -> list[tuple[Tensor, Tensor]]:
    """Cut the crops of an image `(3, H, W)` uint8 and draw their augmentation parameters.

    Returns, per view, crops `(num, 3, S, S)` uint8 and parameters `(num, len(AUGMENT_PARAMETERS))` float32.
    """
    height, width = image.shape[1:]
    draws = draw_crops(width, height, views, augment, rng)
    return [
        (torch.stack([crop_and_resize(image, box, draw.size_px) for box in draw.boxes]), draw.parameters)
        for draw in draws
    ]


def draw_crops(
    width: int, height: int, views: Sequence[View], augment: Augment, rng: np.random.Generator
) -> list[CropDraw]:
    """Draw the boxes and augmentation parameters of an image's crops, per view."""
    out = []
    for view in views:
        if view.cell_share is None:
            boxes = [random_crop_box(rng, width, height, view.scale) for _ in range(view.num)]
        else:
            boxes = random_patch_boxes(rng, width, height, view)
        rows = np.stack([draw_augment_parameters(rng, augment) for _ in boxes])
        out.append(CropDraw(boxes, torch.from_numpy(rows), view.size_px))
    return out


def random_crop_box(rng: np.random.Generator, width: int, height: int, scale: Sequence[float]) -> Box:
    """Draw a crop `(left, top, right, bottom)` in pixels that covers a share of the image within `scale`.

    Distributed as torchvision's RandomResizedCrop: ten tries, then the largest center crop within the aspect ratios.
    """
    for _ in range(10):
        pixels = width * height * rng.uniform(scale[0], scale[1])
        ratio = math.exp(rng.uniform(math.log(ASPECT_RATIOS[0]), math.log(ASPECT_RATIOS[1])))
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return left, top, left + w, top + h
    w = min(width, round(height * ASPECT_RATIOS[1]))
    h = min(height, round(width / ASPECT_RATIOS[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def random_patch_boxes(rng: np.random.Generator, width: int, height: int, view: View) -> list[Box]:
    """Draw the boxes of a jigsaw's patches, in random order: a random part of each cell of one random crop (PIRL).

    Patches are cut from the image itself. The original cuts them from the resized crop: the same, up to the rounding of
    their positions to pixels. Raises `UserError` if `view.num` is no square.
    """
    per_side, share = math.isqrt(view.num), view.cell_share or 1
    if per_side**2 != view.num:
        raise UserError(f"a jigsaw has a square number of patches, but a view of crops has num: {view.num}")
    left, top, right, bottom = random_crop_box(rng, width, height, view.scale)
    w, h = (right - left) / per_side, (bottom - top) / per_side
    boxes = []
    for number in rng.permutation(view.num):
        row, column = divmod(int(number), per_side)
        x = min(round(left + w * (column + rng.uniform(0, 1 - share))), right - 1)
        y = min(round(top + h * (row + rng.uniform(0, 1 - share))), bottom - 1)
        boxes.append((x, y, x + max(1, round(w * share)), y + max(1, round(h * share))))
    return boxes


def crop_and_resize(image: Tensor, box: Box, size_px: int) -> Tensor:
    """Cut `box` out of an image `(3, H, W)` uint8 and resize it: `(3, size_px, size_px)` uint8.

    Bilinear with antialiasing; equals torchvision's resize of a PIL image up to rounding (1/255).
    """
    left, top, right, bottom = box
    cut = image[None, :, top:bottom, left:right]
    return functional.interpolate(cut, (size_px, size_px), mode="bilinear", antialias=True)[0]


def draw_augment_parameters(rng: np.random.Generator, augment: Augment) -> np.ndarray:
    """Draw one crop's augmentation parameters, `(len(AUGMENT_PARAMETERS),)` float32, distributed as in SimCLR (A.2)."""
    flip = float(rng.random() < augment.flip_probability)
    factors, order = [1.0, 1.0, 1.0, 0.0], [0, 1, 2, 3]
    if rng.random() < augment.color_jitter_probability:
        *strengths, hue = augment.color_jitter
        factors = [rng.uniform(max(0, 1 - strength), 1 + strength) for strength in strengths]
        factors.append(rng.uniform(-hue, hue))
        order = rng.permutation(4).tolist()
    gray = float(rng.random() < augment.grayscale_probability)
    low, high = augment.blur_sigma_px
    blur = rng.uniform(low, high) if rng.random() < augment.blur_probability else 0.0
    return np.array([flip, *factors, *order, gray, blur], dtype=np.float32)
