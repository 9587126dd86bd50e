"""From class folders, or VOC's, to WebDataset shards: `python -m reproduce data-shard --data DIR --shards DIR`.

Can be stopped and started again: a shard is whole or not there, and is passed over where it is. The same pictures give
the same bytes on any machine.
"""

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import webdataset

from reproduce.config.schema import Dataset
from reproduce.data.datasets import manifest
from reproduce.data.datasets.image_file import UnreadableImage
from reproduce.data.datasets.image_folder import SHARDS, ImageList, read_train_and_val
from reproduce.data.datasets.shards import CONTENTS_FILE, INDEX_FILE, read_index
from reproduce.data.datasets.voc import read_voc_labels
from reproduce.data.prepare.verify import Tell, told
from reproduce.errors import UserError
from reproduce.files import file_lock, read_json, write_atomic, write_json

SHARD_BYTES = 64 * 2**20
"""About as large is a shard: 600 pictures of ImageNet. Few enough files, and small enough to be read ahead whole."""
THREADS = min(4, os.cpu_count() or 1)
"""Each holds a shard in memory."""
ORDER_SEED = 0
"""Of the one draw of which pictures lie in a shard together: class by class, a batch would see few classes."""


@dataclass(frozen=True)
class Split:
    """A split to pack: its pictures, their names below the data set, and of each its label and what goes beside it."""

    pictures: ImageList
    names: list[str]
    labels: list[Any]
    beside: Callable[[int], dict[str, bytes]]


def pack(data: Path, shards: Path, dataset: Dataset, tell: Tell = print) -> None:
    """Write a data set that lies below `data` as shards below `shards`, each split into the folder of its name.

    Raises `UserError` where a picture can't be read, the disk is full, or another process packs here.
    """
    if dataset.layout not in ("folders", "voc"):
        already = "it is packed already" if dataset.layout == SHARDS else "detectors read its folders"
        raise UserError(f"{dataset.name} can't be packed: {already}")
    if not data.is_dir():
        raise UserError(f"the folder {data} given as DATA is not there")
    for split, content in _splits(data / dataset.root, dataset).items():
        folder = shards / dataset.root / split
        with file_lock(folder / ".lock", f"data-shard of {dataset.name}/{split}"):
            _pack_split(folder, f"{dataset.name}/{split}", dataset.source, content, tell)


def _splits(root: Path, dataset: Dataset) -> dict[str, Split]:
    names = (dataset.train, dataset.val)
    if dataset.layout == "voc":
        found = {name: read_voc_labels(root, dataset, name) for name in names}
        return {name: _split(root, pictures, labels, _annotation) for name, (pictures, labels) in found.items()}
    both = zip(names, read_train_and_val(root, dataset), strict=True)
    return {name: _split(root, pictures, pictures.labels, _class) for name, pictures in both}


def _split(root: Path, pictures: ImageList, labels: Sequence[Any], beside: Callable[..., dict[str, bytes]]) -> Split:
    names = [path.removeprefix(f"{root}/") for path in pictures.paths]
    return Split(pictures, names, list(labels), lambda index: beside(pictures, index))


def _class(pictures: ImageList, index: int) -> dict[str, bytes]:
    return {"cls": str(pictures.labels[index]).encode()}


def _annotation(pictures: ImageList, index: int) -> dict[str, bytes]:
    picture = Path(pictures.paths[index])
    return {"xml": (picture.parents[1] / "Annotations" / f"{picture.stem}.xml").read_bytes()}


def _pack_split(folder: Path, what: str, source: str, split: Split, tell: Tell) -> None:
    sizes = manifest.file_sizes(split.pictures.paths)
    files = manifest.summarize_files(dict(zip(split.names, sizes, strict=True)))
    if _is_whole(folder, files):
        tell(f"{what}: {len(split.names):,} pictures lie in {folder} already")
        return
    (folder / CONTENTS_FILE).unlink(missing_ok=True)
    for unfinished in folder.glob(".*.*"):
        unfinished.unlink()  # left by a kill while writing
    plan = _plan(sizes)
    tell(f"{what}: {len(split.names):,} pictures, {files['bytes'] / 1e6:,.0f} MB, into {len(plan)} shards in {folder}")
    with ThreadPoolExecutor(THREADS) as pool:
        written = pool.map(lambda number: _shard(folder, number, plan[number], split, sizes), range(len(plan)))
        records = list(told(written, len(plan), f"shards of {what} written", tell))
    lines = [""] * len(split.names)
    for number, (members, record) in enumerate(zip(plan, records, strict=True)):
        for index, offset in zip(members, record["offsets"], strict=True):
            label = json.dumps(split.labels[index], separators=(",", ":"))
            lines[index] = f"{number}\t{offset}\t{sizes[index]}\t{label}\t{split.names[index]}"
    write_atomic(folder / INDEX_FILE, gzip.compress("\n".join(lines).encode(), mtime=0))
    kept = ("name", "bytes", "sha256", "images")
    about = {
        "source": source,
        "classes": split.pictures.classes,
        "manifest": files,
        "shards": [{key: record[key] for key in kept} for record in records],
    }
    write_json(folder / CONTENTS_FILE, about)
    wanted = {record["name"] for record in records}
    for path in [*folder.glob("[0-9]*.json"), *(tar for tar in folder.glob("*.tar") if tar.name not in wanted)]:
        path.unlink()
    tell(f"{what}: done (manifest sha256 {files['sha256'][:12]}, the same as that of the folders)")


def _is_whole(folder: Path, files: dict[str, Any]) -> bool:
    try:
        return bool(read_index(folder)[0]["manifest"] == files)
    except UserError:
        return False


def _plan(sizes: list[int]) -> list[list[int]]:
    """The pictures of each shard: a seeded draw of all, cut where a shard is full."""
    plan: list[list[int]] = [[]]
    room = SHARD_BYTES
    for index in np.random.default_rng(ORDER_SEED).permutation(len(sizes)).tolist():
        if plan[-1] and sizes[index] > room:
            plan.append([])
            room = SHARD_BYTES
        plan[-1].append(index)
        room -= sizes[index]
    return plan


def _shard(folder: Path, number: int, members: list[int], split: Split, sizes: list[int]) -> dict[str, Any]:
    """Write one shard, and beside it what to know of it; or only read that, where both are there."""
    name = f"{number:05d}.tar"
    record_file = folder / f"{number:05d}.json"
    of = hashlib.sha256("\n".join(f"{index} {sizes[index]} {split.names[index]}" for index in members).encode())
    if record_file.is_file() and (folder / name).is_file():
        record: dict[str, Any] = read_json(record_file)
        if record["of"] == of.hexdigest() and record["bytes"] == (folder / name).stat().st_size:
            return record
    content = io.BytesIO()
    with webdataset.TarWriter(content, encoder=False, mtime=0) as writer:
        for index in members:
            try:
                picture = split.pictures.read_bytes(index)
            except UnreadableImage as error:
                raise UserError(f"can't read picture {error}: data-verify names all such") from error
            if len(picture) != sizes[index]:
                raise UserError(f"picture {split.pictures.paths[index]} changed while it was packed: start again")
            suffix = Path(split.names[index]).suffix[1:].lower()
            writer.write({"__key__": f"{index:08d}", suffix: picture, **split.beside(index)})
    data = content.getvalue()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        at = {int(member.name[:8]): member.offset_data for member in tar if not member.name.endswith((".cls", ".xml"))}
    record = {
        "name": name,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "images": len(members),
        "of": of.hexdigest(),
        "offsets": [at[index] for index in members],
    }
    write_atomic(folder / name, data)
    write_json(record_file, record)
    return record
