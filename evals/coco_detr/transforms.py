"""DETR's transforms of images with boxes: augmented for training, resized for the test, padded to a batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from evals.coco_detr.losses import Target
from reproduce.config.schema import Normalize
from reproduce.data.datasets.coco import CocoImage
from reproduce.data.datasets.image_file import UnreadableImage
from reproduce.data.pipeline.dataloader import OnUnreadable, build_dataloader
from reproduce.data.pipeline.image_io import read_or_next
from reproduce.data.pipeline.sampler import StepSampler, rng_for
from reproduce.system import pinned_bytes

FLIP_PROBABILITY = 0.5
LEFT_RIGHT = [0, 2]
"""Columns of a box's x coordinates."""


@dataclass
class TransformConfig:
    """Sizes in pixels of an image's shorter side: drawn from `train_sizes_px` in training, `test_size_px` in the test.

    No side is longer than `max_size_px`. With `crop_probability` a training image is first resized to one of
    `resize_before_crop_px`, then cropped to a rectangle with sides within `crop_range_px`.
    """

    train_sizes_px: list[int]
    test_size_px: int
    max_size_px: int
    crop_probability: float
    resize_before_crop_px: list[int]
    crop_range_px: list[int]


@dataclass
class Sample:
    """An image `(3, H, W)` uint8 and its objects: corners in pixels `(n, 4)`, category ids `(n,)`."""

    pixels: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


def target_size(width: int, height: int, shorter_px: int, max_px: int | None) -> tuple[int, int]:
    """Return width and height with the shorter side at `shorter_px`, or less if the longer side exceeded `max_px`."""
    shorter, longer = min(width, height), max(width, height)
    if max_px and longer / shorter * shorter_px > max_px:
        shorter_px = round(max_px * shorter / longer)
    return (
        (shorter_px, int(shorter_px * height / width))
        if width < height
        else (int(shorter_px * width / height), shorter_px)
    )


def resize(image: Image.Image, boxes: np.ndarray, size: tuple[int, int]) -> tuple[Image.Image, np.ndarray]:
    """Resize image and boxes to another width and height (bilinear)."""
    scale = np.array([size[0] / image.width, size[1] / image.height] * 2, dtype=np.float32)
    return image.resize(size, Image.Resampling.BILINEAR), boxes * scale


def flip(image: Image.Image, boxes: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    """Mirror image and boxes left to right."""
    boxes = boxes.copy()
    boxes[:, LEFT_RIGHT] = image.width - boxes[:, LEFT_RIGHT[::-1]]
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), boxes


def crop(
    image: Image.Image, boxes: np.ndarray, box: tuple[int, int, int, int]
) -> tuple[Image.Image, np.ndarray, np.ndarray]:
    """Crop to `box` (left, top, right, bottom); return image, all boxes clipped to it, and which still have area."""
    left, top, right, bottom = box
    size = np.array([right - left, bottom - top] * 2, dtype=np.float32)
    boxes = (boxes - np.array([left, top] * 2, dtype=np.float32)).clip(0, size)
    return image.crop(box), boxes, np.all(boxes[:, 2:] > boxes[:, :2], axis=1)


def augment(
    image: Image.Image, boxes: np.ndarray, labels: np.ndarray, config: TransformConfig, rng: np.random.Generator
) -> Sample:
    """Augment one image: a random flip, a crop with `crop_probability`, and a random size."""
    if rng.random() < FLIP_PROBABILITY:
        image, boxes = flip(image, boxes)
    if rng.random() < config.crop_probability:
        from_px = int(rng.choice(config.resize_before_crop_px))
        image, boxes = resize(image, boxes, target_size(*image.size, from_px, None))
        low, high = config.crop_range_px
        w, h = (int(rng.integers(min(low, side), min(high, side) + 1)) for side in image.size)
        left, top = int(rng.integers(image.width - w + 1)), int(rng.integers(image.height - h + 1))
        image, boxes, has_area = crop(image, boxes, (left, top, left + w, top + h))
        boxes, labels = boxes[has_area], labels[has_area]
    shorter_px = int(rng.choice(config.train_sizes_px))
    image, boxes = resize(image, boxes, target_size(*image.size, shorter_px, config.max_size_px))
    return Sample(_pixels(image), boxes, labels)


def _pixels(image: Image.Image) -> np.ndarray:
    return np.array(image).transpose(2, 0, 1)


class TrainDataset(Dataset[tuple[Sample, list[str]]]):
    """The augmented image of an index in an epoch, and the unreadable files that were skipped to get it."""

    def __init__(self, images: Sequence[CocoImage], config: TransformConfig, seed: int) -> None:
        self.images, self.config, self.seed = images, config, seed

    def __getitem__(self, at: tuple[int, int]) -> tuple[Sample, list[str]]:
        """Return image `index` of `epoch`, which does not depend on the number of workers and processes."""
        epoch, index = at
        used_index, image, unreadable = read_or_next(len(self.images), index, lambda number: self.images[number].read())
        annotated = self.images[used_index]
        return augment(
            image, annotated.boxes, annotated.labels, self.config, rng_for(self.seed, epoch, index)
        ), unreadable


@dataclass
class PaddedBatch:
    """A batch: `pixels (B, 3, H, W)` uint8, `padding (B, H, W)` True outside the images, and one target per image."""

    pixels: Tensor
    padding: Tensor
    targets: list[Target]
    unreadable: list[str]

    def pin_memory(self) -> "PaddedBatch":
        """Return the batch in pinned memory, so that copies to a GPU do not block; a DataLoader on CUDA calls this."""
        targets = [Target(target.labels.pin_memory(), target.boxes.pin_memory()) for target in self.targets]
        return PaddedBatch(self.pixels.pin_memory(), self.padding.pin_memory(), targets, self.unreadable)


def collate(samples: list[tuple[Sample, list[str]]]) -> PaddedBatch:
    """Pad images to the largest, at the lower right; boxes become (cx, cy, w, h) as fractions of their own image."""
    sizes = [sample.pixels.shape[1:] for sample, _ in samples]
    height, width = (max(side) for side in zip(*sizes, strict=True))
    pixels = torch.zeros(len(samples), 3, height, width, dtype=torch.uint8)
    padding = torch.ones(len(samples), height, width, dtype=torch.bool)
    targets = []
    for number, ((sample, _), (h, w)) in enumerate(zip(samples, sizes, strict=True)):
        pixels[number, :, :h, :w] = torch.from_numpy(sample.pixels.copy())
        padding[number, :h, :w] = False
        low, high = sample.boxes[:, :2], sample.boxes[:, 2:]
        boxes = np.concatenate([(low + high) / 2, high - low], axis=1) / np.array([w, h, w, h], dtype=np.float32)
        targets.append(Target(torch.from_numpy(sample.labels), torch.from_numpy(boxes)))
    return PaddedBatch(pixels, padding, targets, [name for _, names in samples for name in names])


def normalize_and_mask(pixels: Tensor, padding: Tensor, normalize: Normalize) -> Tensor:
    """Return normalized pixels `(B, 3, H, W)` float32, channels-last in memory, with zeros in the padding."""
    mean, std = (torch.tensor(list(v), device=pixels.device).view(3, 1, 1) for v in (normalize.mean, normalize.std))
    x = ((pixels.to(mean.dtype) / 255 - mean) / std).masked_fill(padding.unsqueeze(1), 0)
    return x.contiguous(memory_format=torch.channels_last)


def train_batches(
    images: Sequence[CocoImage],
    config: TransformConfig,
    normalize: Normalize,
    sampler: StepSampler,
    *,
    num_workers: int,
    device: torch.device,
    on_unreadable: OnUnreadable,
) -> Iterator[tuple[Tensor, Tensor, list[Target]]]:
    """Yield this rank's images `(B, 3, H, W)` of each step, their padding `(B, H, W)` and targets, on the device."""
    dataset = TrainDataset(images, config, sampler.seed)
    area = sampler.images_per_rank * config.max_size_px**2
    batch_bytes = pinned_bytes(3 * area, area)  # at most: pixels, padding
    for batch in build_dataloader(dataset, num_workers, batch_bytes, batch_sampler=sampler, collate_fn=collate):
        on_unreadable(batch.unreadable)
        pixels, padding = (tensor.to(device, non_blocking=True) for tensor in (batch.pixels, batch.padding))
        targets = [
            Target(target.labels.to(device, non_blocking=True), target.boxes.to(device, non_blocking=True))
            for target in batch.targets
        ]
        yield normalize_and_mask(pixels, padding, normalize), padding, targets


class TestDataset(Dataset[tuple[int, np.ndarray | None, str]]):
    """Each image once: its index, and its pixels at the test size, or None and the error of an unreadable file."""

    __test__ = False  # not a test case of pytest

    def __init__(self, images: Sequence[CocoImage], config: TransformConfig) -> None:
        self.images, self.config = images, config

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[int, np.ndarray | None, str]:
        """Return image `index`."""
        try:
            image = self.images[index].read()
        except UnreadableImage as error:
            return index, None, str(error)
        size = target_size(*image.size, self.config.test_size_px, self.config.max_size_px)
        return index, _pixels(image.resize(size, Image.Resampling.BILINEAR)), ""


def test_images(
    images: Sequence[CocoImage],
    config: TransformConfig,
    normalize: Normalize,
    *,
    num_workers: int,
    device: torch.device,
    on_unreadable: OnUnreadable,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield each readable image: its index, pixels `(1, 3, H, W)` and an empty padding mask `(1, H, W)`.

    One at a time, unlike DETR's code, which pads the images of a validation batch to one size: the detections in an
    image then depend on the others of its batch (docs/numerics.md).
    """
    for index, pixels, unreadable in build_dataloader(TestDataset(images, config), num_workers, batch_size=None):
        if unreadable:
            on_unreadable([unreadable])
            continue
        image = torch.as_tensor(pixels).to(device, non_blocking=True).unsqueeze(0)
        padding = torch.zeros_like(image[:, 0], dtype=torch.bool)
        yield int(index), normalize_and_mask(image, padding, normalize), padding
