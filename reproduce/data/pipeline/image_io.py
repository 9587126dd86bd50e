"""From a picture as it is stored to its pixels."""

import contextlib
import io

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor
from torchcodec.decoders import decode_jpeg

from reproduce.data.datasets.image_folder import read_image

JPEG = b"\xff\xd8\xff"
"""How every JPEG file begins."""


def decode(encoded: bytes, path: str) -> Tensor:
    """Decode to RGB pixels `(3, H, W)` uint8, channels-last in memory. Raises `UnreadableImage` if PIL can't read it.

    JPEG goes to torch's own decoder, which gives the same bits as PIL in less time; what is left, to PIL.
    """
    if encoded.startswith(JPEG) and not _turned(encoded):
        with contextlib.suppress(RuntimeError):  # of a damaged file, PIL says better what is wrong with it
            pixels: Tensor = decode_jpeg(encoded, mode="RGB")
            return pixels
    return torch.from_numpy(np.array(read_image(path, encoded))).permute(2, 0, 1)


def _turned(encoded: bytes) -> bool:
    """Whether its EXIF says how to turn it: torch's decoder would, PIL, by which evaluations cut theirs, does not."""
    if b"Exif\0\0" not in encoded[:65_536]:
        return False
    try:
        return Image.open(io.BytesIO(encoded)).getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception:  # noqa: BLE001 - EXIF is broken in many ways; PIL then gives the pixels as they are
        return True
