"""File names of any kind: with line breaks of every sort, quotes, tabs, or bytes that are no UTF-8."""

import os
from pathlib import Path

import pytest
from PIL import Image

from reproduce.__main__ import main
from reproduce.config.schema import Dataset
from reproduce.data.datasets.content import split_content_sha256
from reproduce.data.datasets.image_folder import read_image_list
from reproduce.data.datasets.manifest import image_states_sha256, split_manifest, summarize_files
from reproduce.data.datasets.shards import escape_name, unescape_name
from reproduce.data.prepare import verify, write_shards
from reproduce.errors import run_cli

FOLDERS = Dataset("own", "own", "folders", "own", "train", "val")
SHARDS = Dataset("own", "own", "shards", "own", "train", "val")
NAMES = [
    "a\nb.jpg", "a\r.jpg", "a\u2028b.jpg", "a\x0bb\x0cc\x1cd\x85e.jpg", "a\tb.jpg", '"a".jpg', " a .jpg", "\\n.jpg",
    "ü.jpg", "\U0001f600.jpg", os.fsdecode(b"\xff\xfe.jpg"), "a\\b.jpg", "plain.jpg",
]  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for number, name in enumerate(NAMES):
        for split in ("train", "val"):
            path = tmp_path / "own" / split / os.fsdecode(b"klass\xe9\n") / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, 0, 0)).save(path, "JPEG")
    return tmp_path


def test_shards_hold_what_the_folders_hold(data: Path) -> None:
    shards = data / "shards"
    write_shards.write_shards(data, shards, FOLDERS, lambda _: None)
    for split in ("train", "val"):
        plain = read_image_list(data / "own", FOLDERS, split)
        packed = read_image_list(shards / "own", SHARDS, split)
        assert [path.removeprefix(f"{data}/") for path in plain.paths] == [
            path.removeprefix(f"{shards}/") for path in packed.paths
        ]
        assert len(plain) == len(NAMES) and plain.classes == packed.classes
        assert [plain.read_bytes(i) for i in range(len(plain))] == [packed.read_bytes(i) for i in range(len(packed))]
        assert split_manifest(data, FOLDERS, split, plain) == split_manifest(shards, SHARDS, split, packed)
    said: list[str] = []
    write_shards.write_shards(data, shards, FOLDERS, said.append)
    assert all("already" in line for line in said), said
    assert verify.verify_dataset(shards, SHARDS, None, "all", lambda _: None)


def test_hashes_and_manifests_take_every_name(data: Path) -> None:
    assert verify.verify_dataset(data, FOLDERS, None, "all", lambda _: None)
    assert verify.verify_dataset(data, FOLDERS, None, "all", lambda _: None)  # against the manifest of the first
    images = read_image_list(data / "own", FOLDERS, "val")
    assert "verified" in split_manifest(data, FOLDERS, "val", images)
    assert len({len(text) for text in (images.sha256(), image_states_sha256(images))}) == 1
    assert len(split_content_sha256(data, FOLDERS, "val")) == 64


def test_names_that_look_alike_in_a_list_are_told_apart() -> None:
    one, two = {"a\n2 b": 1}, {"a": 1, "b": 2}
    assert summarize_files(one)["sha256"] != summarize_files(two)["sha256"]


@pytest.mark.parametrize("name", [*NAMES, '"', "train/a/1.jpg"])
def test_escaped_names_are_one_line_and_come_back(name: str) -> None:
    escaped = escape_name(name)
    assert "\n" not in escaped and "\r" not in escaped and escaped.encode()
    assert unescape_name(escaped) == name


def test_commands_print_every_name(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (data / "own" / "val" / os.fsdecode(b"klass\xe9\n") / os.fsdecode(b"\xff.txt")).write_text("x")
    (tmp_path / "own.yaml").write_text("imagenet: {source: own, layout: folders, root: own, train: train, val: val}\n")
    words = ["data-verify", "imagenet", "--data", str(data), "--data-config", str(tmp_path / "own.yaml")]
    assert run_cli(lambda: main(words)) == 2
    assert "\\udcff.txt" in capfd.readouterr().out
