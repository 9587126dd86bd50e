"""Downloads: https only, resumed, tried again, checked against a sum, and whole or not there."""

import fcntl
import hashlib
import http.client
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from reproduce.errors import Unavailable, UserError

TRIES = 5
FIRST_WAIT_SECONDS = 1.0
"""Doubled before each further try."""
TIMEOUT_SECONDS = 60
BLOCK_BYTES = 1 << 20
TELL_EVERY_SECONDS = 10
OWN_MACHINE = ("localhost", "127.0.0.1", "::1")
PASSING = (408, 425, 429, 500, 502, 503, 504)
"""Answers of a server that may be another one a little later."""
RANGE_IS_WRONG = 416
BROKEN_OFF = (ConnectionError, TimeoutError, ssl.SSLError)
"""What reading an answer raises whose sender is lost."""

Tell = Callable[[str], None]


class DigestMismatch(UserError):
    """A file is not the one that its sum was taken of."""


@dataclass(frozen=True)
class Digest:
    """A file's checksum, or only its first digits, as publishers often print it."""

    algorithm: str
    digits: str

    def check(self, path: Path) -> None:
        """Raise `DigestMismatch` where the file has another sum."""
        found = file_digest(path, self.algorithm)
        if not found.startswith(self.digits):
            raise DigestMismatch(
                f"{path.name} has the {self.algorithm} {found[: len(self.digits)]}, not {self.digits}: it is damaged, "
                "or its publisher has put another file in its place"
            )


def cache_folder() -> Path:
    """Where what is downloaded stays: below XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reproduce-swav"


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal checksum of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def download(
    address: str,
    target: Path,
    digests: tuple[Digest, ...] = (),
    tell: Tell = print,
    wait: Callable[[float], None] = time.sleep,
) -> Path:
    """Fetch `address` to `target`, unless it is there, and return `target`. Several processes may ask at once.

    What was fetched when it was cut off lies beside it as `.part` and is gone on with, as long as the server says that
    it is the same file still. Raises `Unavailable` where the address is gone, `UserError` without a network, and
    `DigestMismatch` where the content isn't what `digests` say; nothing then lies at `target`.
    """
    _refuse_plain_http(address)
    if target.exists():
        return target  # perhaps in a folder that others filled and this user can't write to
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = open(target.with_name(target.name + ".lock"), "a")  # noqa: SIM115 - closed below
    except OSError as error:
        raise UserError(f"{target.parent}, where downloads go, can't be written to ({error.strerror})") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the others wait here, and then find the file
        if not target.exists():
            tell(f"downloading {address}")
            part = target.with_name(target.name + ".part")
            _fetch(address, part, tell, wait)
            try:
                for digest in digests:
                    digest.check(part)
            except DigestMismatch:
                _forget(part)
                raise
            os.replace(part, target)
            _forget(part)
    return target


def _fetch(address: str, part: Path, tell: Tell, wait: Callable[[float], None]) -> None:
    """Fill `part`, in several tries."""
    reason = ""
    for attempt in range(TRIES):
        if attempt:
            seconds = FIRST_WAIT_SECONDS * 2 ** (attempt - 1)
            tell(f"{reason}; trying again in {seconds:.0f} s")
            wait(seconds)
        try:
            return _fetch_once(address, part, tell)
        except urllib.error.HTTPError as error:
            reason = f"{address} answers {error.code} ({error.reason})"
            error.close()
            if error.code == RANGE_IS_WRONG:
                _forget(part)
            elif error.code not in PASSING:
                raise Unavailable(f"unavailable: {reason}; the publisher has moved or removed the file") from error
        except (urllib.error.URLError, http.client.HTTPException, *BROKEN_OFF) as error:
            reason = f"{address} can't be reached ({getattr(error, 'reason', None) or repr(error)})"
    raise UserError(
        f"{reason}, in {TRIES} tries; check the network and run the same command again, or put the file "
        f"at {part.with_suffix('')} yourself"
    )


def _fetch_once(address: str, part: Path, tell: Tell) -> None:
    validator = part.with_name(part.name + ".is")
    start = part.stat().st_size if part.exists() and validator.exists() else 0
    # If-Range: the rest of the same file, or all of the one that took its place - never a mixture.
    headers = {"Range": f"bytes={start}-", "If-Range": validator.read_text()} if start else {}
    request = urllib.request.Request(address, headers={"User-Agent": "reproduce-swav", **headers})  # noqa: S310 - checked
    with _OPENER.open(request, timeout=TIMEOUT_SECONDS) as answer:
        goes_on = answer.status == http.HTTPStatus.PARTIAL_CONTENT
        if same := answer.headers["ETag"] or answer.headers["Last-Modified"]:
            validator.write_text(same)
        else:
            validator.unlink(missing_ok=True)
        length = answer.headers["Content-Length"]
        total = int(length) + (start if goes_on else 0) if length else None
        with open(part, "ab" if goes_on else "wb") as file:
            _copy(answer, file, total, tell)
            file.flush()
            os.fsync(file.fileno())
    size = part.stat().st_size
    if total is not None and size != total:
        raise ConnectionError(f"the connection ended after {size} of {total} bytes")


def _copy(answer: Any, file: Any, total: int | None, tell: Tell) -> None:
    told = time.monotonic()
    while block := answer.read(BLOCK_BYTES):
        file.write(block)
        if time.monotonic() - told > TELL_EVERY_SECONDS:
            told = time.monotonic()
            tell(f"{file.tell() / 1e6:.0f} MB" + (f" of {total / 1e6:.0f} MB" if total else ""))


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    part.with_name(part.name + ".is").unlink(missing_ok=True)


def _refuse_plain_http(address: str) -> None:
    parts = urlsplit(address)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in OWN_MACHINE):
        raise UserError(f"{address} is not an https address, and nothing else is downloaded from")


class _StaysOnHttps(urllib.request.HTTPRedirectHandler):
    """A redirection must not lead where the address itself may not."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _refuse_plain_http(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_StaysOnHttps)
