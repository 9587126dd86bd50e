"""Decode one image file with PIL: the only place that decides what the pixels of a file are.

Runs, `data-verify` and the report's examples read files here. Two conventions hold everywhere. Pixels are those that
the file stores: an EXIF orientation is ignored, as by the paper's loaders and by the annotations of VOC and COCO.
Transparency is dropped: a pixel has the color that is stored below it.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, UnidentifiedImageError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
"""Files with these suffixes, in upper or lower case, are images; others are passed over, and named."""

EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"})
"""PIL's modes whose conversion to RGB keeps brightness."""
DEEP_GRAY_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I"})
"""PIL's modes of gray values that may have 16 bits. PIL's own conversion cuts them off at 255: almost all is white."""
TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_SAMPLE_FORMAT = 258, 262, 339
MIN_IS_WHITE, SIGNED = 0, 2
"""Values of the photometric interpretation and of the sample format of a TIFF file."""


class UnreadableImage(Exception):
    """An image can't be read or decoded; `str()` names the file and the reason."""

    @property
    def reason(self) -> str:
        """The reason alone, if a file could not be decoded."""
        return str(self.__cause__)


@contextmanager
def decoding(path: str) -> Iterator[None]:
    """Raise `UnreadableImage` for whatever PIL raises if the file at `path` is missing, truncated, or no image.

    PIL's plugins raise errors of any kind on damaged files, e.g. RuntimeError (AVIF) or NotImplementedError (DDS).
    """
    try:
        yield
    except (MemoryError, UnreadableImage):
        raise
    except UnidentifiedImageError as error:  # PIL's message contains a memory address, which differs each time
        raise UnreadableImage(f"{path} (not an image format that PIL knows)") from error
    except Exception as error:
        raise UnreadableImage(f"{path} ({error})") from error


def read_image(path: str, encoded: bytes | None = None) -> Image.Image:
    """Decode the file at `path`, or its content `encoded`, to an RGB image.

    Raises `UnreadableImage` if the file is missing, truncated, or no image, or if its pixels have no known range.
    """
    with decoding(path), Image.open(path if encoded is None else io.BytesIO(encoded)) as image:
        return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an opened image of any mode to RGB. Raises `ValueError` if the range of its values is unknown.

    16-bit gray values are divided by 257 and rounded, so that 65535 is 255.
    """
    if image.mode in DEEP_GRAY_MODES and (white := _white_of(image)):
        values = np.asarray(image).astype(np.int64)
        gray = (values * 255 + white // 2) // white
        if _is_inverted(image):
            gray = 255 - gray
        return Image.fromarray(gray.astype(np.uint8)).convert("RGB")
    if image.mode not in EIGHT_BIT_MODES:
        raise ValueError(
            f"its pixels have PIL's mode {image.mode} in a {image.format} file, whose range is unknown: convert it to "
            "8 bits per channel"
        )
    if image.format == "TIFF" and _tiff_tag(image, TIFF_SAMPLE_FORMAT, 1) == SIGNED:
        raise ValueError("its pixels are signed numbers, whose range is unknown: convert it to unsigned 8 bits")
    image.load()  # which may still add to `info`
    image.info.pop("transparency", None)  # PIL warns about it, and drops it all the same
    return image.convert("RGB")


def _white_of(image: Image.Image) -> int:
    """Return the value that is white in an image of a deep gray mode; 0 if it is unknown."""
    if image.format == "PNG" or (image.format == "PPM" and image.mode == "I"):  # PIL scales PPM's values to 16 bits
        return 2**16 - 1
    if image.format == "TIFF" and image.mode != "I":
        return int(2 ** _tiff_tag(image, TIFF_BITS, 16) - 1)
    return 0


def _is_inverted(image: Image.Image) -> bool:
    """Return whether 0 is white, as some TIFF files have it; PIL turns only 8 bits over."""
    return image.format == "TIFF" and _tiff_tag(image, TIFF_PHOTOMETRIC, 1) == MIN_IS_WHITE


def _tiff_tag(image: Image.Image, tag: int, default: int) -> int:
    value = getattr(image, "tag_v2", {}).get(tag, default)
    return int(value[0] if isinstance(value, tuple) else value)
