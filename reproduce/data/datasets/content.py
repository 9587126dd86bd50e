"""Identify the images of a split by their content, wherever they are stored: which pictures a number is of.

A hash covers the name and size of every file of the split, annotations among them, and the content of annotations. Of
the images, it covers the content of all if the split is small (`WHOLE_BYTES`, `WHOLE_IMAGES`), else of a sample of
`SAMPLE_IMAGES`, which names and sizes choose. So copies have the same hash, whatever their dates, and a picture that
was replaced by another of the same name goes unnoticed only in a large split, outside of the sample, and only if it has
exactly as many bytes.

The hash is computed once for files of the same sizes and dates: later only these are looked up, in seconds for a
million files. The dates include that of the last change of a file's entry (ctime), which no program can set back.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reproduce.config.schema import Dataset
from reproduce.data.datasets.class_folders import THREADS, list_class_folders, list_images
from reproduce.data.datasets.coco import annotation_path
from reproduce.data.datasets.image_folder import SHARDS
from reproduce.data.datasets.manifest import FileState, file_states, read_error
from reproduce.data.datasets.shards import CONTENTS_FILE, INDEX_FILE, escape_name, read_packed_split
from reproduce.data.datasets.voc import annotation_of, image_of, read_voc_list, voc_list_path
from reproduce.errors import UserError
from reproduce.files import read_json, sha256_of_lines, write_json

WHOLE_BYTES = 2**30
WHOLE_IMAGES = 2**16
"""A split of at most so many bytes and images is read as a whole: VOC and CIFAR-10 are."""
SAMPLE_IMAGES = 2000
"""The number of images of a larger split that are read: a quarter of a gigabyte of ImageNet."""
SETTLED_SECONDS = 2.0
"""Files that changed more recently may change again within one tick of a file system's clock; nothing is cached."""
VERSION = 1


def content_cache(run_folder: Path) -> Path:
    """Return the folder in which the runs beside `run_folder` keep computed hashes."""
    return run_folder.parent / ".manifests"


@dataclass(frozen=True)
class _Files:
    """The files that a split consists of, by their names below DATA."""

    images: dict[str, str]
    """Paths of images that are files themselves."""
    annotations: dict[str, str]
    """Paths of files that say what is in the images, read as a whole."""
    containers: list[str]
    """Paths of the shards, if images are packed in them."""

    @property
    def named(self) -> dict[str, str]:
        """Paths of the files that have a name of their own: all but the containers."""
        return self.images | self.annotations

    @property
    def paths(self) -> list[str]:
        """Paths of all files."""
        return [*self.named.values(), *self.containers]

    def states_sha256(self, states: Sequence[FileState]) -> str:
        """Return a hash of the files' paths with the sizes and dates `states`."""
        known = (f"{state} {path}" for path, state in zip(self.paths, states, strict=True))
        return sha256_of_lines([str(VERSION), *known])


def split_states_sha256(data: Path, dataset: Dataset, split: str) -> str:
    """Return a hash of the paths, sizes and dates of a split's files: another one if any of them was touched.

    Raises `UserError` if the split can't be listed, `RetryableError` if a file can't be looked up.
    """
    files = _list_files(data, data / dataset.root, dataset, split)
    return files.states_sha256(file_states(files.paths))


class SplitHashes(NamedTuple):
    """What a split is, and how its files were when that was looked up."""

    content: str
    """The hash of its content (see above)."""
    states: str
    """What `split_states_sha256` returns."""


def split_content_sha256(data: Path, dataset: Dataset, split: str, cache: Path | None = None) -> str:
    """Return the hash of a split's content, as `split_hashes` does."""
    return split_hashes(data, dataset, split, cache).content


def split_hashes(data: Path, dataset: Dataset, split: str, cache: Path | None = None) -> SplitHashes:
    """Return the hashes of a split by one look at its files; computed ones are kept in the folder `cache`.

    Raises `UserError` if the split can't be listed, `RetryableError` if a file that is there can't be read.
    """
    root = data / dataset.root
    files = _list_files(data, root, dataset, split)
    named = files.named
    states = file_states(files.paths)
    state_sha256 = files.states_sha256(states)
    key = json.dumps([str(root.resolve()), dataset.layout, split, dataset.extra_train_root])
    cached = cache / f"content-{hashlib.sha256(key.encode()).hexdigest()[:20]}.json" if cache else None
    if cached and cached.is_file():
        with contextlib.suppress(UserError, KeyError, TypeError):  # a damaged one is computed again
            found = read_json(cached)
            if found["state_sha256"] == state_sha256:
                return SplitHashes(str(found["content_sha256"]), state_sha256)
    if dataset.layout == SHARDS:
        packed = read_packed_split(root / split)
        sizes = dict(zip(packed.names, packed.index.size.tolist(), strict=True))
        place = {name: number for number, name in enumerate(packed.names)}
        labels = [f"{label} {escape_name(name)}" for label, name in zip(packed.labels, packed.names, strict=True)]
        content = _content_sha256(sizes, [], lambda name: packed.index.read(place[name]), labels)
    else:
        sizes = {name: state.size for name, state in zip(named, states, strict=True)}
        content = _content_sha256(sizes, files.annotations, lambda name: Path(named[name]).read_bytes())
    newest = max((state.changed_ns for state in states), default=0)
    if cached and time.time() - newest / 1e9 > SETTLED_SECONDS:
        with contextlib.suppress(UserError, OSError):  # without the cache it only takes longer
            write_json(cached, {"state_sha256": state_sha256, "content_sha256": content})
    return SplitHashes(content, state_sha256)


def _list_files(data: Path, root: Path, dataset: Dataset, split: str) -> _Files:
    """List the files of a split in any layout."""
    if dataset.layout == SHARDS:
        folder = root / split
        shards = sorted(str(path) for path in folder.glob("*.tar"))
        return _Files({}, {}, [*shards, str(folder / CONTENTS_FILE), str(folder / INDEX_FILE)])
    if dataset.layout == "voc":
        roots = {"": root}
        if dataset.extra_train_root and split == dataset.train:
            roots[f"{dataset.extra_train_root}/"] = data / dataset.extra_train_root
        images, annotations = {}, {}
        for prefix, each in roots.items():
            annotations[f"{prefix}ImageSets/Main/{split}.txt"] = str(voc_list_path(each, split))
            for name in read_voc_list(each, split):
                images[f"{prefix}JPEGImages/{name}.jpg"] = str(image_of(each, name))
                annotations[f"{prefix}Annotations/{name}.xml"] = str(annotation_of(each, name))
        return _Files(images, annotations, [])
    folder = root / split
    if not folder.is_dir():
        raise UserError(f"folder {folder} is missing")
    if dataset.layout == "coco":
        images = {f"{split}/{name}": f"{folder}/{name}" for name in list_images(folder).images}
        json_file = annotation_path(root, split)
        return _Files(images, {f"annotations/{json_file.name}": str(json_file)}, [])
    folders = list_class_folders(folder)
    images = {
        f"{split}/{name}/{image}": f"{folder}/{name}/{image}"
        for name, found in zip(folders.classes, folders.list_each(), strict=True)
        for image in found.images
    }
    return _Files(images, {}, [])


def _content_sha256(
    sizes: dict[str, int], annotations: Iterable[str], read: Callable[[str], bytes], labels: Sequence[str] = ()
) -> str:
    """Return the hash of names, sizes and the content of what is read: all `annotations`, and all images or some.

    `labels` are lines that count, too.
    """
    names = sorted(sizes)
    always = set(annotations)
    chosen = [name for name in names if name in always]
    images = [name for name in names if name not in always]
    if len(images) > WHOLE_IMAGES or sum(sizes[name] for name in images) > WHOLE_BYTES:
        seed = int(sha256_of_lines(f"{sizes[name]} {escape_name(name)}" for name in images)[:16], 16)
        drawn = np.random.default_rng(seed).choice(len(images), min(SAMPLE_IMAGES, len(images)), replace=False)
        images = [images[number] for number in np.sort(drawn)]
    with ThreadPoolExecutor(THREADS) as pool:
        digests = dict(
            zip([*chosen, *images], pool.map(lambda name: _digest(read, name), [*chosen, *images]), strict=True)
        )
    lines = [f"{sizes[name]} {digests.get(name, '')} {escape_name(name)}" for name in names]
    return sha256_of_lines([*lines, *labels])


def _digest(read: Callable[[str], bytes], name: str) -> str:
    try:
        return hashlib.sha256(read(name)).hexdigest()
    except FileNotFoundError:  # a link to nowhere, too
        return "unreadable"
    except OSError as error:  # may pass: a hash without the file would be that of other images
        raise read_error(error.filename or name, error) from error
