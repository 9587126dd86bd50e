"""Features on disk, worked out once for what they depend on: a checkpoint, pictures, and how these are cut."""

import hashlib
import importlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from torch import Tensor

from reproduce.engine.distributed.collectives import any_rank, barrier, is_main, rank, world_size
from reproduce.errors import UserError
from reproduce.files import read_json, write_atomic_with, write_json

MADE_BY = (
    *("models.zoo.load", "models.zoo.layouts", "models.zoo.tensor_bundle", "models.networks.resnet"),
    *(
        "reproduce.data.datasets.image_file",
        "reproduce.data.pipeline.center_crop",
        "reproduce.data.pipeline.dataloader",
        "reproduce.engine.precision",
        __name__,
    ),
)
"""The code that decides on a feature: where it changes, features are worked out anew."""


@dataclass(frozen=True)
class Features:
    """Rows `(n, num_features)` fp32, memory-mapped, in the pictures' order; `indices (n,)` of each row's picture.

    `bad` names the pictures that could not be decoded and have no row.
    """

    rows: np.ndarray
    indices: np.ndarray
    bad: list[str]


class FeatureStore:
    """A folder of features, one folder below it for each `about`; all ranks must see the same disk.

    Nothing is ever deleted: 1.28 M x 2048 features are 10.5 GB. Whoever wants the room deletes the folder.
    """

    def __init__(self, folder: Path, writer: str) -> None:
        self._folder = folder
        self._writer = writer
        """A name that no process outside this run uses."""

    def find(self, about: dict[str, Any]) -> Features | None:
        """The features of this checkpoint, these pictures and this way of cutting them; None where there are none."""
        at = self._at(about)
        if not (at / "about.json").exists():
            return None
        rows, indices = np.load(at / "rows.npy", mmap_mode="r"), np.load(at / "indices.npy")
        return Features(rows, indices, read_json(at / "about.json")["bad"])

    def write(self, about: dict[str, Any], batches: Iterable[tuple[Tensor, Tensor]], bad: Sequence[str]) -> Features:
        """Write this rank's `batches` of indices `(b,)` and rows `(b, d)`, and put all ranks' together. A collective.

        `bad` is read once the batches are through. Ranks hold consecutive shares of the pictures. Raises `UserError` on
        all where there is no row.
        """
        at = self._at(about)
        unfinished = at.with_name(f".{at.name}-{self._writer}")
        if is_main():
            shutil.rmtree(unfinished, ignore_errors=True)  # of an attempt that was killed
            unfinished.mkdir(parents=True)
        barrier()
        indices: list[Tensor] = []
        width = 0

        def fill(file: Any) -> None:
            nonlocal width
            for index, rows in batches:
                file.write(np.ascontiguousarray(rows.float().cpu().numpy()).data)
                indices.append(index.cpu())
                width = rows.shape[1]

        write_atomic_with(unfinished / f"rows-{rank()}", fill)
        share = torch.cat(indices).tolist() if indices else []
        if not any_rank(bool(share)):
            raise UserError(f"none of the pictures can be decoded{f'; the first: {bad[0]}' if bad else ''}")
        write_json(unfinished / f"share-{rank()}.json", {"indices": share, "width": width, "bad": list(bad)})
        barrier()
        if is_main():
            _put_together(unfinished, about)
            _publish(unfinished, at)
        barrier()
        found = self.find(about)
        assert found is not None
        return found

    def _at(self, about: dict[str, Any]) -> Path:
        sources = [Path(str(importlib.import_module(name).__file__)).read_bytes() for name in MADE_BY]
        code = [hashlib.sha256(source).hexdigest() for source in sources]
        versions = {"torch": torch.__version__, "pillow": PIL.__version__}
        text = json.dumps({**about, "code": code, **versions}, sort_keys=True)
        return self._folder / hashlib.sha256(text.encode()).hexdigest()[:20]


def _publish(unfinished: Path, at: Path) -> None:
    """Give a whole folder its name, unless another run was quicker: its features are the same."""
    if not (at / "about.json").exists():
        shutil.rmtree(at, ignore_errors=True)
        try:
            os.replace(unfinished, at)
            return
        except OSError:
            if not (at / "about.json").exists():
                raise
    shutil.rmtree(unfinished, ignore_errors=True)


def _put_together(folder: Path, about: dict[str, Any]) -> None:
    """One file of rows and one of indices from those of the ranks, and last what they are."""
    shares = [read_json(folder / f"share-{number}.json") for number in range(world_size())]
    indices = np.array([index for share in shares for index in share["indices"]], dtype=np.int64)
    width = max(share["width"] for share in shares)

    def fill(file: Any) -> None:
        header = {"descr": "<f4", "fortran_order": False, "shape": (len(indices), width)}
        np.lib.format.write_array_header_1_0(file, header)
        for number in range(world_size()):
            with open(folder / f"rows-{number}", "rb") as part:
                shutil.copyfileobj(part, file, 1 << 24)
            (folder / f"rows-{number}").unlink()
            (folder / f"share-{number}.json").unlink()

    write_atomic_with(folder / "rows.npy", fill)
    write_atomic_with(folder / "indices.npy", lambda file: np.save(file, indices))
    write_json(folder / "about.json", {**about, "bad": [name for share in shares for name in share["bad"]]})
