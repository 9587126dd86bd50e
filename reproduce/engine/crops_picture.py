"""The picture that a training makes of its first batch: the crops as the network gets them."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from reproduce.config.schema import Normalize
from reproduce.engine.runs.picture_files import CROPS, Picture, Tile, only_warn, sheet_picture
from reproduce.engine.runs.run import Run

NUM_IMAGES = 8
LARGEST_TILE_PX = 80

Batch = tuple[list[Tensor], Tensor]


def with_crops_picture(batches: Iterable[Batch], run: Run, normalize: Normalize, first_step: int) -> Iterator[Batch]:
    """Yield the batches of crops and labels; add a picture of the first one to a run that starts from step 0.

    Only rank 0 makes it, once. It waits for the device once and draws no random number, and a picture that can't be
    made is a warning.
    """
    wanted = first_step == 0 and run.wants_picture(CROPS)
    for crops, labels in batches:
        if wanted:
            with only_warn("a picture of the crops"):
                run.add_picture(crops_picture(denormalized(crops, normalize)))
            wanted = False
        yield crops, labels


@torch.no_grad()
def denormalized(crops: list[Tensor], normalize: Normalize) -> list[np.ndarray]:
    """Return the crops of the first images as they look: `(n, S, S, 3)` uint8 for each crop `(B, 3, S, S)`.

    n is `NUM_IMAGES`, or B if that is less.
    """
    first = [crop[:NUM_IMAGES].float() for crop in crops]
    flat = torch.cat([each.reshape(-1) for each in first]).cpu()  # one copy, so that the host waits once
    mean, std = (np.array(values, dtype=np.float32) for values in (normalize.mean, normalize.std))
    found = []
    for each, values in zip(first, flat.split([each.numel() for each in first]), strict=True):
        pixels = values.view(each.shape).permute(0, 2, 3, 1).numpy()
        found.append(((pixels * std + mean) * 255).round().clip(0, 255).astype(np.uint8))
    return found


def crops_picture(crops: list[np.ndarray]) -> Picture:
    """Return the picture of crops `(n, S, S, 3)`, a row for each image; they keep their relative sizes."""
    sizes = [crop.shape[1] for crop in crops]
    shrink = min(1.0, LARGEST_TILE_PX / max(sizes))
    rows = [
        [Tile(crop[number], round(shrink * size)) for crop, size in zip(crops, sizes, strict=True)]
        for number in range(len(crops[0]))
    ]
    words = " and ".join(f"{sizes.count(size)} of {size} pixels" for size in dict.fromkeys(sizes))
    return sheet_picture(
        rows,
        name=CROPS,
        title="Crops before the first step",
        caption=(
            f"The first {len(rows)} images of the first batch, one in each row, as they come to the network: cut, "
            f"flipped, colored and blurred; only the normalization is undone. {words[0].upper()}{words[1:]}."
        ),
        alt=f"{len(rows)} rows of crops, a row for each image: {words}.",
    )
