"""What every evaluation is given, and the features of a set of pictures."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reproduce.config import Dataset, Normalize
from reproduce.data.batches import Bad, centre_batches
from reproduce.data.pictures import Pictures
from reproduce.engine.distributed import device

FEATURE_BATCH = 128
"""Pictures per forward pass without gradients; it changes speed and memory, not features."""


@dataclass
class Pixels:
    """The test-time pipeline: resize the shorter side, cut the centre."""

    resize_px: int
    crop_px: int


@dataclass
class Setting:
    """Where an evaluation's pictures are, and how it reads and tells. `counts` and `provenance` go into the result."""

    root: Path
    dataset: Dataset
    normalize: Normalize
    seed: int
    num_workers: int
    on_bad: Bad
    tell: Callable[..., None]
    counts: dict[str, int]
    provenance: dict[str, Any]


@torch.no_grad()
def features(trunk: nn.Module, pictures: Pictures, pixels: Pixels, setting: Setting) -> tuple[Tensor, Tensor]:
    """Pooled features `(n, num_features)` fp32 of the centre crops, and the index `(n,)` of each row's picture.

    Rows follow the pictures' order; pictures that can't be decoded are left out (or stop the run).
    """
    trunk.eval()
    batches = centre_batches(
        pictures,
        pixels.resize_px,
        pixels.crop_px,
        setting.normalize,
        batch_size=FEATURE_BATCH,
        num_workers=setting.num_workers,
        device=device(),
        on_bad=setting.on_bad,
    )
    rows, indices = [], []
    for index, images in batches:
        rows.append(trunk(images).float())
        indices.append(index)
    return torch.cat(rows), torch.cat(indices).to(device())
