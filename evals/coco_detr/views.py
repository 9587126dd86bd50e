"""Pictures with boxes, as the detector sees them: augmented for training, resized for the test, padded to a batch."""

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

FLIP_PROBABILITY = 0.5
LEFT_RIGHT = [0, 2]
"""A box's columns along x."""


@dataclass
class Views:
    """Sizes in pixels: the shorter side of a training picture is drawn from `train_sizes_px`, that of a test picture is
    `test_size_px`, and no side is longer than `max_size_px`.

    With `crop_probability` a training picture is first resized to one of `resize_before_crop_px`, and a rectangle with
    sides within `crop_range_px` is cut out of it.
    """

    train_sizes_px: list[int]
    test_size_px: int
    max_size_px: int
    crop_probability: float
    resize_before_crop_px: list[int]
    crop_range_px: list[int]


@dataclass
class Seen:
    """A picture `(3, H, W)` uint8, and its objects: corners in pixels `(n, 4)`, category ids `(n,)`."""

    pixels: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


def target_size(width: int, height: int, shorter_px: int, max_px: int | None) -> tuple[int, int]:
    """Width and height with the shorter side at `shorter_px`, less where the longer would exceed `max_px`."""
    shorter, longer = min(width, height), max(width, height)
    if max_px and longer / shorter * shorter_px > max_px:
        shorter_px = round(max_px * shorter / longer)
    return (
        (shorter_px, int(shorter_px * height / width))
        if width < height
        else (int(shorter_px * width / height), shorter_px)
    )


def resized(image: Image.Image, boxes: np.ndarray, size: tuple[int, int]) -> tuple[Image.Image, np.ndarray]:
    """Picture and boxes at another width and height (bilinear)."""
    scale = np.array([size[0] / image.width, size[1] / image.height] * 2, dtype=np.float32)
    return image.resize(size, Image.Resampling.BILINEAR), boxes * scale


def flipped(image: Image.Image, boxes: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    """Picture and boxes mirrored left to right."""
    boxes = boxes.copy()
    boxes[:, LEFT_RIGHT] = image.width - boxes[:, LEFT_RIGHT[::-1]]
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), boxes


def cropped(
    image: Image.Image, boxes: np.ndarray, box: tuple[int, int, int, int]
) -> tuple[Image.Image, np.ndarray, np.ndarray]:
    """What lies within `box` (left, top, right, bottom): the picture, all boxes cut to it, and which have area left."""
    left, top, right, bottom = box
    size = np.array([right - left, bottom - top] * 2, dtype=np.float32)
    boxes = (boxes - np.array([left, top] * 2, dtype=np.float32)).clip(0, size)
    return image.crop(box), boxes, np.all(boxes[:, 2:] > boxes[:, :2], axis=1)


def training_view(
    image: Image.Image, boxes: np.ndarray, labels: np.ndarray, views: Views, rng: np.random.Generator
) -> Seen:
    """One picture augmented: flip, perhaps a crop, and a random size."""
    if rng.random() < FLIP_PROBABILITY:
        image, boxes = flipped(image, boxes)
    if rng.random() < views.crop_probability:
        from_px = int(rng.choice(views.resize_before_crop_px))
        image, boxes = resized(image, boxes, target_size(*image.size, from_px, None))
        low, high = views.crop_range_px
        w, h = (int(rng.integers(min(low, side), min(high, side) + 1)) for side in image.size)
        left, top = int(rng.integers(image.width - w + 1)), int(rng.integers(image.height - h + 1))
        image, boxes, kept = cropped(image, boxes, (left, top, left + w, top + h))
        boxes, labels = boxes[kept], labels[kept]
    shorter_px = int(rng.choice(views.train_sizes_px))
    image, boxes = resized(image, boxes, target_size(*image.size, shorter_px, views.max_size_px))
    return Seen(_pixels(image), boxes, labels)


def _pixels(image: Image.Image) -> np.ndarray:
    return np.array(image).transpose(2, 0, 1)


class TrainingViews(Dataset[tuple[Seen, list[str]]]):
    """The view of a picture in an epoch, and the files that were passed over to get it."""

    def __init__(self, pictures: Sequence[CocoImage], views: Views, seed: int) -> None:
        self.pictures, self.views, self.seed = pictures, views, seed

    def __getitem__(self, at: tuple[int, int]) -> tuple[Seen, list[str]]:
        """Picture `index` in `epoch`; the same for every number of workers and processes."""
        epoch, index = at
        instead, image, bad = read_or_next(len(self.pictures), index, lambda number: self.pictures[number].read())
        about = self.pictures[instead]
        return training_view(image, about.boxes, about.labels, self.views, rng_for(self.seed, epoch, index)), bad


@dataclass
class Padded:
    """A batch: `pixels (B, 3, H, W)` uint8, `padding (B, H, W)` True where there is no picture, a target each."""

    pixels: Tensor
    padding: Tensor
    targets: list[Target]
    bad: list[str]


def padded(samples: list[tuple[Seen, list[str]]]) -> Padded:
    """Put pictures of unequal sizes into the upper left corners of equal ones; boxes become shares of their picture."""
    sizes = [seen.pixels.shape[1:] for seen, _ in samples]
    height, width = (max(side) for side in zip(*sizes, strict=True))
    pixels = torch.zeros(len(samples), 3, height, width, dtype=torch.uint8)
    padding = torch.ones(len(samples), height, width, dtype=torch.bool)
    targets = []
    for number, ((seen, _), (h, w)) in enumerate(zip(samples, sizes, strict=True)):
        pixels[number, :, :h, :w] = torch.from_numpy(seen.pixels.copy())
        padding[number, :h, :w] = False
        low, high = seen.boxes[:, :2], seen.boxes[:, 2:]
        boxes = np.concatenate([(low + high) / 2, high - low], axis=1) / np.array([w, h, w, h], dtype=np.float32)
        targets.append(Target(torch.from_numpy(seen.labels), torch.from_numpy(boxes)))
    return Padded(pixels, padding, targets, [name for _, names in samples for name in names])


def normalized(pixels: Tensor, padding: Tensor, normalize: Normalize) -> Tensor:
    """Bytes `(B, 3, H, W)` to what a network sees, channels last in memory; padding is zero."""
    mean, std = (pixels.new_tensor(list(v), dtype=torch.float32).view(3, 1, 1) for v in (normalize.mean, normalize.std))
    x = ((pixels.float() / 255 - mean) / std).masked_fill(padding.unsqueeze(1), 0)
    return x.contiguous(memory_format=torch.channels_last)


def training_batches(
    pictures: Sequence[CocoImage],
    views: Views,
    normalize: Normalize,
    sampler: StepSampler,
    *,
    num_workers: int,
    device: torch.device,
    on_unreadable: OnUnreadable,
) -> Iterator[tuple[Tensor, Tensor, list[Target]]]:
    """Per step this rank's images `(B, 3, H, W)`, their padding `(B, H, W)` and targets, on the device."""
    dataset = TrainingViews(pictures, views, sampler.seed)
    for batch in build_dataloader(dataset, num_workers, batch_sampler=sampler, collate_fn=padded):
        on_unreadable(batch.bad)
        pixels, padding = (tensor.to(device, non_blocking=True) for tensor in (batch.pixels, batch.padding))
        targets = [Target(target.labels.to(device), target.boxes.to(device)) for target in batch.targets]
        yield normalized(pixels, padding, normalize), padding, targets


class TestViews(Dataset[tuple[int, np.ndarray | None, str]]):
    """Each picture once: its number, its pixels at the size of the test, or None and what is wrong with the file."""

    __test__ = False  # no test of pytest's

    def __init__(self, pictures: Sequence[CocoImage], views: Views) -> None:
        self.pictures, self.views = pictures, views

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[int, np.ndarray | None, str]:
        """Picture `index`."""
        try:
            image = self.pictures[index].read()
        except UnreadableImage as error:
            return index, None, str(error)
        size = target_size(*image.size, self.views.test_size_px, self.views.max_size_px)
        return index, _pixels(image.resize(size, Image.Resampling.BILINEAR)), ""


def test_pictures(
    pictures: Sequence[CocoImage],
    views: Views,
    normalize: Normalize,
    *,
    num_workers: int,
    device: torch.device,
    on_unreadable: OnUnreadable,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Each picture that can be decoded: its number, image `(1, 3, H, W)` and padding `(1, H, W)`, of which it has none.

    One at a time: padding would make what is detected in a picture depend on the others of its batch.
    """
    for index, pixels, bad in build_dataloader(TestViews(pictures, views), num_workers, batch_size=None):
        if bad:
            on_unreadable([bad])
            continue
        image = torch.as_tensor(pixels).to(device, non_blocking=True).unsqueeze(0)
        padding = torch.zeros_like(image[:, 0], dtype=torch.bool)
        yield int(index), normalized(image, padding, normalize), padding
