"""List the images below a folder: the only place that decides which files of a folder count.

Folders are searched at every depth, as by torchvision's ImageFolder. Hidden files and those that systems and editors
leave behind (`.ipynb_checkpoints`, `@eaDir`, ...) are skipped at every level. Whatever is passed over is named.
"""

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from reproduce.data.datasets.image_file import IMAGE_SUFFIXES
from reproduce.errors import UserError, few

SYSTEM_NAMES = frozenset(
    {
        *("@eadir", "__macosx", "lost+found", "#recycle", "#snapshot", "$recycle.bin", "system volume information"),
        *("__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
    }
)
"""Names in lower case that no user gives: of a NAS, macOS, Windows, a file system or Python."""
SUFFIXES_IN_WORDS = ", ".join(IMAGE_SUFFIXES)
MAX_NAMES = 5
"""Names listed in one sentence; further ones are only counted."""
MAX_DEPTH = 200
"""Levels of folders that are searched: Python's stack ends at about 900."""
THREADS = 4 * (os.cpu_count() or 1)
"""More threads than cores, because listing folders waits for the disk."""


@dataclass
class FolderImages:
    """The images below one folder and what was passed over, by names relative to it, with "/" between folders."""

    images: dict[str, os.stat_result | None] = field(default_factory=dict)
    """Each image's status, sorted by name; None if it was not asked for, or is not to be had (a link to nothing)."""
    others: list[str] = field(default_factory=list)
    """Files without the suffix of an image."""
    hidden: list[str] = field(default_factory=list)
    """Hidden and system files and folders."""


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden, or left behind by a system or an editor."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def list_images(folder: Path | str, with_status: bool = False) -> FolderImages:
    """List the images in a folder and the folders below it, `with_status` or by name only. Follows links.

    Raises `UserError` if a link leads back to a folder above it, or if there are more than `MAX_DEPTH` levels.
    """
    found = FolderImages()
    _search(str(folder), "", (), with_status, found)
    found.images = dict(sorted(found.images.items()))
    return found


def _search(
    folder: str, prefix: str, above: tuple[tuple[int, int], ...], with_status: bool, found: FolderImages
) -> None:
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise UserError(f"folder {folder} is a link to a folder above it, which has no end: remove the link")
    if len(above) > MAX_DEPTH:
        top = folder.removesuffix(f"/{prefix}".rstrip("/"))
        raise UserError(f"folder {top} has more than {MAX_DEPTH} levels of folders: move its images further up")
    with os.scandir(folder) as entries:
        for entry in entries:
            name = prefix + entry.name
            if is_hidden(entry.name):
                found.hidden.append(name)
            elif entry.is_dir():
                _search(entry.path, f"{name}/", (*above, here), with_status, found)
            elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                found.images[name] = _status(entry) if with_status else None
            else:
                found.others.append(name)


def _status(entry: "os.DirEntry[str]") -> os.stat_result | None:
    try:
        status = entry.stat()
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


@dataclass(frozen=True)
class ClassFolders:
    """The class folders of a split, and what lies beside them."""

    root: Path
    classes: list[str]
    """Names of the class folders, sorted."""
    stray: list[str]
    """Files beside the class folders."""
    hidden: list[str]
    """Hidden and system files and folders beside the class folders."""

    def list_each(self, with_status: bool = False) -> Iterator[FolderImages]:
        """List the images of each class, in the order of `classes`."""
        with ThreadPoolExecutor(THREADS) as pool:
            yield from pool.map(lambda name: list_images(self.root / name, with_status), self.classes)


def list_class_folders(root: Path) -> ClassFolders:
    """List the class folders in `root`, without the images in them."""
    with os.scandir(root) as entries:
        folders = {entry.name: entry.is_dir() for entry in entries}
    hidden = sorted(filter(is_hidden, folders))
    return ClassFolders(
        root,
        sorted(name for name, is_folder in folders.items() if is_folder and not is_hidden(name)),
        sorted(name for name, is_folder in folders.items() if not is_folder and not is_hidden(name)),
        hidden,
    )


def passed_over(root: Path, stray: Sequence[str], others: Sequence[str], hidden: Sequence[str]) -> str:
    """Return a sentence on what was passed over below `root`; "" if that is nothing worth a word.

    `stray` are files beside the class folders, `others` those in them. A hidden file without an image's suffix is not
    worth a word.
    """
    hidden_images = [name for name in hidden if name.lower().endswith(IMAGE_SUFFIXES) or (root / name).is_dir()]
    parts = []
    if stray:
        parts.append(f"{len(stray):,} files beside the class folders ({few(sorted(stray))})")
    if others:
        suffixes = Counter(os.path.splitext(name)[1].lower() or "no suffix" for name in sorted(others))
        kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in suffixes.most_common(MAX_NAMES))
        parts.append(f"{len(others):,} files that are not {SUFFIXES_IN_WORDS} ({kinds}: {few(sorted(others))})")
    if hidden_images:
        parts.append(f"{len(hidden_images):,} hidden or system files and folders ({few(sorted(hidden_images))})")
    return f"passed over in {root}: {'; '.join(parts)}" if parts else ""
