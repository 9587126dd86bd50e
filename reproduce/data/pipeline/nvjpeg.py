"""Decode JPEG files on the GPU and cut their crops there, for machines with too few CPU cores for their GPU.

The loader's workers only read files and draw boxes and augmentation parameters: the same draws as on the CPU. nvJPEG
rounds pixels in its own way, and crops are resized in floats, so that a pixel may differ by a few of 255 levels: the
option is part of a run's name (`crops.jpeg_decoder`). What nvJPEG does not decode as PIL does (other formats, CMYK,
EXIF rotation, truncated files) is decoded by the workers.
"""

import contextlib
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset
from torchcodec.decoders import decode_jpeg

from reproduce.config.schema import Augment, View
from reproduce.data.datasets.image_file import UnreadableImage, decoding
from reproduce.data.datasets.image_folder import ImageList
from reproduce.data.pipeline.image_io import JPEG_MAGIC, decode_image, has_exif_rotation, read_or_next
from reproduce.data.pipeline.multicrop import (
    Box,
    CropDraw,
    MultiCropBatch,
    MultiCropDataset,
    collate_multicrop,
    draw_crops,
)
from reproduce.data.pipeline.sampler import rng_for
from reproduce.errors import UserError, did_you_mean

NVJPEG = "nvjpeg"
JPEG_END = b"\xff\xd9"
"""The last bytes of a complete JPEG file."""
PLAIN_MODES = ("RGB", "L")
"""PIL's modes of the JPEG files that nvJPEG converts to the same RGB."""


class EncodedSample(NamedTuple):
    """One image that is not decoded yet, and the draws of its crops."""

    image: Tensor
    """A JPEG file's bytes `(n,)` uint8, or pixels `(3, H, W)` uint8 of what nvJPEG does not decode."""
    draws: list[CropDraw]
    label: int
    unreadable: list[str]
    position: tuple[int, int]
    """`(epoch, index)` of the requested image."""


@dataclass
class EncodedBatch:
    """One rank's share of a step before it is decoded.

    All images are in one tensor, because a process that gets a tensor from a worker opens a file for it.
    """

    content: Tensor
    """The images one after the other, `(n,)` uint8."""
    shapes: list[tuple[int, ...]]
    """Each image's shape: `(bytes,)` of a JPEG file, `(3, H, W)` of pixels."""
    boxes: list[list[list[Box]]]
    """Per view and image, the crops' boxes."""
    sizes_px: list[int]
    """Per view, the side of its crops."""
    parameters: list[Tensor]
    """Per view, `AUGMENT_PARAMETERS` `(num * B, 11)` float32, crop 0 of all images first."""
    labels: Tensor
    unreadable: list[str]
    positions: list[tuple[int, int]]
    """`(epoch, index)` of each requested image."""


class EncodedDataset(Dataset[EncodedSample]):
    """The images that `MultiCropDataset` would cut into crops, with the same draws, indexed by `(epoch, index)`."""

    def __init__(self, images: ImageList, views: Sequence[View], augment: Augment, seed: int) -> None:
        self.images, self.views, self.augment, self.seed = images, views, augment, seed

    def __getitem__(self, at: tuple[int, int]) -> EncodedSample:
        """Return image `index` in `epoch`, or the next readable one."""
        epoch, index = at
        images = self.images
        used_index, (image, width, height), unreadable = read_or_next(
            len(images), index, lambda number: read_encoded(images.read_bytes(number), images.paths[number])
        )
        draws = draw_crops(width, height, self.views, self.augment, rng_for(self.seed, epoch, index))
        return EncodedSample(image, draws, images.labels[used_index], unreadable, at)


def read_encoded(encoded: bytes, path: str) -> tuple[Tensor, int, int]:
    """Return a JPEG file's bytes, or the pixels of what nvJPEG does not decode, with the image's width and height.

    Raises `UnreadableImage` if the content is truncated or is no image.
    """
    if encoded.startswith(JPEG_MAGIC) and encoded.endswith(JPEG_END) and not has_exif_rotation(encoded):
        with contextlib.suppress(UnreadableImage), decoding(path), Image.open(io.BytesIO(encoded)) as header:
            if header.mode in PLAIN_MODES:
                return torch.frombuffer(bytearray(encoded), dtype=torch.uint8), header.width, header.height
    pixels = decode_image(encoded, path)
    return pixels, pixels.shape[2], pixels.shape[1]


def collate_encoded(samples: list[EncodedSample]) -> EncodedBatch:
    """Join the samples of a batch, crop by crop as `collate_multicrop` does."""
    views = list(zip(*(sample.draws for sample in samples), strict=True))
    return EncodedBatch(
        content=torch.cat([sample.image.contiguous().flatten() for sample in samples]),
        shapes=[tuple(sample.image.shape) for sample in samples],
        boxes=[[draw.boxes for draw in view] for view in views],
        sizes_px=[view[0].size_px for view in views],
        parameters=[torch.stack([draw.parameters for draw in view], dim=1).flatten(0, 1) for view in views],
        labels=torch.tensor([sample.label for sample in samples]),
        unreadable=[name for sample in samples for name in sample.unreadable],
        positions=[sample.position for sample in samples],
    )


def require_known_decoder(name: str | None) -> None:
    """Raise `UserError` if there is no such `crops.jpeg_decoder`."""
    if name not in (None, NVJPEG):
        raise UserError(f"unknown crops.jpeg_decoder {name!r}: {did_you_mean(name, [NVJPEG, 'null'])}")


def why_unusable(device: torch.device) -> str:
    """Return why nvJPEG can't be used on a device, as the middle of a sentence, or "" if it can."""
    if device.type != "cuda":
        return "there is no CUDA GPU"
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    try:
        decode_jpeg([file.getvalue()], mode="RGB", device=device)
    except RuntimeError as error:
        return f"nvJPEG does not work here ({str(error).splitlines()[0].rstrip('.')})"
    return ""


def decoded_batches(
    batches: Iterable[EncodedBatch], fallback: MultiCropDataset, device: torch.device
) -> Iterator[MultiCropBatch]:
    """Decode each batch on `device` and cut its crops there. What stays on the host is pinned for a GPU.

    A batch with a file that nvJPEG refuses is decoded and cut on the CPU, by `fallback`, which also replaces images
    that can't be decoded at all.
    """
    for batch in batches:
        try:
            images = _decode(batch, device)
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise  # no file's fault: the run ends, and says what to do
        except RuntimeError:
            made = collate_multicrop([fallback[position] for position in batch.positions])
            yield made.pin_memory() if device.type == "cuda" else made
        else:
            yield _cut(batch, images)


def _decode(batch: EncodedBatch, device: torch.device) -> list[Tensor]:
    """Return each image's pixels `(3, H, W)` uint8 on `device`; all JPEG files are decoded in one call."""
    parts = batch.content.split([math.prod(shape) for shape in batch.shapes])
    files = [part for part, shape in zip(parts, batch.shapes, strict=True) if len(shape) == 1]
    decoded = iter(decode_jpeg(files, mode="RGB", device=device) if files else [])
    return [
        next(decoded) if len(shape) == 1 else part.view(shape).to(device)
        for part, shape in zip(parts, batch.shapes, strict=True)
    ]


def _cut(batch: EncodedBatch, images: Sequence[Tensor]) -> MultiCropBatch:
    """Cut the crops of decoded images on their device. Labels are pinned if that is a GPU."""
    pixels = [image[None].float() for image in images]
    crops = []
    for boxes, size_px in zip(batch.boxes, batch.sizes_px, strict=True):
        cut = [
            _resized(image, of_image[number], size_px)
            for number in range(len(boxes[0]))
            for image, of_image in zip(pixels, boxes, strict=True)
        ]
        crops.append(torch.cat(cut).round_().to(torch.uint8))
    labels = batch.labels.pin_memory() if images[0].is_cuda else batch.labels
    return MultiCropBatch(crops, batch.parameters, labels, batch.unreadable)


def _resized(image: Tensor, box: Box, size_px: int) -> Tensor:
    left, top, right, bottom = box
    cut = image[:, :, top:bottom, left:right]
    return functional.interpolate(cut, (size_px, size_px), mode="bilinear", antialias=True)
