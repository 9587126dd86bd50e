"""Downloads from a local server, and the checkpoint zoo that uses them."""

import hashlib
import http.server
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
import yaml

from models.zoo import entries
from reproduce.data.prepare import download as downloads
from reproduce.data.prepare.download import Digest, DigestMismatch, download
from reproduce.errors import Unavailable, UserError
from reproduce.system import CONF_DIR

CONTENT = bytes(range(256)) * 40


@dataclass
class Server:
    """What the server sends, its planned failures, and the requests it received."""

    address: str
    content: bytes = CONTENT
    etag: str | None = '"one"'
    answers: list[Any] = field(default_factory=list)
    """For the next requests: a status, "cut" (stop after half), or a URL to redirect to; later requests succeed."""
    asked: list[Message] = field(default_factory=list)

    def url(self, name: str = "weights.pth.tar") -> str:
        return f"{self.address}/{name}"


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.asked.append(self.headers)
            answer = served.answers.pop(0) if served.answers else None
            if isinstance(answer, int):
                return self.send_error(answer)
            if isinstance(answer, str) and answer != "cut":
                self.send_response(302)
                self.send_header("Location", answer)
                return self.end_headers()
            start = 0
            if "Range" in self.headers and self.headers["If-Range"] == served.etag:
                start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            self.send_response(206 if start else 200)
            if served.etag:
                self.send_header("ETag", served.etag)
            rest = served.content[start:]
            self.send_header("Content-Length", str(len(rest)))
            self.end_headers()
            self.wfile.write(rest[: len(rest) // 2] if answer == "cut" else rest)
            return None

        def log_message(self, *args: object) -> None:
            """Log nothing."""

    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Server(f"http://127.0.0.1:{http_server.server_port}")
    thread = threading.Thread(target=http_server.serve_forever, args=(0.01,))
    thread.start()
    yield served
    http_server.shutdown()
    thread.join()
    http_server.server_close()


def fetch(server: Server, target: Path, *digests: Digest) -> tuple[Path, list[float]]:
    """Return the downloaded file, and the seconds of each pause before a retry."""
    waits: list[float] = []
    return download(server.url(), target, digests, lambda _: None, waits.append), waits


def test_file_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    digest = Digest("sha256", hashlib.sha256(CONTENT).hexdigest())
    path, waits = fetch(server, tmp_path / "w", digest)
    assert path.read_bytes() == CONTENT
    assert waits == []
    fetch(server, tmp_path / "w", digest)
    assert len(server.asked) == 1
    assert {entry.name for entry in tmp_path.iterdir()} == {"w", "w.lock"}


def test_concurrent_downloads_fetch_once(server: Server, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(fetch, server, tmp_path / "w") for _ in range(2)]
    assert [asked.result()[0].read_bytes() for asked in both] == [CONTENT, CONTENT]
    assert len(server.asked) == 1


def test_interrupted_download_resumes(server: Server, tmp_path: Path) -> None:
    server.answers = ["cut", 503]
    path, waits = fetch(server, tmp_path / "w")
    assert path.read_bytes() == CONTENT
    assert [asked["Range"] for asked in server.asked] == [
        None,
        f"bytes={len(CONTENT) // 2}-",
        f"bytes={len(CONTENT) // 2}-",
    ]
    assert waits == [1, 2]


def test_broken_tls_connection_is_retried(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = downloads._copy

    def break_once(*what: Any) -> None:
        monkeypatch.setattr(downloads, "_copy", copy)
        raise ssl.SSLEOFError(8, "EOF occurred in violation of protocol")

    monkeypatch.setattr(downloads, "_copy", break_once)
    path, waits = fetch(server, tmp_path / "w")
    assert path.read_bytes() == CONTENT
    assert waits == [1]


def test_file_changed_upstream_is_downloaded_from_the_start(server: Server, tmp_path: Path) -> None:
    server.answers = ["cut", 404]
    with pytest.raises(Unavailable):
        fetch(server, tmp_path / "w")
    server.content, server.etag = CONTENT[::-1], '"two"'
    path, _ = fetch(server, tmp_path / "w")
    assert server.asked[-1]["If-Range"] == '"one"'
    assert path.read_bytes() == CONTENT[::-1]


def test_without_etag_and_date_the_download_starts_again(server: Server, tmp_path: Path) -> None:
    server.answers, server.etag = ["cut"], None
    path, _ = fetch(server, tmp_path / "w")
    assert path.read_bytes() == CONTENT
    assert server.asked[-1]["Range"] is None


def test_404_is_unavailable_without_retries(server: Server, tmp_path: Path) -> None:
    server.answers = [404]
    with pytest.raises(
        Unavailable, match=r"^unavailable: http://127.* answers 404 \(Not Found\); the publisher has moved"
    ):
        fetch(server, tmp_path / "w")
    assert len(server.asked) == 1
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("status", [401, 403, 407])
def test_a_refusal_is_not_the_publishers_word_that_a_file_is_gone(status: int, server: Server, tmp_path: Path) -> None:
    server.answers = [status]
    with pytest.raises(UserError, match=rf"answers {status} .*its publisher, or a proxy on the way, refuses") as error:
        fetch(server, tmp_path / "w")
    assert not isinstance(error.value, Unavailable) and len(server.asked) == 1


def test_no_network_is_a_user_error_after_retries(tmp_path: Path) -> None:
    waits: list[float] = []
    with pytest.raises(
        UserError, match=r"^http.* can't be reached \(.*refused.*in 5 attempts: check the network"
    ) as error:
        download("http://127.0.0.1:9/w", tmp_path / "w", (), lambda _: None, waits.append)
    assert waits == [1, 2, 4, 8]
    assert not isinstance(error.value, Unavailable)  # a check would pass over its cells as nobody's fault


@pytest.mark.parametrize("digest", [Digest("md5", "00000000"), Digest("sha256", "f" * 64)])
def test_wrong_digest_is_refused_and_deleted(server: Server, tmp_path: Path, digest: Digest) -> None:
    with pytest.raises(DigestMismatch, match=f"has the {digest.algorithm} .*, not {digest.digits}: it is damaged"):
        fetch(server, tmp_path / "w", digest)
    assert {entry.name for entry in tmp_path.iterdir()} == {"w.lock"}


def test_unwritable_download_folder_is_a_user_error(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"the download folder .*file can't be written to \("):
        fetch(server, tmp_path / "file" / "w")


@pytest.mark.parametrize("address", ["http://example.org/w", "ftp://example.org/w", "file:///etc/passwd"])
def test_plain_http_is_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not an https address"):
        download(address, tmp_path / "w")


@pytest.mark.parametrize("address", ["http://example.org/w", "ftp://example.org/w", "file:///etc/passwd"])
def test_redirect_to_plain_http_is_refused(address: str, server: Server, tmp_path: Path) -> None:
    server.answers = [address]
    with pytest.raises(UserError, match=r"is not an https address|is not allowed"):
        fetch(server, tmp_path / "w")
    assert not (tmp_path / "w").exists()


class TestZoo:
    @pytest.fixture
    def item(self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> entries.ReleasedWeights:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        return replace(entries.get_entry("swav_800ep"), url=server.url())

    def test_first_download_records_the_sha256_for_the_next(
        self, item: entries.ReleasedWeights, server: Server
    ) -> None:
        said: list[str] = []
        path = entries.fetch(item, said.append)
        digest = hashlib.sha256(CONTENT).hexdigest()
        assert (
            said[-1]
            == f"swav_800ep has the sha256 {digest}; add it to models/zoo/released.yaml to verify it on every machine"
        )
        assert path.name == "swav_800ep-weights.pth.tar"
        said.clear()
        assert entries.fetch(item, said.append) == path
        assert said == []
        path.unlink()
        server.content = b"other weights"
        with pytest.raises(DigestMismatch, match="its publisher has replaced it"):
            entries.fetch(item, said.append)

    def test_damaged_cached_file_is_detected(self, item: entries.ReleasedWeights) -> None:
        path = entries.fetch(item)
        path.write_bytes(b"damaged")
        with pytest.raises(DigestMismatch, match=f"delete {path} to download it again"):
            entries.fetch(item)

    def test_published_digest_is_enforced(self, item: entries.ReleasedWeights) -> None:
        published = {"md5": hashlib.md5(CONTENT).hexdigest()[:8]}
        entries.fetch(replace(item, name="other", published=published))
        with pytest.raises(DigestMismatch, match="has the md5"):
            entries.fetch(replace(item, published={"md5": "b251726a"}))

    def test_unpublished_weights_are_unavailable(self) -> None:
        with pytest.raises(Unavailable, match=r"^unavailable: released:bownet can't be downloaded: no public weights"):
            entries.fetch(entries.get_entry("bownet"))


def test_every_zoo_entry_is_complete() -> None:
    for item in entries.load_entries().values():
        assert (item.url is None) == (item.unavailable is not None), item.name
        assert item.url is None or (item.url.startswith("https://") and item.license), item.name
        assert item.status == "unknown", (
            "nothing has been downloaded yet: a verified entry has a sha256, and this changes"
        )
        assert (CONF_DIR / "normalize" / f"{item.normalize}.yaml").is_file()
        for algorithm, digits in item.published.items():
            assert algorithm in hashlib.algorithms_guaranteed
            assert set(digits) <= set("0123456789abcdef")


def test_zoo_covers_every_table_row_with_public_weights() -> None:
    rows: dict[tuple[str, str], Any] = {}
    for number in range(2, 8):
        content = yaml.safe_load(Path(f"tables/paper/table{number}.yaml").read_text())
        rows |= {
            (content["table"], ", ".join(filter(None, (row["method"], row.get("variant"))))): row
            for row in content["rows"]
        }
    known = entries.load_entries()
    filled = {(table, row): name for name, item in known.items() for table, row in item.table_rows.items()}
    assert set(filled) <= set(rows)
    for at, row in rows.items():
        if "weights" in row:
            assert at in filled, f"{at} says that it has public weights"
        if row.get("pretrain") in known:
            assert filled[at] == row["pretrain"]


def test_download_logs_progress(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reproduce.data.prepare.progress.LOG_EVERY_SECONDS", -1)
    said: list[str] = []
    download(server.url(), tmp_path / "w", (), said.append)
    assert said == [f"downloading {server.url()}", "0 MB of 0 MB"]
