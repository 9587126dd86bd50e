"""The checkpoint zoo: which public weights there are, and a local file of each. Without torch.

What is in such a file is for `models.zoo.layouts` to know.
"""

import fcntl
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from reproduce.data.prepare.download import Digest, DigestMismatch, cache_folder, download, file_digest
from reproduce.data.prepare.progress import LogFn
from reproduce.errors import Unavailable, UserError, did_you_mean
from reproduce.files import read_json, write_json

PREFIX = "released:"
"""How a `checkpoint` says that it is an entry of the zoo."""
ZOO = Path(__file__).with_name("released.yaml")


@dataclass(frozen=True)
class Released:
    """An entry of `models/zoo/released.yaml`, whose head says what each field means."""

    name: str
    address: str | None
    licence: str | None
    sha256: str | None
    published: dict[str, str]
    layout: str
    normalize: str
    width: float
    fills: dict[str, str]
    status: str
    note: str | None
    unavailable: str | None = None


def load(zoo: Path = ZOO) -> dict[str, Released]:
    """All entries by name."""
    return dict(_parsed(zoo, zoo.read_text()))


@cache
def _parsed(zoo: Path, text: str) -> dict[str, Released]:
    content = yaml.load(text, Loader=yaml.CSafeLoader)
    known = {field.name for field in fields(Released)}
    entries = {}
    for name, entry in content["checkpoints"].items():
        if unknown := set(entry) - known:
            raise UserError(f"{zoo}: {name} has an unknown key {sorted(unknown)[0]!r}")
        entries[name] = Released(name=name, **(content["defaults"] | entry))
    return entries


def entry(name: str, zoo: Path = ZOO) -> Released:
    """One entry; `UserError` naming the nearest where there is none of this name."""
    entries = load(zoo)
    if name not in entries:
        raise UserError(f"there is no released checkpoint {name!r}: {did_you_mean(name, entries)}")
    return entries[name]


def file_of(item: Released) -> Path:
    """Where an entry that has an address is kept, there or not."""
    return cache_folder() / "released" / f"{item.name}-{Path(urlsplit(item.address or '').path).name}"


def fetch(item: Released, tell: LogFn = print, **options: Any) -> Path:
    """The entry's file in the cache, downloaded where it isn't there yet, and held against its checksum every time.

    The first download of an entry without `sha256` records it in `released.lock.json` beside the files. Raises
    `Unavailable` where the weights can't be had, `DigestMismatch` where they are no longer what they were. `options` go
    to `download`.
    """
    if item.address is None:
        raise Unavailable(f"unavailable: released:{item.name} can't be downloaded: {item.unavailable}")
    path = file_of(item)
    lock = path.with_name("released.lock.json")
    known = item.sha256 or _recorded(lock).get(item.name)
    digests = [Digest(algorithm, digits) for algorithm, digits in item.published.items()]
    digests += [Digest("sha256", known)] if known else []
    was_there = path.exists()
    download(item.address, path, tuple(digests), tell, **options)
    if was_there:
        try:
            for digest in digests:
                digest.check(path)
        except DigestMismatch as error:
            raise DigestMismatch(f"{error}; delete {path} to download it anew") from error
    if not known:
        _record(lock, item.name, file_digest(path), tell)
    return path


def _recorded(lock: Path) -> dict[str, str]:
    return read_json(lock) if lock.exists() else {}


def _record(lock: Path, name: str, digest: str, tell: LogFn) -> None:
    with open(lock.with_suffix(".lock"), "a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        write_json(lock, _recorded(lock) | {name: digest})
    tell(f"{name} has the sha256 {digest}; put it into models/zoo/{ZOO.name} to hold every machine to it")
