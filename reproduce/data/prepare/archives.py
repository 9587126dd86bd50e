"""From the official archives to the layout that runs read (conf/data/standard.yaml).

Can be stopped and started again: a picture is written under another name first and is passed over where it is there in
full. Nothing is written outside the target: names in an archive are taken as names of files, never as paths, or have to
lie below it, and no link is made. (tarfile's own filter came with Python 3.11.4; Debian 12 has 3.11.2.)
"""

import gzip
import io
import json
import os
import re
import shutil
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from PIL import Image

from reproduce.config.schema import Dataset
from reproduce.data.prepare.download import Digest, Tell, download
from reproduce.data.prepare.official import OFFICIAL, Archive, Official
from reproduce.errors import UserError

TELL_EVERY_SECONDS = 10.0
Archives = dict[str, Path]

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_RECORD = 1 + 3 * 32 * 32


def prepare(archives: Path, data: Path, dataset: Dataset, tell: Tell = print, official: Official | None = None) -> None:
    """Unpack the archives of a data set, which lie in the folder `archives` or are downloaded to it, below `data`.

    Raises `UserError` where an archive has to be fetched by hand, is damaged, or holds what it should not.
    """
    official = official or OFFICIAL[dataset.source]
    files = {archive.name: _present(archive, archives, official, tell) for archive in official.archives}
    root = data / dataset.root
    UNPACK[dataset.source](files, root, _Progress(dataset.name, tell))
    tell(f"{dataset.name} is unpacked in {root}: `data-verify {dataset.name}` says whether it is whole")


def _present(archive: Archive, folder: Path, official: Official, tell: Tell) -> Path:
    path = folder / archive.name
    digests = (Digest("md5", archive.md5),) if archive.md5 else ()
    if path.is_file():
        checked = path.with_name(f"{path.name}.checked")
        if digests and not checked.exists():
            tell(f"checking {path}")
            digests[0].check(path)
            with suppress(OSError):  # in a folder of others: it is checked each time
                checked.touch()
        return path
    if archive.address is None:
        raise UserError(f"the archive {path} is not there: get it from {official.home}, and put it there")
    return download(archive.address, path, digests, tell)


class _Progress:
    """Counts pictures, and says how many every few seconds."""

    def __init__(self, name: str, tell: Tell) -> None:
        self.name, self.tell, self.count, self.told = name, tell, 0, time.monotonic()

    def one(self) -> None:
        """Count a picture."""
        self.count += 1
        if time.monotonic() - self.told > TELL_EVERY_SECONDS:
            self.told = time.monotonic()
            self.tell(f"{self.name}: {self.count:,} pictures")


def _imagenet(files: Archives, root: Path, progress: _Progress) -> None:
    """Training: a tar per class. Validation: one flat tar, whose classes the development kit lists."""
    with _members(files["ILSVRC2012_img_train.tar"]) as classes:
        for member, content in classes:
            wnid = _wnid(PurePosixPath(member.name).stem, member.name)
            with tarfile.open(fileobj=content, mode="r|") as pictures:
                for picture, pixels in _files(pictures):
                    _write(root / "train" / wnid, picture, pixels, progress)
    wnids = _validation_classes(files["ILSVRC2012_devkit_t12.tar.gz"])
    with _members(files["ILSVRC2012_img_val.tar"]) as pictures_of_val:
        for member, content in pictures_of_val:
            number = re.search(r"_(\d{8})\.JPEG$", member.name)
            if not number or not 1 <= int(number[1]) <= len(wnids):
                raise UserError(f"ILSVRC2012_img_val.tar holds {member.name}, which the development kit does not list")
            _write(root / "val" / wnids[int(number[1]) - 1], member, content, progress)


def _validation_classes(devkit: Path) -> list[str]:
    """The class folder of each validation picture, in the pictures' order."""
    from scipy.io import loadmat

    content: dict[str, bytes] = {}
    with _members(devkit) as members:
        for member, data in members:
            if (name := PurePosixPath(member.name).name) in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt"):
                content[name] = data.read()
    with _whole(devkit):
        synsets = loadmat(io.BytesIO(content["meta.mat"]), squeeze_me=True)["synsets"]  # type: ignore[arg-type]
        wnid = {int(synset["ILSVRC2012_ID"]): _wnid(str(synset["WNID"]), "meta.mat") for synset in synsets}
        return [wnid[int(number)] for number in content["ILSVRC2012_validation_ground_truth.txt"].split()]


def _wnid(name: str, where: str) -> str:
    if not re.fullmatch(r"n\d{8}", name):
        raise UserError(f"{where} names a class {name!r}, which is none of ImageNet's (n and eight digits)")
    return name


def _places205(files: Archives, root: Path, progress: _Progress) -> None:
    """Lists of `path label`; a class folder is named after its label."""
    at: dict[str, str] = {}
    with _members(files["trainvalsplit_places205.tar.gz"]) as lists:
        for member, content in lists:
            split = re.search(r"(train|val)_places205\.csv$", member.name)
            if split:
                for line in content.read().decode().splitlines():
                    path, label = line.rsplit(maxsplit=1)
                    at[path] = f"{split[1]}/{int(label):03d}"
    with _members(files["imagesPlaces205_resize.tar.gz"]) as pictures:
        for member, content in pictures:
            place = at.get(member.name.partition("images256/")[2])
            if place:  # the archive holds pictures of neither list, too
                _write(root / place, member, content, progress)


def _inat18(files: Archives, root: Path, progress: _Progress) -> None:
    """JSON with the pictures of a split and their categories; a class folder is named after its category."""
    at: dict[str, str] = {}
    for split in ("train", "val"):
        with _members(files[f"{split}2018.json.tar.gz"]) as members:
            for _, data in members:
                content = json.loads(data.read())
                categories = {item["image_id"]: int(item["category_id"]) for item in content["annotations"]}
                at |= {image["file_name"]: f"{split}/{categories[image['id']]:04d}" for image in content["images"]}
    with _members(files["train_val2018.tar.gz"]) as pictures:
        for member, data in pictures:
            if place := at.get(member.name.removeprefix("./")):
                _write(root / place, member, data, progress)


def _voc(files: Archives, root: Path, progress: _Progress) -> None:
    """Archives of VOCdevkit/VOC<year>, the layout that is read, as they are."""
    for path in files.values():
        with _open(path, "r") as archive:
            for member in archive:
                target = _inside(root.parents[1], member.name, path)
                content = archive.extractfile(member) if member.isfile() else None
                if content is None and not member.isdir():
                    raise UserError(
                        f"archive {path} holds what is not unpacked: {member.name} is no file and no folder"
                    )
                if content is not None and not (target.is_file() and target.stat().st_size == member.size):
                    _copy(target, content)
                progress.one()


def _coco(files: Archives, root: Path, progress: _Progress) -> None:
    """Archives of train2017/, val2017/ and annotations/, as they are."""
    for path in files.values():
        with _whole(path), zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                target = _inside(root, member.filename, path)
                if not member.is_dir() and not (target.is_file() and target.stat().st_size == member.file_size):
                    with archive.open(member) as content:
                        _copy(target, content)
                progress.one()


def _cifar10(files: Archives, root: Path, progress: _Progress) -> None:
    """Batches of records, a label's byte and 3 x 32 x 32 of pixels: a PNG file of each, named after batch and place."""
    path = files["cifar-10-binary.tar.gz"]
    with _members(path) as members:
        for member, content in members:
            batch = re.fullmatch(r"(?:.*/)?((?:data|test)_batch\w*)\.bin", member.name)
            if not batch:
                continue  # the classes' names, and a page about the set
            records = np.frombuffer(content.read(), np.uint8)
            if records.size % CIFAR10_RECORD or records[::CIFAR10_RECORD].max(initial=0) >= len(CIFAR10_CLASSES):
                raise UserError(f"archive {path}: {member.name} holds something else than records of CIFAR-10")
            split = "test" if batch[1].startswith("test") else "train"
            for number, record in enumerate(records.reshape(-1, CIFAR10_RECORD)):
                target = root / split / CIFAR10_CLASSES[record[0]] / f"{batch[1]}_{number:05d}.png"
                if not target.is_file():
                    png = io.BytesIO()
                    Image.fromarray(record[1:].reshape(3, 32, 32).transpose(1, 2, 0)).save(png, "PNG")
                    png.seek(0)
                    _copy(target, png)
                progress.one()


UNPACK: dict[str, Callable[[Archives, Path, _Progress], None]] = {
    "ILSVRC2012": _imagenet,
    "Places205": _places205,
    "iNaturalist2018": _inat18,
    "VOC2007": _voc,
    "VOC2012": _voc,
    "COCO2017": _coco,
    "CIFAR-10": _cifar10,
}


@contextmanager
def _members(path: Path) -> Iterator[Iterator[tuple[tarfile.TarInfo, IO[bytes]]]]:
    """The files of an archive, read from its beginning to its end."""
    with _open(path, "r|*") as archive:
        yield _files(archive)


@contextmanager
def _open(path: Path, mode: Any) -> Iterator[tarfile.TarFile]:
    with _whole(path), tarfile.open(path, mode) as archive:
        yield archive


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """An archive that ends early or names a file outside its target is a sentence."""
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, gzip.BadGzipFile, KeyError) as error:
        raise UserError(
            f"archive {path} is cut short or damaged ({error!r}); get it again, and go on from here"
        ) from error


def _inside(folder: Path, name: str, archive: Path) -> Path:
    """Where a member of an archive goes below `folder`. Raises `UserError` for a name that leads out of it."""
    target = folder / name
    if folder.resolve() not in target.resolve().parents:
        raise UserError(f"archive {archive} names a file outside its folder, {name}: it is refused")
    return target


def _files(archive: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    for member in archive:
        content = archive.extractfile(member) if member.isfile() else None
        if content is not None:
            yield member, content


def _write(folder: Path, member: tarfile.TarInfo, content: IO[bytes], progress: _Progress) -> None:
    """Write one picture to a folder under the last part of its name, unless it is there."""
    name = PurePosixPath(member.name).name
    if name in ("", ".."):
        raise tarfile.TarError(f"a file is named {member.name!r}")
    target = folder / name
    if not (target.is_file() and target.stat().st_size == member.size):
        _copy(target, content)
    progress.one()


def _copy(target: Path, content: IO[bytes]) -> None:
    """Whole or not there. Not flushed one by one, which takes hours for a million; another size is written anew."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    with open(part, "wb") as file:
        shutil.copyfileobj(content, file)
    os.replace(part, target)
