"""Lists of pictures on disk, and reading one."""

import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from reproduce.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class BadImage(Exception):
    """A file that can't be decoded; `str()` names it and says why."""


@dataclass(frozen=True)
class Pictures:
    """Files and their class numbers; `classes` are the folders' names, sorted."""

    paths: list[str]
    labels: list[int]
    classes: list[str]

    def __len__(self) -> int:
        return len(self.paths)

    def encoded(self, index: int) -> bytes:
        """One picture as it is stored; raises `BadImage` where it can't be had."""
        path = self.paths[index]
        try:
            return Path(path).read_bytes()
        except OSError as error:
            raise BadImage(f"{path} ({error})") from error

    def taken(self, indices: Sequence[int]) -> "Pictures":
        """Only these, in this order; the classes stay."""
        return Pictures([self.paths[i] for i in indices], [self.labels[i] for i in indices], self.classes)

    def sha256(self) -> str:
        """Hash of the files' names below their folders and of their labels: which pictures these are, wherever."""
        lines = (f"{label} {path.rsplit('/', 2)[-2:]}" for path, label in zip(self.paths, self.labels, strict=True))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_folders(root: Path) -> Pictures:
    """The pictures below `root/<class>/`, sorted by name; nested folders and other files are passed over.

    Raises `UserError` where the folder is not there or holds no picture.
    """
    if not root.is_dir():
        raise UserError(f"folder {root} is not there: DATA must hold it, with one folder of pictures per class")
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = sorted(e.path for e in os.scandir(root / name) if e.name.lower().endswith(SUFFIXES))
        paths += files
        labels += [label] * len(files)
    if not paths:
        raise UserError(f"folder {root} holds no pictures: it needs one folder per class with {', '.join(SUFFIXES)}")
    return Pictures(paths, labels, classes)


def read_splits(root: Path, train: str, val: str) -> tuple[Pictures, Pictures]:
    """Both splits of a set; `UserError` where their class folders differ: one number would mean two classes."""
    first, second = read_folders(root / train), read_folders(root / val)
    if first.classes != second.classes:
        strange = sorted(set(first.classes) ^ set(second.classes))[:5]
        raise UserError(f"{root / train} and {root / val} hold different class folders, e.g. {', '.join(strange)}")
    return first, second


def read_image(path: str, encoded: bytes | None = None) -> Image.Image:
    """Decode a file, or what it holds, to an RGB picture.

    Raises `BadImage` naming the file where it is missing, cut or no picture.
    """
    try:
        with Image.open(path if encoded is None else io.BytesIO(encoded)) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadImage(f"{path} ({error})") from error
