"""Decode stored images to uint8 tensors, and replace those that can't be decoded."""

import contextlib
import io
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor
from torchcodec.decoders import decode_jpeg

from reproduce.data.datasets.image_file import UnreadableImage, read_image
from reproduce.errors import UserError

JPEG_MAGIC = b"\xff\xd8\xff"
"""The first bytes of every JPEG file."""

Decoded = TypeVar("Decoded")


def decode_image(encoded: bytes, path: str) -> Tensor:
    """Decode to RGB pixels `(3, H, W)` uint8, channels-last in memory. `path` appears in errors only.

    torchcodec decodes JPEG, bit-identical to PIL and faster; `read_image` decodes everything else and raises
    `UnreadableImage` if the content is truncated or is no image.
    """
    if encoded.startswith(JPEG_MAGIC) and not has_exif_rotation(encoded):
        with contextlib.suppress(RuntimeError):  # PIL describes better what is wrong with a damaged file
            pixels: Tensor = decode_jpeg(encoded, mode="RGB")
            return pixels
    return torch.from_numpy(np.array(read_image(path, encoded))).permute(2, 0, 1)


def has_exif_rotation(encoded: bytes) -> bool:
    """Return whether EXIF asks for a rotation, which torchcodec applies but PIL (used by the evaluations) ignores."""
    if b"Exif\0" not in encoded:  # in the whole file: a large color profile may come first
        return False
    try:
        return Image.open(io.BytesIO(encoded)).getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception:  # noqa: BLE001 - EXIF is broken in many ways; PIL then returns the pixels as stored
        return True


def read_or_next(num_images: int, index: int, read: Callable[[int], Decoded]) -> tuple[int, Decoded, list[str]]:
    """Read image `index`, or the next readable one; return its index, the image, and the unreadable files.

    This way a batch keeps its size. Raises `UserError` if none of the `num_images` training images can be read.
    """
    unreadable: list[str] = []
    for shift in range(num_images):
        used_index = (index + shift) % num_images
        try:
            return used_index, read(used_index), unreadable
        except UnreadableImage as error:
            unreadable.append(str(error))
    raise UserError(f"none of the {num_images} training images can be read; the first error: {unreadable[0]}")
