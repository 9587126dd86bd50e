"""The one function of torchcodec that is used here, by torchvision's decoder of the same libraries."""

from typing import Any

import torch
from torch import Tensor
from torchvision.io import ImageReadMode
from torchvision.io import decode_jpeg as torchvision_decode_jpeg


def decode_jpeg(source: Any, *, mode: str = "RGB", device: Any = "cpu") -> Any:
    """Decode one JPEG file's content, or a list of them, to RGB pixels `(3, H, W)` uint8."""
    assert mode == "RGB"
    sources = source if isinstance(source, list) else [source]
    encoded = [
        each if isinstance(each, Tensor) else torch.frombuffer(bytearray(each), dtype=torch.uint8) for each in sources
    ]
    decoded = torchvision_decode_jpeg(encoded, ImageReadMode.RGB, device)
    return decoded if isinstance(source, list) else decoded[0]
