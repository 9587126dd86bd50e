"""A handful of test pictures with their boxes, predicted and true: left by an evaluation for the report to draw."""

import base64
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reproduce.data.datasets.image_file import read_image
from reproduce.files import read_json, write_json

FILE = "detections.json"
"""Its name in a run's folder."""
NUM_PICTURES = 6
NUM_PREDICTED = 6
"""The surest of a picture."""
LONGER_SIDE_PX = 240
JPEG_QUALITY = 75


@dataclass(frozen=True)
class Box:
    """An object's class and its corners in pixels of the whole picture: left, top, right, bottom."""

    name: str
    corners: tuple[float, float, float, float]
    score: float | None = None
    """Of a predicted one, in [0, 1]."""


@dataclass(frozen=True)
class Detected:
    """A picture file, what was found in it, and what is there."""

    path: str
    predicted: list[Box]
    true: list[Box]


def chosen(num_images: int) -> list[int]:
    """Which of so many test pictures are shown: evenly spread, the same for every network."""
    shown = min(NUM_PICTURES, num_images)
    return [number * num_images // shown for number in range(shown)]


def write(folder: Path, pictures: Sequence[Detected]) -> None:
    """Write the pictures, small, and of each the surest of what was predicted; whole or not at all."""
    write_json(folder / FILE, [_small(picture) for picture in pictures])


def read(folder: Path) -> list[dict[str, Any]]:
    """What `write` left: per picture `jpeg` (base64), `width`, `height`, `predicted` and `true`. [] without it."""
    found: list[dict[str, Any]] = read_json(folder / FILE) if (folder / FILE).exists() else []
    return found


def _small(picture: Detected) -> dict[str, Any]:
    image = read_image(picture.path)
    width, height = image.size
    image.thumbnail((LONGER_SIDE_PX, LONGER_SIDE_PX))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY)
    surest = sorted(picture.predicted, key=lambda box: box.score or 0.0, reverse=True)[:NUM_PREDICTED]
    return {
        "jpeg": base64.b64encode(file.getvalue()).decode(),
        "width": width,
        "height": height,
        "predicted": [asdict(box) for box in surest],
        "true": [asdict(box) for box in picture.true],
    }
