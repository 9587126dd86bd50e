"""W&B: what an offline run holds, read back with wandb's own messages; a service that is down; keys."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from wandb.proto import wandb_internal_pb2

from reproduce.engine.runs import tracking
from reproduce.engine.runs.attempts import Attempts
from reproduce.engine.runs.picture_files import Picture, Tile, jpeg_path, sheet_picture, svg_path, write_picture
from tests.runs import TINY, run

BLOCK = 32768
WHOLE, LAST = 1, 4
KEY = "0123456789abcdef0123456789abcdef01234567"


def messages(content: bytes) -> Iterator[bytes]:
    """The payloads of a .wandb file: LevelDB's log format behind seven bytes of header.

    (wandb no longer ships a Python reader of the file; the messages below are decoded by its own protobuf classes.)
    """
    at, parts = 7, b""
    while at + 7 <= len(content):
        room = BLOCK - at % BLOCK
        if room < 7:  # no header fits: the block's rest is padding
            at += room
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (WHOLE, LAST):
            yield parts
            parts = b""


def records(folder: Path) -> list[Any]:
    """Every record of the one tracked run below `folder`, once W&B's own process, which writes them, has ended."""
    wandb.teardown()
    (path,) = folder.rglob("*.wandb")
    found = []
    for message in messages(path.read_bytes()):
        record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
        record.ParseFromString(message)
        found.append(record)
    return found


def item(update: Any) -> tuple[str, Any]:
    return update.key or ".".join(update.nested_key), json.loads(update.value_json)


def test_offline_run_stores_config_metrics_and_summary(tmp_path: Path) -> None:
    tracker = tracking.Tracker(tmp_path, "swav-s0", "table3-smoke", "pretrain", {"optimizer": {"lr": 0.6}})
    tracker.log({"loss": 4.5}, step=10)
    tracker.log({"loss": 4.25}, step=20)
    tracker.finish({"knn20": 41.5})
    assert tracker.problem is None

    found = records(tmp_path)
    (started,) = [record.run for record in found if record.WhichOneof("record_type") == "run"][:1]
    assert started.run_group == "table3-smoke"
    assert started.job_type == "pretrain"
    config = dict(item(update) for update in started.config.update)
    assert config["optimizer"] == {"lr": 0.6}
    curve = [dict(item(value) for value in record.history.item) for record in found if record.HasField("history")]
    assert [(point["_step"], point["loss"]) for point in curve] == [(10, 4.5), (20, 4.25)]
    summary = dict(item(update) for record in found if record.HasField("summary") for update in record.summary.update)
    assert summary["knn20"] == 41.5


def test_log_table_writes_the_rows_and_the_summary(tmp_path: Path) -> None:
    tracking.log_table("table7", "smoke", tmp_path, ["row", "verdict"], [["SwAV", "within"]], {"hardware": "Abacus 3"})
    (written,) = tmp_path.rglob("*.table.json")
    assert json.loads(written.read_text())["data"] == [["SwAV", "within"]]
    updates = [record.summary.update for record in records(tmp_path) if record.HasField("summary")]
    assert dict(item(each) for update in updates for each in update)["hardware"] == "Abacus 3"


def add_pictures(folder: Path) -> None:
    """Write a sheet and a map, drawn, into a run's folder."""
    sheet = sheet_picture(
        [[Tile(np.zeros((8, 8, 3), np.uint8), 8)]], "neighbors", "title", "a caption", "alt", "5" * 64
    )
    write_picture(folder, sheet)
    write_picture(folder, Picture("map", "title", "caption", "alt", points={"a": [(0.0, 0.5)]}))
    svg_path(folder, "map").write_text("<svg/>")


def test_pictures_are_logged_with_their_captions(tmp_path: Path) -> None:
    add_pictures(tmp_path / "swav-s0-1")
    tracking.log_pictures("smoke", tmp_path / "reports", [tmp_path / "swav-s0-1"])
    (image,) = (tmp_path / "reports").rglob("*.jpg")
    assert image.read_bytes() == jpeg_path(tmp_path / "swav-s0-1", "neighbors").read_bytes()
    (drawn,) = (tmp_path / "reports").rglob("*.html")
    assert drawn.read_text() == "<svg/>"
    logged = dict(item(value) for record in records(tmp_path / "reports") for value in record.history.item)
    assert logged["pictures/swav-s0-1/neighbors.caption"] == "a caption"
    assert logged["pictures/swav-s0-1/map._type"] == "html-file"


def test_disabled_mode_writes_nothing(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracking.log_table("table7", "smoke", tmp_path, ["row"], [["SwAV"]])
    tracking.log_pictures("smoke", tmp_path, [tmp_path])
    assert not list(tmp_path.iterdir())
    paths = [f"paths.data_root={data}", f"paths.results={tmp_path / 'results'}"]
    overrides = [text for text in TINY if not text.startswith("logging.wandb")]
    done = run("reproduce.pretrain", *overrides, "experiment=random", *paths)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "results" / "smoke").glob("random-*")
    assert (folder / "result.json").exists()
    assert not (folder / "wandb").exists()


def test_unreachable_service_does_not_stop_a_run_or_leak_the_key(data: Path, tmp_path: Path) -> None:
    """A real run, with a key, against a service that nobody answers at."""
    overrides = [text for text in TINY if not text.startswith("logging.wandb")]
    done = run(
        "tests.faults.impatient_run",
        *overrides,
        "experiment=random",
        f"paths.data_root={data}",
        f"paths.results={tmp_path / 'results'}",
        WANDB_API_KEY=KEY,
        WANDB_BASE_URL="http://127.0.0.1:9",
        WANDB_MODE="online",
    )
    assert done.returncode == 0, done.stderr
    assert KEY not in done.stdout + done.stderr
    written = [path for path in (tmp_path / "results").rglob("*") if path.is_file()]
    assert any(path.name == "result.json" for path in written)
    assert not [path for path in written if KEY.encode() in path.read_bytes()]


@pytest.mark.parametrize(("key", "mode", "online"), [("", "", False), (KEY, "", True), (KEY, "offline", False)])
def test_is_online_only_with_a_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str, mode: str, online: bool
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # no netrc of whoever runs the tests
    monkeypatch.delenv("NETRC", raising=False)
    for name, value in (("WANDB_API_KEY", key), ("WANDB_MODE", mode)):
        if value:
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name, raising=False)
    assert tracking.is_online() == online


def test_online_mode_without_a_key_falls_back_to_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("WANDB_MODE", "online")
    tracker = tracking.Tracker(tmp_path / "run", "swav-s0", "", "pretrain", {})
    tracker.finish({})
    assert tracker.problem == tracking.NO_KEY
    assert records(tmp_path / "run")


def test_two_attempts_share_a_wandb_id(tmp_path: Path) -> None:
    names = []
    for attempt in ("first", "second"):
        attempts = Attempts(tmp_path)
        attempts.begin()
        tracker = tracking.Tracker(tmp_path / attempt, "swav-s0", "", "pretrain", {}, attempts.wandb_id)
        tracker.finish({})
        names += [record.run.run_id for record in records(tmp_path / attempt) if record.HasField("run")][:1]
    assert names[0] == names[1] != ""
