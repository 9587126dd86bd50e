"""Pictures of trained networks: they show what they say, once for each checkpoint, and a failure is a sentence."""

import io
import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from PIL import Image

from models.networks.heads import MultiCropNet
from models.networks.trunk import Trunk
from reproduce import pretrain
from reproduce.__main__ import main
from reproduce.data.datasets.image_folder import ImageList
from reproduce.engine.checkpoint import load, save, sha256_of
from reproduce.engine.runs.picture_files import GAP_PX, GROUND, MAP, read_pictures
from reproduce.errors import UserError
from reproduce.harness.report import pictures
from reproduce.pictures.__main__ import main as make_all
from reproduce.pictures.__main__ import make_pictures
from reproduce.pictures.feature_map import map_of
from reproduce.pictures.sample import Sample, choose_images, compute_sample, load_scoring, spread
from reproduce.pictures.sheets import atlas_picture, nearest_rows, nearest_to_prototypes, neighbors_picture
from tests.runs import TINY, Uninterrupted, call

SWAV = (*TINY, "experiment=swav_800ep", "method.queue_length=0")


@pytest.fixture(scope="module")
def trained(data: Path, uninterrupted: Uninterrupted) -> Path:
    """The folder of a finished pretraining, which nobody writes into."""
    (path,) = uninterrupted(pretrain.main, *SWAV, f"paths.data_root={data}").glob("smoke/*/result.json")
    return path.parent


@pytest.fixture
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the harness finds it in its working directory."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(trained, Path("results/smoke", trained.name)))


@pytest.fixture(scope="module")
def sample(trained: Path, data: Path) -> Sample:
    """What the pretraining's pictures are made of: twenty images of ten classes."""
    cfg: Any = OmegaConf.load(trained / "config.yaml")
    return compute_sample(cfg, trained / "checkpoint.pt", "5" * 64, data)


def tile_of(jpeg: bytes | None, left: int, top: int, size: int) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg or b"")), dtype=float)[top : top + size, left : left + size]


def test_a_network_that_computes_with_colors_is_told_the_normalization(
    trained: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[list[float], list[float]]] = []

    class Colors(Trunk):
        def set_normalization(self, mean: Sequence[float], std: Sequence[float]) -> None:
            told.append((list(mean), list(std)))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert told
            return images.mean(dim=(2, 3))

    monkeypatch.setattr("reproduce.pictures.sample.load_trunk", lambda *_, **__: Colors())
    monkeypatch.setattr("reproduce.pictures.sample.load_scoring", lambda _: None)
    cfg: Any = OmegaConf.load(trained / "config.yaml")
    compute_sample(cfg, trained / "checkpoint.pt", "5" * 64, data)
    assert told == [(list(cfg.normalize.mean), list(cfg.normalize.std))]


def test_neighbors_are_those_of_a_brute_force_search() -> None:
    torch.manual_seed(0)
    rows = torch.randn(50, 8)
    rows[7] = 3 * rows[3]  # as near as itself
    cosine = F.normalize(rows.double(), dim=1) @ F.normalize(rows.double(), dim=1).T
    cosine.fill_diagonal_(-2)
    found = nearest_rows(rows, [3, 20, 49], 5)
    assert found == cosine[[3, 20, 49]].topk(5).indices.tolist()
    assert found[0][0] == 7


def test_an_atlas_has_the_prototypes_chosen_most_and_their_highest_scores() -> None:
    torch.manual_seed(0)
    scores = torch.rand(200, 40)
    scores[:120, 5] += 1
    scores[120:160, 17] += 1
    found = nearest_to_prototypes(scores)
    assert list(found)[:2] == [5, 17] and len(found) == 12
    for prototype, rows in found.items():
        assert rows == scores[:, prototype].argsort(descending=True)[:9].tolist()


def test_scores_are_the_networks_own(trained: Path, sample: Sample) -> None:
    """In evaluation mode, with prototypes of unit length."""
    cfg = OmegaConf.load(trained / "config.yaml").network
    net = MultiCropNet(cfg.width, cfg.head_hidden_dim, cfg.embedding_dim, 30, blocks=(1, 1, 1, 1))
    net.load_state_dict(load(trained / "checkpoint.pt")["model"])
    assert net.prototypes is not None
    with torch.no_grad():
        net.prototypes.weight.copy_(F.normalize(net.prototypes.weight, dim=1))
        embeddings = F.normalize(net.eval().projection_head(sample.features), dim=1)
        expected = net.prototypes(embeddings)
    assert sample.scores is not None and sample.scores.shape == (20, 30)
    torch.testing.assert_close(sample.scores, expected)


def test_sheets_show_the_images_that_are_nearest(sample: Sample) -> None:
    picture = neighbors_picture(sample)
    queries = spread(20, 10)
    (first, *_), *_ = nearest_rows(sample.features, queries[:1], 8)
    for left, row in ((GAP_PX, queries[0]), (GAP_PX + 40 + GAP_PX + 12, first)):
        shown = tile_of(picture.jpeg, left, GAP_PX, 40)
        assert np.abs(shown - sample.tile(row).pixels).mean() < 12, "up to what JPEG loses"
    same = sum(sample.class_of(row) == sample.class_of(query) for query, rows in zip(
        queries, nearest_rows(sample.features, queries, 8), strict=True) for row in rows)  # fmt: skip
    assert f"{same} of 80." in picture.caption and "among 20 validation images" in picture.caption
    atlas = atlas_picture(sample)
    assert sample.scores is not None
    prototype, (best, *_) = next(iter(nearest_to_prototypes(sample.scores).items()))
    assert np.abs(tile_of(atlas.jpeg, GAP_PX, GAP_PX, 40) - sample.tile(best).pixels).mean() < 12
    assert f"Prototype {prototype}: " in atlas.alt


def test_a_map_keeps_groups_together() -> None:
    torch.manual_seed(0)
    centers = torch.eye(4, 16)
    rows = (centers[:, None] + 0.02 * torch.randn(4, 20, 16)).flatten(0, 1)
    names = [f"group {number // 20}" for number in range(80)]
    found = map_of(rows, names)
    assert list(found) == ["group 0", "group 1", "group 2", "group 3"]
    means = np.array([np.mean(places, axis=0) for places in found.values()])
    for number, places in enumerate(found.values()):
        assert len(places) == 20
        distance = np.linalg.norm(np.array(places)[:, None] - means, axis=2)
        assert (distance.argmin(axis=1) == number).all()
    everything = np.array([place for places in found.values() for place in places])
    assert everything.min() == 0 and everything.max() == 1
    assert map_of(rows, names) == found, "nothing in it is chance"


def test_features_that_cannot_be_placed_give_no_map() -> None:
    assert map_of(torch.randn(4, 8), list("abcd")) == {}
    assert map_of(torch.ones(30, 8), ["a"] * 30) == {}


def test_many_classes_are_reduced_to_twenty() -> None:
    labels = [label for label in range(1000) for _ in range(60)]
    images = ImageList([f"{number}.jpg" for number in range(60_000)], labels, [f"n{label}" for label in range(1000)])
    chosen, words = choose_images(images, "validation images")
    assert words == "1000 validation images of 20 of the 1000 classes"
    counts = np.bincount(chosen.labels, minlength=1000)
    assert set(counts[counts > 0]) == {50} and (counts > 0).sum() == 20
    assert spread(3, 10) == [0, 1, 2] and spread(10, 2) == [2, 7]


def test_the_command_makes_them_once(folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    assert main(["pictures", "--checkpoint", folder.name, "--data", str(data)]) == 0
    found = read_pictures(folder, sha256_of(folder / "checkpoint.pt"))
    assert [each.name for each in found] == ["crops", "neighbors", "atlas", "map"]
    assert all(each.alt and each.caption and each.title for each in found)
    assert sum(path.stat().st_size for path in (folder / "pictures").iterdir()) < 300_000
    assert "<svg" in (folder / "pictures" / "map.svg").read_text()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("they are there"))
    assert main(["pictures", "--checkpoint", str(folder / "checkpoint.pt")]) == 0


def test_a_network_without_prototypes_has_no_atlas(random_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(random_checkpoint.parent, tmp_path / "run"))
    make_pictures(folder, str(data))
    assert [each.name for each in read_pictures(folder, sha256_of(folder / "checkpoint.pt"))] == ["neighbors", "map"]
    assert load_scoring(folder / "checkpoint.pt") is None


def test_a_trunk_with_the_stem_of_small_images_is_read(data: Path, uninterrupted: Uninterrupted) -> None:
    overrides = (*TINY, "experiment=random", "network.stem=3x3", f"paths.data_root={data}")
    (path,) = uninterrupted(pretrain.main, *overrides).glob("smoke/*/result.json")
    cfg: Any = OmegaConf.load(path.parent / "config.yaml")
    assert len(compute_sample(cfg, path.parent / "checkpoint.pt", "", data).features) == 20


@pytest.mark.parametrize("missing", ["config.yaml", "checkpoint.pt", "result.json"])
def test_a_folder_without_a_file_is_a_sentence_and_the_others_are_drawn(
    folder: Path, data: Path, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path(shutil.copytree(folder, "other"))
    (other / missing).unlink()
    status, said = call(make_all, monkeypatch, "--data", str(data), str(other), str(folder))
    assert status == 2 and said.count("\n") == 1 and f"has no {missing}: give the folder" in said
    assert pictures.has_pictures(folder)


def test_another_checkpoint_than_the_results_is_refused(folder: Path, data: Path) -> None:
    model = load(folder / "checkpoint.pt")["model"]
    save(folder / "checkpoint.pt", {"model": model, "step": 7})
    with pytest.raises(UserError, match=r"checkpoint\.pt is not the checkpoint of the result beside it"):
        make_pictures(folder, str(data))
    assert not pictures.has_pictures(folder)


def test_images_of_a_pretraining_without_validation_images_are_its_own(trained: Path, own_data: Path) -> None:
    shutil.rmtree(own_data / "imagenet" / "val")
    cfg: Any = OmegaConf.load(trained / "config.yaml")
    assert compute_sample(cfg, trained / "checkpoint.pt", "", own_data).words == "20 training images"


def test_images_of_one_class_have_no_marks(sample: Sample) -> None:
    one = replace(sample, images=ImageList(sample.images.paths, [0] * 20, ["unlabeled"]))
    picture = neighbors_picture(one)
    assert "class" not in picture.caption + picture.alt
    marks = np.asarray(Image.open(io.BytesIO(picture.jpeg or b"")), dtype=int)[GAP_PX + 40 : GAP_PX + 43]
    assert (np.abs(marks - GROUND).max(axis=2) < 60).all(), "up to what JPEG makes of edges"


def test_a_broken_image_is_left_out(trained: Path, own_data: Path) -> None:
    broken = sorted((own_data / "imagenet" / "val").glob("*/*"))[0]
    broken.write_bytes(b"no image")
    cfg: Any = OmegaConf.load(trained / "config.yaml")
    found = compute_sample(cfg, trained / "checkpoint.pt", "", own_data)
    assert found.indices.tolist() == list(range(1, 20)) and found.images.paths[0] == str(broken)


def test_what_is_no_pretraining_is_refused(folder: Path) -> None:
    with pytest.raises(
        UserError, match=rf"results/smoke has no finished pretraining 'nothing': valid are: {folder.name}"
    ):
        main(["pictures", "--checkpoint", "nothing"])
    shutil.rmtree(folder / "pictures", ignore_errors=True)
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"kind": "evaluate"}))
    with pytest.raises(UserError, match=r"no finished pretraining '.*': make pretrain-\.\.\. makes one"):
        main(["pictures", "--checkpoint", folder.name])
    assert MAP not in [each.name for each in read_pictures(folder, None)]
