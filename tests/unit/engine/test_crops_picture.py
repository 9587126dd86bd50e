"""The picture of the first batch: it shows what the network gets, once, and changes nothing of the training."""

import io
import json
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from models.methods.base import PretrainTask
from reproduce import pretrain
from reproduce.config.schema import Normalize
from reproduce.engine import crops_picture
from reproduce.engine.crops_picture import NUM_IMAGES, denormalized
from reproduce.engine.loop import Trainer
from reproduce.engine.runs import picture_files
from reproduce.engine.runs.picture_files import Tile, contact_sheet, only_warn, read_pictures
from tests.host_sync import NoHostSync
from tests.runs import TINY, Uninterrupted, assert_same_training, call, killed_after, run

SWAV = (*TINY, "experiment=swav_800ep", "method.queue_length=0")
NORMALIZE = Normalize([0.485, 0.456, 0.406], [0.228, 0.224, 0.225])


def of_run(results: Path) -> Path:
    """The folder of the one run below `results`."""
    (path,) = results.glob("smoke/*/config.yaml")
    return path.parent


def test_the_picture_is_the_first_batch_denormalized(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[Tensor]] = []
    drawn: list[list[np.ndarray]] = []
    forward, draw = PretrainTask.forward, crops_picture.crops_picture

    def watched(self: PretrainTask, batch: tuple[list[Tensor], Tensor], step: int) -> Any:
        assert picture_files.words_path(of_run(tmp_path), "crops").exists(), "before the first step"
        batches.append([crop.clone() for crop in batch[0]])
        return forward(self, batch, step)

    def kept(crops: list[np.ndarray]) -> Any:
        drawn.append(crops)
        return draw(crops)

    monkeypatch.setattr(PretrainTask, "forward", watched)
    monkeypatch.setattr(crops_picture, "crops_picture", kept)
    overrides = (*SWAV, "epochs=1", f"paths.data_root={data}", f"paths.results={tmp_path}")
    assert call(pretrain.main, monkeypatch, *overrides)[0] == 0
    (shown,) = drawn
    mean, std = torch.tensor(NORMALIZE.mean), torch.tensor(NORMALIZE.std)
    assert len(shown) == len(batches[0]) == 8
    for pixels, crop in zip(shown, batches[0], strict=True):
        expected = (crop[:NUM_IMAGES].permute(0, 2, 3, 1) * std + mean) * 255
        assert np.abs(pixels - expected.clamp(0, 255).numpy()).max() <= 0.51  # uint8's rounding, fp32's
    (picture,) = read_pictures(of_run(tmp_path))
    sheet = Image.open(io.BytesIO(picture.jpeg or b""))
    assert sheet.size == (picture.width_px, picture.height_px)
    assert picture.alt == "8 rows of crops, a row for each image: 2 of 40 pixels and 6 of 24 pixels."
    assert len(picture.jpeg or b"") < 40_000


def test_a_sheet_has_each_tile_in_its_place() -> None:
    red, blue = (np.full((4, 4, 3), color, np.uint8) for color in ((255, 0, 0), (0, 0, 255)))
    sheet = np.asarray(contact_sheet([[Tile(red, 8), None, Tile(blue, 4, marked=True)], [], [Tile(blue, 8)]]))
    assert (sheet[3:11, 3:11] == (255, 0, 0)).all()
    right = 3 + 8 + 3 + 12
    assert (sheet[7:11, right : right + 4] == (0, 0, 255)).all(), "at the lower edge of its row"
    assert (sheet[11:14, right : right + 4] == picture_files.MARK).all()
    assert (sheet[11:14, 3:11] == picture_files.GROUND).all(), "not marked"
    assert (sheet[-14:-6, 3:11] == (0, 0, 255)).all()


def generators() -> tuple[Any, ...]:
    """The states of all generators that a training could draw from."""
    return random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()  # noqa: NPY002


def test_making_it_draws_no_random_number(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With W&B, which names files by chance."""
    states = []

    @contextmanager
    def watched(what: str) -> Iterator[None]:
        before = generators()
        with only_warn(what):
            yield
        states.append((before, generators()))

    monkeypatch.setattr(crops_picture, "only_warn", watched)
    overrides = [text for text in SWAV if not text.startswith("logging.wandb")]
    paths = (f"paths.data_root={data}", f"paths.results={tmp_path}")
    assert call(pretrain.main, monkeypatch, *overrides, "epochs=1", *paths)[0] == 0
    ((before, after),) = states
    assert before == after
    assert len(list(of_run(tmp_path).glob("wandb/**/pictures/crops*.jpg"))) == 1


def test_it_waits_for_the_device_once() -> None:
    crops = [torch.zeros(12, 3, size, size) for size in (32, 32, 16)]
    copies = []

    class Counted(NoHostSync):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = func.overloadpacket.__name__
            copies.extend([name] if name == "_to_copy" else [])
            return super().__torch_dispatch__(func, types, args, kwargs)

    with Counted():
        (first, *_) = denormalized(crops, NORMALIZE)
    assert copies == [], "on a CPU nothing is copied, and nothing is read"
    assert first.shape == (NUM_IMAGES, 32, 32, 3) and first[0, 0, 0].tolist() == [124, 116, 104]


def test_a_run_that_goes_on_does_not_make_it_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Uninterrupted
) -> None:
    overrides = (*SWAV, f"paths.data_root={data}")
    with killed_after(2):
        call(pretrain.main, monkeypatch, *overrides, f"paths.results={tmp_path}")
    path = picture_files.words_path(of_run(tmp_path), "crops")
    written = path.stat().st_ino
    assert call(pretrain.main, monkeypatch, *overrides, f"paths.results={tmp_path}")[0] == 0
    assert path.stat().st_ino == written
    assert_same_training(tmp_path, uninterrupted(pretrain.main, *overrides), 6)


def test_a_run_that_starts_over_keeps_the_first(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = (*SWAV, f"paths.data_root={data}", f"paths.results={tmp_path}")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            call(pretrain.main, monkeypatch, *overrides)
    path = picture_files.words_path(of_run(tmp_path), "crops")
    written = path.stat().st_ino
    assert call(pretrain.main, monkeypatch, *overrides)[0] == 0
    assert path.stat().st_ino == written


def test_two_processes_make_the_picture_of_one(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = (*SWAV, "batch_size=20", "epochs=1", f"paths.data_root={data}")
    assert call(pretrain.main, monkeypatch, *overrides, f"paths.results={tmp_path / 'one'}")[0] == 0
    done = run("reproduce.pretrain", *overrides, f"paths.results={tmp_path / 'two'}", processes=2)
    assert done.returncode == 0, done.stderr
    assert read_pictures(of_run(tmp_path / "one")) == read_pictures(of_run(tmp_path / "two")) != []


def test_a_picture_that_cannot_be_written_is_a_warning(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Uninterrupted
) -> None:
    """A file where the folder of pictures should be."""
    overrides = (*SWAV, f"paths.data_root={data}")
    expected = uninterrupted(pretrain.main, *overrides)
    folder = tmp_path / of_run(expected).relative_to(expected)
    folder.mkdir(parents=True)
    (folder / "pictures").write_text("")
    status, said = call(pretrain.main, monkeypatch, *overrides, f"paths.results={tmp_path}")
    assert status == 0
    assert said.count("warning: a picture of the crops could not be made (") == 1
    assert_same_training(tmp_path, expected, 6)


def test_the_thresholds_are_those_of_the_method(data: Path, uninterrupted: Uninterrupted) -> None:
    folder = of_run(uninterrupted(pretrain.main, *SWAV, f"paths.data_root={data}"))
    found = json.loads((folder / "thresholds.json").read_text())
    low, high = (found["ranges"]["loss"][key] for key in ("low", "high"))
    assert low < np.log(30) < high and high - low == pytest.approx(0.01 * np.log(30))
    assert found["ranges"]["embedding_spread"]["high"] == 0.01
    assert found["first_step"] == 12, "five epochs of patience, and one of frozen prototypes, of two steps each"


def test_a_missing_or_damaged_file_is_no_picture(tmp_path: Path) -> None:
    assert read_pictures(tmp_path) == []
    picture = picture_files.sheet_picture([[Tile(np.zeros((4, 4, 3), np.uint8), 4)]], "atlas", "t", "c", "a", "5" * 64)
    picture_files.write_picture(tmp_path, picture)
    assert read_pictures(tmp_path, "5" * 64) == [picture]
    assert read_pictures(tmp_path, "6" * 64) == read_pictures(tmp_path) == [], "of another checkpoint"
    os.truncate(picture_files.words_path(tmp_path, "atlas"), 20)
    assert read_pictures(tmp_path, "5" * 64) == []
