"""Unpack the official archives into the layout that runs read (conf/data/standard.yaml).

It can be interrupted and repeated: files that exist in full are skipped.
"""

import io
import json
import re
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from reproduce.config.schema import Dataset
from reproduce.data.datasets.image_folder import SHARDS
from reproduce.data.prepare.archives import (
    archive_errors,
    file_members,
    open_members,
    open_tar,
    safe_target,
    write_file,
    write_member,
)
from reproduce.data.prepare.download import Digest, download
from reproduce.data.prepare.official import DATASET_SPECS, Archive, DatasetSpec
from reproduce.data.prepare.progress import LogFn, Progress
from reproduce.errors import UserError

ArchivePaths = dict[str, Path]
"""Paths of a dataset's archives, by file name."""

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_RECORD_BYTES = 1 + 3 * 32 * 32


def unpack_dataset(
    archives: Path, data: Path, dataset: Dataset, log: LogFn = print, spec: DatasetSpec | None = None
) -> None:
    """Unpack a dataset below `data` from its archives in the folder `archives`, where missing ones are downloaded.

    Raises `UserError` if there are no archives of its source or in its layout, and if an archive has to be fetched by
    hand, is damaged, or has unexpected content.
    """
    if dataset.source not in UNPACKERS or dataset.layout == SHARDS:
        raise UserError(
            f"{dataset.name} ({dataset.source} as {dataset.layout}) can't be unpacked: give a data config with the "
            f"layout of official archives, such as standard. Archives are known of {', '.join(UNPACKERS)}"
        )
    spec = spec or DATASET_SPECS[dataset.source]
    paths = {archive.name: _locate(archive, archives, spec, log) for archive in spec.archives}
    root = data / dataset.root
    UNPACKERS[dataset.source](paths, root, Progress(log, lambda count: f"{dataset.name}: {count:,} images"))
    log(f"{dataset.name} is unpacked in {root}: `data-verify {dataset.name}` checks that it is complete")


def _locate(archive: Archive, folder: Path, spec: DatasetSpec, log: LogFn) -> Path:
    """Return the path of an archive, verified by its MD5 (once, if the folder is writable) or freshly downloaded."""
    path = folder / archive.name
    digests = (Digest("md5", archive.md5),) if archive.md5 else ()
    if path.is_file():
        checked = path.with_name(f"{path.name}.checked")
        if digests and not checked.exists():
            log(f"checking {path}")
            digests[0].check(path)
            with suppress(OSError):  # a read-only folder: the archive is checked each time
                checked.touch()
        return path
    if archive.url is None:
        raise UserError(f"archive {path} is missing: get it from {spec.home} and put it there")
    return download(archive.url, path, digests, log)


def _imagenet(paths: ArchivePaths, root: Path, progress: Progress) -> None:
    """Unpack a tar per training class, and one flat tar for validation, whose classes the development kit lists."""
    with open_members(paths["ILSVRC2012_img_train.tar"]) as classes:
        for member, content in classes:
            wnid = _checked_wnid(PurePosixPath(member.name).stem, member.name)
            with tarfile.open(fileobj=content, mode="r|") as images:
                for image, encoded in file_members(images):
                    write_member(root / "train" / wnid, image, encoded)
                    progress.update()
    wnids = _validation_wnids(paths["ILSVRC2012_devkit_t12.tar.gz"])
    with open_members(paths["ILSVRC2012_img_val.tar"]) as val_images:
        for member, content in val_images:
            number = re.search(r"_(\d{8})\.JPEG$", member.name)
            if not number or not 1 <= int(number[1]) <= len(wnids):
                raise UserError(
                    f"ILSVRC2012_img_val.tar contains {member.name}, which the development kit does not list"
                )
            write_member(root / "val" / wnids[int(number[1]) - 1], member, content)
            progress.update()


def _validation_wnids(devkit: Path) -> list[str]:
    """Return the class folder of each validation image, in the order of the images' numbers."""
    from scipy.io import loadmat

    content: dict[str, bytes] = {}
    with open_members(devkit) as members:
        for member, data in members:
            if (name := PurePosixPath(member.name).name) in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt"):
                content[name] = data.read()
    with archive_errors(devkit):
        synsets = loadmat(io.BytesIO(content["meta.mat"]), squeeze_me=True)["synsets"]  # type: ignore[arg-type]
        wnid = {int(synset["ILSVRC2012_ID"]): _checked_wnid(str(synset["WNID"]), "meta.mat") for synset in synsets}
        return [wnid[int(number)] for number in content["ILSVRC2012_validation_ground_truth.txt"].split()]


def _checked_wnid(name: str, source: str) -> str:
    if not re.fullmatch(r"n\d{8}", name):
        raise UserError(f"{source} has a class {name!r}, which is not an ImageNet class (n and eight digits)")
    return name


def _places205(paths: ArchivePaths, root: Path, progress: Progress) -> None:
    """Unpack the images in the lists of `path label`; a class folder is named after its label."""
    targets: dict[str, str] = {}
    with open_members(paths["trainvalsplit_places205.tar.gz"]) as lists:
        for member, content in lists:
            split = re.search(r"(train|val)_places205\.csv$", member.name)
            if split:
                for line in content.read().decode().splitlines():
                    path, label = line.rsplit(maxsplit=1)
                    targets[path] = f"{split[1]}/{int(label):03d}"
    with open_members(paths["imagesPlaces205_resize.tar.gz"]) as images:
        for member, content in images:
            target = targets.get(member.name.partition("images256/")[2])
            if target:  # the archive also contains images of neither split
                write_member(root / target, member, content)
                progress.update()


def _inat18(paths: ArchivePaths, root: Path, progress: Progress) -> None:
    """Unpack the images that each split's JSON lists; a class folder is named after its category."""
    targets: dict[str, str] = {}
    for split in ("train", "val"):
        with open_members(paths[f"{split}2018.json.tar.gz"]) as members:
            for _, data in members:
                content = json.loads(data.read())
                categories = {item["image_id"]: int(item["category_id"]) for item in content["annotations"]}
                targets |= {image["file_name"]: f"{split}/{categories[image['id']]:04d}" for image in content["images"]}
    with open_members(paths["train_val2018.tar.gz"]) as images:
        for member, data in images:
            if target := targets.get(member.name.removeprefix("./")):
                write_member(root / target, member, data)
                progress.update()


def _voc(paths: ArchivePaths, root: Path, progress: Progress) -> None:
    """Unpack archives of VOCdevkit/VOC<year> unchanged. Raises `UserError` if `root` is not such a folder."""
    if root.parent.name != "VOCdevkit":
        raise UserError(f"data config: the archives of VOC unpack to VOCdevkit/VOC<year>, and its root is {root}")
    for path in paths.values():
        with open_tar(path, "r") as archive:
            for member in archive:
                target = safe_target(root.parents[1], member.name, path)
                content = archive.extractfile(member) if member.isfile() else None
                if content is None and not member.isdir():
                    raise UserError(f"archive {path} is refused: {member.name} is neither a file nor a folder")
                if content is not None:
                    write_file(target, content, member.size)
                progress.update()


def _coco(paths: ArchivePaths, root: Path, progress: Progress) -> None:
    """Unpack archives of train2017/, val2017/ and annotations/ unchanged."""
    for path in paths.values():
        with archive_errors(path), zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                target = safe_target(root, member.filename, path)
                if not member.is_dir():
                    with archive.open(member) as content:
                        write_file(target, content, member.file_size)
                progress.update()


def _cifar10(paths: ArchivePaths, root: Path, progress: Progress) -> None:
    """Write a PNG file per record, named after its batch and position.

    A record is a byte of label, then 3 x 32 x 32 bytes of pixels.
    """
    path = paths["cifar-10-binary.tar.gz"]
    with open_members(path) as members:
        for member, content in members:
            batch = re.fullmatch(r"(?:.*/)?((?:data|test)_batch\w*)\.bin", member.name)
            if not batch:
                continue  # the class names and a page about the dataset
            records = np.frombuffer(content.read(), np.uint8)
            if records.size % CIFAR10_RECORD_BYTES or records[::CIFAR10_RECORD_BYTES].max(initial=0) >= len(
                CIFAR10_CLASSES
            ):
                raise UserError(f"archive {path} is refused: {member.name} does not contain CIFAR-10 records")
            split = "test" if batch[1].startswith("test") else "train"
            for number, record in enumerate(records.reshape(-1, CIFAR10_RECORD_BYTES)):
                target = root / split / CIFAR10_CLASSES[record[0]] / f"{batch[1]}_{number:05d}.png"
                if not target.is_file():
                    png = io.BytesIO()
                    Image.fromarray(record[1:].reshape(3, 32, 32).transpose(1, 2, 0)).save(png, "PNG")
                    png.seek(0)
                    write_file(target, png)
                progress.update()


UNPACKERS: dict[str, Callable[[ArchivePaths, Path, Progress], None]] = {
    "ILSVRC2012": _imagenet,
    "Places205": _places205,
    "iNaturalist2018": _inat18,
    "VOC2007": _voc,
    "VOC2012": _voc,
    "COCO2017": _coco,
    "CIFAR-10": _cifar10,
}
