"""Features of center crops: extracted once per checkpoint, images, pipeline and code, then read from disk."""

import dataclasses
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from torch import Tensor, nn

from evals import context as evaluation_context
from evals.context import CenterCropConfig, EvalContext
from models.networks import amdim, cmc, efficientnet, heads, resnet, revnet, trunk
from models.zoo import layouts, load, other_networks, tensor_bundle
from reproduce.data.datasets import image_file
from reproduce.data.datasets.image_folder import ImageList
from reproduce.data.datasets.manifest import image_states_sha256
from reproduce.data.pipeline import center_crop, dataloader
from reproduce.data.pipeline.dataloader import OnUnreadable, center_crop_batches
from reproduce.engine import arithmetic, precision
from reproduce.engine.distributed.collectives import (
    any_rank,
    barrier,
    device,
    gather_union,
    is_main,
    others_wait,
    rank,
    world_size,
)
from reproduce.engine.first_steps import describe_rows
from reproduce.engine.precision import autocast
from reproduce.errors import UserError
from reproduce.files import read_json, sha256_of_lines, write_atomic_with, write_json

FEATURE_BATCH_SIZE = 128
"""Images per forward pass without gradients; changes speed and memory, not features."""
FINGERPRINTED_MODULES: tuple[ModuleType, ...] = (
    *(load, layouts, tensor_bundle, heads, resnet),
    *(other_networks, amdim, cmc, efficientnet, revnet, trunk),
    *(image_file, center_crop, dataloader, precision, evaluation_context, sys.modules[__name__]),
)
"""The code that determines a feature. After a change to it, features are extracted again."""
NUM_DESCRIBED = 16
"""How many of the images' features a result describes."""
CACHE_KEY_FILE = "cache_key.json"
"""Written last: a folder without it is incomplete."""


@dataclass(frozen=True)
class Features:
    """Features of a list of images."""

    rows: np.ndarray
    """`(n, num_features)` fp32, memory-mapped, in the images' reading order."""
    indices: np.ndarray
    """`(n,)` int64: the index of each row's image."""
    unreadable: list[str]
    """Files that could not be decoded, each with its error; they have no row."""


def extract_features(
    net: nn.Module, images: ImageList, crop: CenterCropConfig, context: EvalContext, kind: str = "pooled"
) -> Features:
    """Return features of the images' center crops: from disk, or extracted by all ranks and stored.

    `net` maps images to features. `kind` tells the features of one checkpoint apart: "pooled" ones of the trunk from
    the output of its "head". Unreadable images have no row (or stop the run).
    """
    run = context.run
    store = FeatureStore(run.folder.parent / ".features", run.run_id)
    cache_key = _cache_key(images, kind, crop, context) | {"files_sha256": _files_sha256(images)}
    found = store.find(cache_key)
    if any_rank(found is None) or found is None:  # another run may have stored them since another rank looked
        unreadable: list[str] = []
        rows = _extract_share(net, images, crop, context, unreadable)
        found = store.write(cache_key, rows, unreadable)
    run.handle_unreadable_images(found.unreadable)
    run.first_steps.note(describe_rows("features", found.rows[np.argsort(found.indices)[:NUM_DESCRIBED]]))
    return found


def _cache_key(images: ImageList, kind: str, crop: CenterCropConfig, context: EvalContext) -> dict[str, Any]:
    """Return what features depend on, besides the code: checkpoint, images, pipeline, device and precision."""
    return {
        "checkpoint_sha256": context.run.provenance["checkpoint_sha256"],
        "images_sha256": images.sha256(),
        # The former covers no folders: two splits, or two datasets, may have the same names.
        "paths_sha256": sha256_of_lines(images.paths),
        "features": kind,
        "center_crop": dataclasses.asdict(crop),
        "normalize": [list(context.normalize.mean), list(context.normalize.std)],
        "precision": context.cfg.precision,
        "device": device().type,
        **arithmetic.products(),
    }


def _files_sha256(images: ImageList) -> str:
    """Return a hash of the files' sizes and dates, looked up by rank 0: an image may have been replaced or repaired."""
    (found,) = gather_union({image_states_sha256(images)} if is_main() else set())
    return found


@torch.no_grad()
def _extract_share(
    net: nn.Module, images: ImageList, crop: CenterCropConfig, context: EvalContext, unreadable: list[str]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield indices among all images, and features, of this rank's share; add its unreadable files to `unreadable`.

    Shares are consecutive in reading order, so that the disk reads forward.
    """
    net.eval()
    start, end = (len(images) * number // world_size() for number in (rank(), rank() + 1))

    def on_unreadable(names: list[str]) -> None:
        context.run.handle_unreadable_images(names)
        unreadable.extend(names)

    share = images.reading_order()[start:end]
    batches = center_crops(images.subset(share.tolist()), crop, context, on_unreadable)
    for index, pixels in batches:
        with autocast(context.cfg.precision):
            rows = net(pixels)
        yield torch.from_numpy(share)[index], rows
        if world_size() == 1:  # ranks have unequal numbers of batches: they agree on a stop afterwards
            context.preemption.stop_if_requested("features will be extracted again")
    context.preemption.stop_if_requested("features will be extracted again")


def center_crops(
    images: ImageList, crop: CenterCropConfig, context: EvalContext, on_unreadable: OnUnreadable
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield indices `(B,)` and normalized center crops `(B, 3, crop_px, crop_px)` on the device."""
    return center_crop_batches(
        images,
        crop.resize_px,
        crop.crop_px,
        crop.interpolation,
        context.normalize,
        batch_size=FEATURE_BATCH_SIZE,
        num_workers=context.cfg.cluster.num_workers,
        device=device(),
        on_unreadable=on_unreadable,
    )


class FeatureStore:
    """A folder of extracted features, with one subfolder per cache key. All ranks must see the same disk.

    Nothing is ever deleted, and the features of ImageNet take 10.5 GB (1.28 M x 2048): delete the folder to free them.
    """

    def __init__(self, folder: Path, writer: str) -> None:
        """`writer` is a name that no other run uses."""
        self._folder, self._writer = folder, writer

    def find(self, cache_key: dict[str, Any]) -> Features | None:
        """Return the stored features of this checkpoint, images and pipeline; None if there are none."""
        folder = self._folder_of(cache_key)
        if not (folder / CACHE_KEY_FILE).exists():
            return None
        rows, indices = np.load(folder / "rows.npy", mmap_mode="r"), np.load(folder / "indices.npy")
        return Features(rows, indices, read_json(folder / CACHE_KEY_FILE)["unreadable"])

    def write(
        self, cache_key: dict[str, Any], batches: Iterable[tuple[Tensor, Tensor]], unreadable: Sequence[str]
    ) -> Features:
        """Write this rank's `batches` of indices `(b,)` and rows `(b, d)`, and merge all ranks' shares. A collective.

        Ranks hold consecutive shares of the images. `unreadable` is read after the last batch. Raises `UserError` on
        all ranks if there is no row, and on the rank whose feature is NaN or infinite: its image would have any class.
        """
        folder = self._folder_of(cache_key)
        unfinished = folder.with_name(f".{folder.name}-{self._writer}")
        if is_main():
            shutil.rmtree(unfinished, ignore_errors=True)  # of an attempt that was killed
            unfinished.mkdir(parents=True)
        barrier()
        indices: list[Tensor] = []
        width = 0

        def fill(file: Any) -> None:
            nonlocal width
            for index, rows in batches:
                values = np.ascontiguousarray(rows.float().cpu().numpy())
                if not np.isfinite(np.einsum("ij,ij->i", values, values)).all():
                    raise UserError(
                        "features of this checkpoint, or their lengths, are NaN or infinite: its weights are damaged "
                        "or far too large; take another checkpoint, or precision=fp32"
                    )
                file.write(values.data)
                indices.append(index.cpu())
                width = rows.shape[1]

        write_atomic_with(unfinished / f"rows-{rank()}", fill)
        share = torch.cat(indices).tolist() if indices else []
        if not any_rank(bool(share)):
            first = f"; the first: {unreadable[0]}" if unreadable else ""
            raise UserError(f"none of the images can be decoded{first}")
        write_json(
            unfinished / f"share-{rank()}.json", {"indices": share, "width": width, "unreadable": list(unreadable)}
        )
        barrier()
        if is_main():
            with others_wait("merges the features of all ranks"):
                _merge_shards(unfinished, cache_key)
                _publish(unfinished, folder)
        barrier()
        found = self.find(cache_key)
        assert found is not None
        return found

    def _folder_of(self, cache_key: dict[str, Any]) -> Path:
        code = [hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest() for module in FINGERPRINTED_MODULES]
        versions = {"torch": torch.__version__, "torchvision": torchvision.__version__, "pillow": PIL.__version__}
        text = json.dumps({**cache_key, "code": code, **versions}, sort_keys=True)
        return self._folder / hashlib.sha256(text.encode()).hexdigest()[:20]


def _publish(unfinished: Path, folder: Path) -> None:
    """Rename a complete folder, or delete it if another run was faster: its features are the same."""
    if not (folder / CACHE_KEY_FILE).exists():
        shutil.rmtree(folder, ignore_errors=True)
        try:
            os.replace(unfinished, folder)
            return
        except OSError:
            if not (folder / CACHE_KEY_FILE).exists():
                raise
    shutil.rmtree(unfinished, ignore_errors=True)


def _merge_shards(folder: Path, cache_key: dict[str, Any]) -> None:
    """Concatenate the ranks' rows and indices into one file each, then write the cache key."""
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
    unreadable = [name for share in shares for name in share["unreadable"]]
    write_json(folder / CACHE_KEY_FILE, {**cache_key, "unreadable": unreadable})
