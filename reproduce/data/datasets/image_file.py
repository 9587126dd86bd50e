"""Decode one image file with PIL."""

import io

from PIL import Image, UnidentifiedImageError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
"""Files with these suffixes, in upper or lower case, are images; others are ignored."""

DECODE_ERRORS = (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What PIL raises if a file is missing, truncated, or no image."""


class UnreadableImage(Exception):
    """An image can't be read or decoded; `str()` names the file and the reason."""


def read_image(path: str, encoded: bytes | None = None) -> Image.Image:
    """Decode the file at `path`, or its content `encoded`, to an RGB image.

    Raises `UnreadableImage` if the file is missing, truncated, or no image.
    """
    try:
        with Image.open(path if encoded is None else io.BytesIO(encoded)) as image:
            return image.convert("RGB")
    except UnidentifiedImageError as error:  # PIL's message contains a memory address, which differs each time
        raise UnreadableImage(f"{path} (not an image format that PIL knows)") from error
    except DECODE_ERRORS as error:
        raise UnreadableImage(f"{path} ({error})") from error
