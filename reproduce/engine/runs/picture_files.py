"""Pictures that people judge a training by: small files in a run's folder, with captions and alternative texts.

A picture is a JPEG, or the points of a map, which the report draws. Needs no torch: the report reads them, too.
"""

import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from reproduce.errors import UserError
from reproduce.files import read_json, write_atomic
from reproduce.run_images import PICTURES

CROPS, NEIGHBORS, ATLAS, MAP = "crops", "neighbors", "atlas", "map"
NAMES = (CROPS, NEIGHBORS, ATLAS, MAP)
"""The pictures that a run may have, in the order in which a page shows them."""
THRESHOLDS_FILE = "thresholds.json"
"""What the collapse detector of a pretraining watches for, which is drawn into its curves (`Run.record_thresholds`)."""
JPEG_QUALITY = 80
GROUND = (27, 30, 34)
"""Color between tiles: dark, as on a sheet of film, so that it suits a light page and a dark one."""
MARK = (108, 197, 147)
GAP_PX, SPACE_PX, MARK_PX = 3, 12, 3

Points = Mapping[str, Sequence[tuple[float, float]]]
"""The places on a map in [0, 1] x [0, 1], by class."""


@dataclass(frozen=True)
class Picture:
    """A picture, in words and as a JPEG or as points."""

    name: str
    """One of `NAMES`."""
    title: str
    caption: str
    alt: str
    """What the picture shows, for who can't see it."""
    jpeg: bytes | None = None
    width_px: int = 0
    height_px: int = 0
    points: Points = field(default_factory=dict)
    checkpoint_sha256: str = ""
    """The checkpoint that the picture is of; "" for one of the images alone."""


@dataclass(frozen=True)
class Tile:
    """One image of a sheet: `pixels` `(H, W, 3)` uint8, `size_px` wide and high on it; a line below if `marked`."""

    pixels: np.ndarray
    size_px: int
    marked: bool = False


def contact_sheet(rows: Sequence[Sequence[Tile | None]]) -> Image.Image:
    """Return the tiles row by row on one image. None leaves a space in a row, an empty row one between rows."""
    heights = [max((tile.size_px + MARK_PX for tile in row if tile), default=SPACE_PX - GAP_PX) for row in rows]
    widths = [sum(GAP_PX + (tile.size_px if tile else SPACE_PX - GAP_PX) for tile in row) for row in rows]
    sheet = Image.new("RGB", (GAP_PX + max(widths), GAP_PX + sum(GAP_PX + height for height in heights)), GROUND)
    top = GAP_PX
    for row, height in zip(rows, heights, strict=True):
        left = GAP_PX
        for tile in row:
            if tile is None:
                left += SPACE_PX
                continue
            lower = top + height - MARK_PX
            sheet.paste(_resized(tile), (left, lower - tile.size_px))
            if tile.marked:
                sheet.paste(MARK, (left, lower, left + tile.size_px, lower + MARK_PX))
            left += tile.size_px + GAP_PX
        top += height + GAP_PX
    return sheet


def _resized(tile: Tile) -> Image.Image:
    """Return a tile's image; enlarged, its pixels can be seen."""
    image = Image.fromarray(np.ascontiguousarray(tile.pixels))
    filter_ = Image.Resampling.NEAREST if image.width < tile.size_px else Image.Resampling.LANCZOS
    return image.resize((tile.size_px, tile.size_px), filter_)


def sheet_picture(
    rows: Sequence[Sequence[Tile | None]], name: str, title: str, caption: str, alt: str, checkpoint_sha256: str = ""
) -> Picture:
    """Return a contact sheet as a picture with these words."""
    sheet, file = contact_sheet(rows), io.BytesIO()
    sheet.save(file, "JPEG", quality=JPEG_QUALITY)
    return Picture(
        name, title, caption, alt, file.getvalue(), sheet.width, sheet.height, checkpoint_sha256=checkpoint_sha256
    )


def jpeg_path(run_folder: Path, name: str) -> Path:
    """Return the file of a picture that is a JPEG."""
    return run_folder / PICTURES / f"{name}.jpg"


def svg_path(run_folder: Path, name: str) -> Path:
    """Return the file of a map, which the report draws of its points."""
    return run_folder / PICTURES / f"{name}.svg"


def words_path(run_folder: Path, name: str) -> Path:
    """Return the file with a picture's words and points. Written last: without it there is no picture."""
    return run_folder / PICTURES / f"{name}.json"


def write_picture(run_folder: Path, picture: Picture) -> None:
    """Write a picture into a run's folder. Raises `UserError` if the disk is full or not writable."""
    if picture.jpeg is not None:
        write_atomic(jpeg_path(run_folder, picture.name), picture.jpeg)
    content = {key: value for key, value in asdict(picture).items() if key not in ("name", "jpeg")}
    write_atomic(words_path(run_folder, picture.name), json.dumps(content, separators=(",", ":")))


def read_pictures(run_folder: Path, checkpoint_sha256: str | None = "") -> list[Picture]:
    """Read a run's pictures, without damaged ones and those of another checkpoint (None: of any)."""
    found = [each for name in NAMES if (each := _read(run_folder, name))]
    return [each for each in found if checkpoint_sha256 is None or each.checkpoint_sha256 in ("", checkpoint_sha256)]


def _read(run_folder: Path, name: str) -> Picture | None:
    try:
        content: dict[str, Any] = read_json(words_path(run_folder, name))
        known = {each.name for each in fields(Picture)}
        jpeg = None if content["points"] else jpeg_path(run_folder, name).read_bytes()
        return Picture(name=name, jpeg=jpeg, **{key: value for key, value in content.items() if key in known})
    except (UserError, OSError, TypeError, KeyError):
        return None


@contextmanager
def only_warn(what: str) -> Iterator[None]:
    """Print a warning that names `what` for any error: no run ends because a picture could not be made."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever happens, the training is worth more
        print(f"warning: {what} could not be made ({type(error).__name__}: {error})", file=sys.stderr, flush=True)
