"""Download files: https only, resumable, with retries, verified by checksum, and atomic."""

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

from reproduce.data.prepare.progress import LogFn, Progress
from reproduce.errors import Unavailable, UserError
from reproduce.files import lock_file

MAX_ATTEMPTS = 5
FIRST_BACKOFF_SECONDS = 1.0
"""Pause before the second attempt; doubled before each further one."""
TIMEOUT_SECONDS = 60
BLOCK_BYTES = 1 << 20
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
"""Hosts that may be downloaded from by plain http."""
RETRYABLE_STATUSES = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses that may change if the request is repeated a little later."""
GONE_STATUSES = (404, 410, 451)
"""HTTP statuses by which a publisher says that a file is no longer offered."""
CONNECTION_ERRORS = (ConnectionError, TimeoutError, ssl.SSLError)
"""What reading a response raises if the connection is lost."""


class DigestMismatch(UserError):
    """A file has another checksum than it should."""


@dataclass(frozen=True)
class Digest:
    """A file's checksum in hexadecimal, or its first digits, which is all that some publishers print."""

    algorithm: str
    digits: str

    def check(self, path: Path) -> None:
        """Raise `DigestMismatch` if the file has another checksum."""
        found = file_digest(path, self.algorithm)
        if not found.startswith(self.digits):
            raise DigestMismatch(
                f"{path.name} has the {self.algorithm} {found[: len(self.digits)]}, not {self.digits}: it is damaged, "
                "or its publisher has replaced it"
            )


def cache_folder() -> Path:
    """Return where downloads are cached: below XDG_CACHE_HOME, or ~/.cache.

    Raises `UserError` for a user without a home, as in a container that runs under a number without a name.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reproduce-swav"
    except RuntimeError as error:
        raise UserError("this user has no home folder to cache downloads in: set XDG_CACHE_HOME to a folder") from error


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the hexadecimal checksum of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def download(
    url: str,
    target: Path,
    digests: tuple[Digest, ...] = (),
    log: LogFn = print,
    wait: Callable[[float], None] = time.sleep,
) -> Path:
    """Download `url` to `target`, unless it exists, and return `target`. Several processes may call this at once.

    Interrupted downloads stay as `.part` and resume if the file is unchanged upstream. Raises `Unavailable` if the
    server no longer has the file, `UserError` without a network, and `DigestMismatch` if the content does not match
    `digests`; `target` then does not exist.
    """
    _refuse_plain_http(url)
    if target.exists():
        return target  # possibly in another user's folder, which this one can't write to
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = open(target.with_name(target.name + ".lock"), "a")  # noqa: SIM115 - closed below
    except OSError as error:
        raise UserError(f"the download folder {target.parent} can't be written to ({error.strerror})") from error
    with lock:
        lock_file(lock, target, wait=True)  # other processes wait here and then find the file
        if not target.exists():
            log(f"downloading {url}")
            part = target.with_name(target.name + ".part")
            _fetch(url, part, log, wait)
            try:
                for digest in digests:
                    digest.check(part)
            except DigestMismatch:
                _discard(part)
                raise
            os.replace(part, target)
            _discard(part)
    return target


def _fetch(url: str, part: Path, log: LogFn, wait: Callable[[float], None]) -> None:
    """Download to `part`, with retries."""
    reason = ""
    for attempt in range(MAX_ATTEMPTS):
        if attempt:
            seconds = FIRST_BACKOFF_SECONDS * 2 ** (attempt - 1)
            log(f"{reason}; trying again in {seconds:.0f} s")
            wait(seconds)
        try:
            return _fetch_once(url, part, log)
        except urllib.error.HTTPError as error:
            reason = f"{url} answers {error.code} ({error.reason})"
            error.close()
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                _discard(part)
            elif error.code in GONE_STATUSES:
                raise Unavailable(f"unavailable: {reason}; the publisher has moved or removed the file") from error
            elif error.code not in RETRYABLE_STATUSES:
                raise UserError(
                    f"{reason}: its publisher, or a proxy on the way, refuses; ask for access, or put the file at "
                    f"{part.with_suffix('')} yourself"
                ) from error
        except (urllib.error.URLError, http.client.HTTPException, *CONNECTION_ERRORS) as error:
            reason = f"{url} can't be reached ({getattr(error, 'reason', None) or repr(error)})"
    raise UserError(
        f"{reason}, in {MAX_ATTEMPTS} attempts: check the network and run the same command again, or put the file "
        f"at {part.with_suffix('')} yourself"
    )


def _fetch_once(url: str, part: Path, log: LogFn) -> None:
    validator = _validator(part)
    start = part.stat().st_size if part.exists() and validator.exists() else 0
    # If-Range: the server sends the rest of the same file, or all of the file that replaced it, never a mixture.
    headers = {"Range": f"bytes={start}-", "If-Range": validator.read_text()} if start else {}
    request = urllib.request.Request(url, headers={"User-Agent": "reproduce-swav", **headers})  # noqa: S310 - checked
    with _OPENER.open(request, timeout=TIMEOUT_SECONDS) as response:
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        if version := response.headers["ETag"] or response.headers["Last-Modified"]:
            validator.write_text(version)
        else:
            validator.unlink(missing_ok=True)
        length = response.headers["Content-Length"]
        total = int(length) + (start if resumed else 0) if length else None
        with open(part, "ab" if resumed else "wb") as file:
            _copy(response, file, total, log)
            file.flush()
            os.fsync(file.fileno())
    size = part.stat().st_size
    if total is not None and size != total:
        raise ConnectionError(f"the connection ended after {size} of {total} bytes")


def _copy(response: Any, file: Any, total: int | None, log: LogFn) -> None:
    of_total = f" of {total / 1e6:.0f} MB" if total else ""
    progress = Progress(log, lambda num_bytes: f"{num_bytes / 1e6:.0f} MB{of_total}", file.tell())
    while block := response.read(BLOCK_BYTES):
        file.write(block)
        progress.update(len(block))


def _validator(part: Path) -> Path:
    """Return the file that stores the ETag or modification time of what was partly downloaded."""
    return part.with_name(part.name + ".is")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _validator(part).unlink(missing_ok=True)


def _refuse_plain_http(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK_HOSTS):
        raise UserError(f"{url} is not an https address: downloads must be encrypted")


class _StaysOnHttps(urllib.request.HTTPRedirectHandler):
    """Refuses redirects to addresses that may not be downloaded from."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _refuse_plain_http(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_StaysOnHttps)
