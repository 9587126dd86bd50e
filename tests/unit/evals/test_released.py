"""`checkpoint=released:NAME`: an evaluation of public weights, from a real server to result.json."""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from models.networks.resnet import ResNet
from models.zoo import entries
from reproduce import evaluate
from reproduce.__main__ import main
from tests.runs import call

WIDTH = 0.0625


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def public(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A published MoCo checkpoint; its entry is released:moco_v1_200ep."""
    folder = tmp_path / "public"
    folder.mkdir()
    weights = {f"module.encoder_q.{name}": value for name, value in ResNet(WIDTH).state_dict().items()}
    torch.save({"state_dict": weights}, folder / "moco.pth.tar")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}/moco.pth.tar"
    item = replace(entries.get_entry("moco_v1_200ep"), url=address, published={}, width=WIDTH)
    monkeypatch.setattr(entries, "get_entry", lambda _: item)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("pictures").symlink_to(data)
    yield folder / "moco.pth.tar"
    server.shutdown()
    thread.join()
    server.server_close()


ASKED = (
    "eval=knn", "checkpoint=released:moco_v1_200ep", "data=generated", "paths.data_root=pictures",
    "logging.wandb=false",
    "cluster.num_workers=0", "protocol.num_neighbors=[1]",
)  # fmt: skip


def test_public_weights_are_fetched_mapped_and_evaluated(public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, said = call(evaluate.main, monkeypatch, *ASKED, "normalize=imagenet")
    assert status == 0, said
    (path,) = Path("results").glob("*/*/result.json")
    result = json.loads(path.read_text())
    assert result["parents"] == []
    assert result["provenance"]["checkpoint_sha256"] == hashlib.sha256(public.read_bytes()).hexdigest()
    assert 0 <= result["metrics"]["knn1"] <= 100


def test_weights_that_are_gone_leave_unavailable_behind(public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    public.unlink()
    status, said = call(evaluate.main, monkeypatch, *ASKED, "normalize=imagenet")
    assert status == 2
    assert said.startswith("error: unavailable: http://127.0.0.1")
    assert said.count("\n") == 1
    (path,) = Path("results").glob("*/*/failure.json")
    assert json.loads(path.read_text())["status"] == "unavailable"


def test_pixels_that_the_network_was_not_trained_on_are_refused(public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, said = call(evaluate.main, monkeypatch, *ASKED, "normalize=swav")
    assert status == 2
    assert said == "error: released:moco_v1_200ep was trained with another normalization: add normalize=imagenet\n"
    assert not Path("cache").exists()


@pytest.mark.parametrize(("normalize", "accepted"), [("swav", True), ("imagenet", True), ("none", False)])
def test_swavs_weights_take_both_red_deviations(
    normalize: str, accepted: bool, public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = replace(entries.get_entry(""), normalize="swav")
    monkeypatch.setattr(entries, "get_entry", lambda _: item)
    status, said = call(evaluate.main, monkeypatch, *ASKED, f"normalize={normalize}")
    assert (status == 0) == accepted, said
    assert accepted or said.endswith("was trained with another normalization: add normalize=swav\n")


def test_another_resize_than_the_trained_one_is_refused(public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item = replace(entries.get_entry(""), interpolation="bicubic")
    monkeypatch.setattr(entries, "get_entry", lambda _: item)
    asked = (*ASKED, "eval=knn_head", "normalize=imagenet")
    status, said = call(evaluate.main, monkeypatch, *asked)
    assert status == 2
    assert said.endswith("was trained on images resized otherwise: add ++protocol.center_crop.interpolation=bicubic\n")


def test_weights_without_a_head_leave_unavailable_behind(public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, said = call(evaluate.main, monkeypatch, *ASKED, "eval=knn_head", "normalize=imagenet")
    assert status == 2
    assert "has no projection head" in said and said.count("\n") == 1
    (path,) = Path("results").glob("*/knn_head-*/failure.json")
    assert json.loads(path.read_text())["status"] == "unavailable"


def test_the_wrong_width_is_refused(public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item = replace(entries.get_entry(""), width=1)
    monkeypatch.setattr(entries, "get_entry", lambda _: item)
    status, said = call(evaluate.main, monkeypatch, *ASKED, "normalize=imagenet")
    assert status == 2
    assert "is 0.0625 times as wide as a ResNet-50, not 1" in said


def test_fetch_lists_and_says_where_a_file_is(public: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch-weights"]) == 0
    listed = capsys.readouterr().out
    assert "swav_800ep: unknown (table3 SwAV, table4 SwAV, table5 SwAV, table7 SwAV)\n" in listed
    assert "bownet: unavailable (table3 BoWNet, table4 BoWNet)\n" in listed
    assert main(["fetch-weights", "moco_v1_200ep"]) == 0
    where = capsys.readouterr().out.splitlines()[-1].removeprefix("moco_v1_200ep: ")
    assert Path(where).read_bytes() == public.read_bytes()
