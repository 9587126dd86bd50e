"""A few test images with predicted and true boxes, which detection evaluations store for the report to draw."""

import base64
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reproduce.data.datasets.image_file import read_image
from reproduce.files import read_json, write_json

DETECTIONS_FILE = "detections.json"
"""Name of the file in a run's folder."""
NUM_EXAMPLES = 6
MAX_PREDICTED_BOXES = 6
"""Predicted boxes stored per image, those with the highest scores."""
LONGER_SIDE_PX = 240
JPEG_QUALITY = 75


@dataclass(frozen=True)
class ExampleBox:
    """An object's class name, and its corners in pixels of the full-size image: left, top, right, bottom."""

    name: str
    corners: tuple[float, float, float, float]
    score: float | None = None
    """Confidence in [0, 1]; None for a true box."""


@dataclass(frozen=True)
class DetectionExample:
    """An image file, and the boxes predicted and annotated for it."""

    path: str
    predicted: list[ExampleBox]
    true: list[ExampleBox]


def example_indices(num_images: int) -> list[int]:
    """Return which of the test images become examples: evenly spread, the same for every network."""
    num_examples = min(NUM_EXAMPLES, num_images)
    return [number * num_images // num_examples for number in range(num_examples)]


def write_examples(folder: Path, examples: Sequence[DetectionExample]) -> None:
    """Write the examples into a run's folder, as thumbnails with their highest-scoring boxes. Atomic."""
    write_json(folder / DETECTIONS_FILE, [_to_json(example) for example in examples])


def read_examples(folder: Path) -> list[dict[str, Any]]:
    """Read a run's examples: `jpeg` (base64), `width`, `height`, `predicted`, `true` each. [] if it has none."""
    path = folder / DETECTIONS_FILE
    examples: list[dict[str, Any]] = read_json(path) if path.exists() else []
    return examples


def _to_json(example: DetectionExample) -> dict[str, Any]:
    image = read_image(example.path)
    width, height = image.size
    image.thumbnail((LONGER_SIDE_PX, LONGER_SIDE_PX))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY)
    by_score = sorted(example.predicted, key=lambda box: box.score or 0.0, reverse=True)
    return {
        "jpeg": base64.b64encode(file.getvalue()).decode(),
        "width": width,
        "height": height,
        "predicted": [asdict(box) for box in by_score[:MAX_PREDICTED_BOXES]],
        "true": [asdict(box) for box in example.true],
    }
