"""The checkpoint zoo: which public weights exist, and their download. Does not import torch.

`models.zoo.layouts` knows the content of the files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from reproduce import typed_yaml
from reproduce.data.prepare.download import Digest, DigestMismatch, cache_folder, download, file_digest
from reproduce.data.prepare.progress import LogFn
from reproduce.errors import Unavailable, UserError, did_you_mean
from reproduce.files import lock_file, read_json, write_json

PREFIX = "released:"
"""Prefix of a `checkpoint` that names an entry of the zoo."""
ZOO = Path(__file__).with_name("released.yaml")


@dataclass(frozen=True)
class ReleasedWeights:
    """An entry of `models/zoo/released.yaml`; the comment at its top explains each field."""

    name: str
    url: str | None
    license: str | None
    sha256: str | None
    published: dict[str, str]
    layout: str
    normalize: str
    interpolation: str | None
    center_crop: dict[str, int] | None
    width: float
    table_rows: dict[str, str]
    status: str
    note: str | None
    unavailable: str | None = None


def accepted_normalizations(item: ReleasedWeights) -> tuple[str, ...]:
    """Return the options of conf/normalize with which weights may be evaluated.

    SwAV's (.228) take theirs or the usual one (.229), by protocol, as its code did.
    """
    return ("swav", "imagenet") if item.normalize == "swav" else (item.normalize,)


def center_crop_overrides(item: ReleasedWeights, protocol: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the overrides by which a protocol's center crop is the weights' own, by what differs without them."""
    if "center_crop" not in protocol:
        return {}
    interpolation = [f"++protocol.center_crop.interpolation={item.interpolation}"] if item.interpolation else []
    sizes = [f"protocol.center_crop.{key}={size}" for key, size in (item.center_crop or {}).items()]
    return {"resized otherwise": interpolation, "of another size": sizes}


@dataclass(frozen=True)
class _Zoo:
    """The file: values that entries have if they do not set them, and the entries."""

    defaults: dict[str, Any]
    checkpoints: dict[str, dict[str, Any]]


def load_entries(zoo: Path = ZOO) -> dict[str, ReleasedWeights]:
    """Load all entries, by name. Raises `UserError` if the file is damaged, or if an entry has another form."""
    return dict(_parse_entries(zoo, typed_yaml.read_text(zoo)))


@cache
def _parse_entries(zoo: Path, text: str) -> dict[str, ReleasedWeights]:
    content = typed_yaml.parse_yaml(_Zoo, text, str(zoo))
    return {
        name: typed_yaml.convert(
            ReleasedWeights, {"name": name, **content.defaults, **entry}, str(zoo), f"checkpoints.{name}"
        )
        for name, entry in content.checkpoints.items()
    }


def get_entry(name: str, zoo: Path = ZOO) -> ReleasedWeights:
    """Return the entry of this name. Raises `UserError`, with the closest names, if there is none."""
    entries = load_entries(zoo)
    if name not in entries:
        raise UserError(f"unknown released checkpoint {name!r}: {did_you_mean(name, entries)}")
    return entries[name]


def cache_path(item: ReleasedWeights) -> Path:
    """Return the path of an entry's file in the cache, whether it is there or not."""
    return cache_folder() / "released" / f"{item.name}-{Path(urlsplit(item.url or '').path).name}"


def fetch(item: ReleasedWeights, log: LogFn = print, **options: Any) -> Path:
    """Return the entry's file in the cache; download it if needed, and verify its checksums every time.

    The first download of an entry without `sha256` records its digest in `released.lock.json` beside the files.
    `options` are passed on to `download`. Raises `Unavailable` if nobody can get the weights, and `DigestMismatch` if
    the file is not the recorded one.
    """
    if item.url is None:
        raise Unavailable(f"unavailable: released:{item.name} can't be downloaded: {item.unavailable}")
    path = cache_path(item)
    lock = path.with_name("released.lock.json")
    known = known_sha256(item)
    digests = [Digest(algorithm, digits) for algorithm, digits in item.published.items()]
    digests += [Digest("sha256", known)] if known else []
    was_cached = path.exists()
    download(item.url, path, tuple(digests), log, **options)
    if was_cached:
        try:
            for digest in digests:
                digest.check(path)
        except DigestMismatch as error:
            raise DigestMismatch(f"{error}; delete {path} to download it again") from error
    if not known:
        _record_digest(lock, item.name, file_digest(path), log)
    return path


def known_sha256(item: ReleasedWeights) -> str | None:
    """Return the SHA-256 of an entry's file: the committed one, or that of this machine's first download; else None."""
    lock = cache_path(item).with_name("released.lock.json")
    return item.sha256 or _recorded_digests(lock).get(item.name)


def _recorded_digests(lock: Path) -> dict[str, str]:
    return read_json(lock) if lock.exists() else {}


def _record_digest(lock: Path, name: str, digest: str, log: LogFn) -> None:
    with open(lock.with_suffix(".lock"), "a") as file:
        lock_file(file, lock, wait=True)
        write_json(lock, _recorded_digests(lock) | {name: digest})
    log(f"{name} has the sha256 {digest}; add it to models/zoo/{ZOO.name} to verify it on every machine")
