"""Pack class folders, or VOC's, as WebDataset shards: `python -m reproduce data-shard --data DIR --shards DIR`.

Shards are written atomically, so packing can be interrupted and repeated: complete shards are kept. The same images
give the same bytes on any machine.
"""

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import webdataset

from reproduce.config.schema import Dataset
from reproduce.data.datasets import manifest
from reproduce.data.datasets.content import split_content_sha256
from reproduce.data.datasets.image_file import UnreadableImage
from reproduce.data.datasets.image_folder import SHARDS, ImageList, read_train_and_val
from reproduce.data.datasets.shards import CONTENTS_FILE, INDEX_FILE, escape_name, read_packed_split
from reproduce.data.datasets.voc import read_voc_labels
from reproduce.data.prepare.progress import LogFn, with_progress
from reproduce.errors import UserError
from reproduce.files import file_lock, read_json, write_atomic, write_json

SHARD_BYTES = 64 * 2**20
"""Size of a shard, about 600 images of ImageNet: few files, each small enough to be read ahead as a whole."""
THREADS = min(4, os.cpu_count() or 1)
"""Each thread holds a shard in memory."""
SHUFFLE_SEED = 0
"""Seed of the shuffle before packing. If shards held one class after the other, a batch would have few classes."""


@dataclass(frozen=True)
class SplitToPack:
    """A split to pack: its images, their names below the dataset's folder, and their labels (JSON-serializable)."""

    images: ImageList
    names: list[str]
    labels: list[Any]
    sidecar: Callable[[int], dict[str, bytes]]
    """Returns what is stored beside image `index`, by suffix: its class number (cls) or VOC annotation (xml)."""

    def labels_sha256(self) -> str:
        """Return a hash of the labels and of what is stored beside the images, which may be corrected."""
        digest = hashlib.sha256(json.dumps([self.images.classes, self.labels]).encode())
        for index in range(len(self.names)):
            digest.update(repr(self.sidecar(index)).encode())
        return digest.hexdigest()


def write_shards(data: Path, shards: Path, dataset: Dataset, log: LogFn = print) -> None:
    """Pack a dataset below `data` as shards below `shards`, each split in the folder of its name.

    Raises `UserError` if the layout can't be packed, an image can't be read, the disk is full, or another process packs
    the same dataset.
    """
    if dataset.layout not in ("folders", "voc"):
        reason = "it is packed already" if dataset.layout == SHARDS else "detectors read its folders"
        raise UserError(f"{dataset.name} can't be packed: {reason}")
    if not data.is_dir():
        raise UserError(f"DATA folder {data} does not exist")
    for split, content in _splits_to_pack(data / dataset.root, dataset).items():
        folder = shards / dataset.root / split
        with file_lock(folder / ".lock", f"data-shard of {dataset.name}/{split}"):
            content_sha256 = split_content_sha256(data, replace(dataset, extra_train_root=None), split)
            _write_split(folder, f"{dataset.name}/{split}", dataset.source, content, content_sha256, log)


def _splits_to_pack(root: Path, dataset: Dataset) -> dict[str, SplitToPack]:
    names = (dataset.train, dataset.val)
    if dataset.layout == "voc":
        labeled = {name: read_voc_labels(root, dataset, name) for name in names}
        return {name: _split(root, images, labels, _voc_sidecar) for name, (images, labels) in labeled.items()}
    splits = zip(names, read_train_and_val(root, dataset), strict=True)
    return {name: _split(root, images, images.labels, _class_sidecar) for name, images in splits}


def _split(
    root: Path, images: ImageList, labels: Sequence[Any], sidecar: Callable[[ImageList, int], dict[str, bytes]]
) -> SplitToPack:
    names = [path.removeprefix(f"{root}/") for path in images.paths]
    return SplitToPack(images, names, list(labels), lambda index: sidecar(images, index))


def _class_sidecar(images: ImageList, index: int) -> dict[str, bytes]:
    return {"cls": str(images.labels[index]).encode()}


def _voc_sidecar(images: ImageList, index: int) -> dict[str, bytes]:
    path = Path(images.paths[index])
    return {"xml": (path.parents[1] / "Annotations" / f"{path.stem}.xml").read_bytes()}


def _write_split(folder: Path, what: str, source: str, split: SplitToPack, content_sha256: str, log: LogFn) -> None:
    if split.images.passed_over:
        log(f"{what}: {split.images.passed_over}")
    states = manifest.file_states(split.images.paths)
    sizes = [state.size for state in states]
    files = manifest.summarize_files(dict(zip(split.names, sizes, strict=True)))
    labels_sha256 = split.labels_sha256()
    if _is_complete(folder, split, files, labels_sha256, content_sha256):
        log(f"{what}: {len(split.names):,} images are in {folder} already")
        return
    (folder / CONTENTS_FILE).unlink(missing_ok=True)
    for unfinished in folder.glob(".*.*"):
        unfinished.unlink()  # an earlier process was killed while writing it
    plan = _assign_to_shards(sizes)
    log(f"{what}: {len(split.names):,} images, {files['bytes'] / 1e6:,.0f} MB, into {len(plan)} shards in {folder}")
    with ThreadPoolExecutor(THREADS) as pool:
        written = pool.map(lambda number: _write_shard(folder, number, plan[number], split, states), range(len(plan)))
        records = list(with_progress(written, len(plan), f"shards of {what} written", log))
    lines = [""] * len(split.names)
    for number, (members, record) in enumerate(zip(plan, records, strict=True)):
        for index, offset in zip(members, record["offsets"], strict=True):
            label = json.dumps(split.labels[index], separators=(",", ":"))
            lines[index] = f"{number}\t{offset}\t{sizes[index]}\t{label}\t{escape_name(split.names[index])}"
    write_atomic(folder / INDEX_FILE, gzip.compress("\n".join(lines).encode(), mtime=0))
    contents = {
        "source": source,
        "classes": split.images.classes,
        "manifest": files,
        "labels_sha256": labels_sha256,
        "content_sha256": content_sha256,
        "shards": [{key: record[key] for key in ("name", "bytes", "sha256", "images")} for record in records],
    }
    write_json(folder / CONTENTS_FILE, contents)
    current = {record["name"] for record in records}
    for path in [*folder.glob("[0-9]*.json"), *(tar for tar in folder.glob("*.tar") if tar.name not in current)]:
        path.unlink()
    log(f"{what}: done (manifest sha256 {files['sha256'][:12]}, the same as that of the folders)")


def _is_complete(
    folder: Path, split: SplitToPack, files: dict[str, Any], labels_sha256: str, content_sha256: str
) -> bool:
    """Return whether the folder contains all shards of these files, with these labels and this content.

    Shards of earlier versions do not say which labels; those of class folders have the labels of their names. Nor do
    they say which content: it counts as this one.
    """
    try:
        contents = read_packed_split(folder).contents
    except UserError:
        return False
    known = contents.get("labels_sha256", labels_sha256 if "cls" in split.sidecar(0) else None)
    same_content = contents.get("content_sha256", content_sha256) == content_sha256
    return bool(contents["manifest"] == files and known == labels_sha256 and same_content)


def _assign_to_shards(sizes: list[int]) -> list[list[int]]:
    """Return the image indices of each shard: a seeded shuffle of all images, cut whenever a shard is full."""
    plan: list[list[int]] = [[]]
    room = SHARD_BYTES
    for index in np.random.default_rng(SHUFFLE_SEED).permutation(len(sizes)).tolist():
        if plan[-1] and sizes[index] > room:
            plan.append([])
            room = SHARD_BYTES
        plan[-1].append(index)
        room -= sizes[index]
    return plan


def _write_shard(
    folder: Path, number: int, members: list[int], split: SplitToPack, states: Sequence[manifest.FileState]
) -> dict[str, Any]:
    """Write one shard and a JSON record of it, unless both exist for the same files. Returns the record."""
    name = f"{number:05d}.tar"
    record_path = folder / f"{number:05d}.json"
    beside = {index: hashlib.sha256(repr(split.sidecar(index)).encode()).hexdigest() for index in members}
    lines = (
        f"{index} {states[index].size} {states[index].modified_ns} {beside[index]} {escape_name(split.names[index])}"
        for index in members
    )
    fingerprint = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    if record_path.is_file() and (folder / name).is_file():
        record: dict[str, Any] = read_json(record_path)
        if record.get("fingerprint") == fingerprint and record["bytes"] == (folder / name).stat().st_size:
            return record
    content = io.BytesIO()
    with webdataset.TarWriter(content, encoder=False, mtime=0) as writer:
        for index in members:
            try:
                encoded = split.images.read_bytes(index)
            except UnreadableImage as error:
                raise UserError(f"can't read image {error}: data-verify lists all unreadable images") from error
            if len(encoded) != states[index].size:
                raise UserError(f"image {split.images.paths[index]} changed while it was packed: run data-shard again")
            suffix = Path(split.names[index]).suffix[1:].lower()
            writer.write({"__key__": f"{index:08d}", suffix: encoded, **split.sidecar(index)})
    data = content.getvalue()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        images = (member for member in tar if not member.name.endswith((".cls", ".xml")))
        offsets = {int(member.name[:8]): member.offset_data for member in images}
    record = {
        "name": name,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "images": len(members),
        "fingerprint": fingerprint,
        "offsets": [offsets[index] for index in members],
    }
    write_atomic(folder / name, data)
    write_json(record_path, record)
    return record
