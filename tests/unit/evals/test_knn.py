"""Which features nearest neighbors are searched in: the head's output (Table 7), or the pooled ones."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from evals.knn import neighbors, vote
from models.zoo.load import load_projection_head, load_trunk
from reproduce import evaluate
from reproduce.config.compose import compose
from reproduce.data.datasets.image_folder import read_image_folder
from reproduce.data.pipeline.center_crop import CenterCropDataset
from tests.runs import call


def result_of(monkeypatch: pytest.MonkeyPatch, results: Path, *asked: str) -> dict[str, float]:
    common = (
        "cluster.num_workers=0",
        "logging.wandb=false",
        "protocol.num_neighbors=[1,3]",
        f"paths.results={results}",
    )
    status, said = call(evaluate.main, monkeypatch, *asked, *common)
    assert status == 0, said
    (path,) = results.glob("smoke/*/result.json")
    metrics: dict[str, float] = json.loads(path.read_text())["metrics"]
    return metrics


@pytest.mark.parametrize("features", ["head", "pooled"])
def test_neighbors_are_searched_in_the_configured_features(
    features: str, random_checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against an independent calculation from the images on."""
    name = {"head": "knn_head", "pooled": "knn"}[features]
    asked = (f"eval={name}", f"checkpoint={random_checkpoint}", f"paths.data_root={data}")
    metrics = result_of(monkeypatch, tmp_path, *asked)
    cfg = compose("evaluate", [*asked])
    trunk, head = load_trunk(random_checkpoint, depth=14), load_projection_head(random_checkpoint)
    assert head is not None
    mean, std = (torch.tensor(list(value)).view(3, 1, 1) for value in (cfg.normalize.mean, cfg.normalize.std))
    rows, labels = {}, {}
    for split in ("train", "val"):
        images = read_image_folder(data / "imagenet" / split)
        crops = CenterCropDataset(images, 46, 40, "bicubic" if features == "pooled" else "bilinear")
        pixels = np.stack([crop for _, crop, _ in (crops[index] for index in range(len(images))) if crop is not None])
        with torch.no_grad():
            outputs = trunk((torch.from_numpy(pixels).float() / 255 - mean) / std)
            rows[split] = F.normalize(head(outputs) if features == "head" else outputs, dim=1)
        labels[split] = torch.tensor(images.labels)
    assert rows["val"].shape[1] == (8 if features == "head" else trunk.num_features)
    similarity, nearest = (rows["val"] @ rows["train"].T).sort(dim=1, descending=True)
    num_classes = len(set(labels["train"].tolist()))
    predicted, _ = vote(similarity, labels["train"][nearest], [1, 3], 0.07, num_classes)
    expected = (predicted == labels["val"]).float().mean(dim=1) * 100
    assert [metrics["knn1"], metrics["knn3"]] == pytest.approx(expected.tolist())


def test_a_rank_without_queries_votes_for_none() -> None:
    """Ranks share the queries, of which there may be fewer."""
    similarity, nearest = neighbors(torch.zeros(0, 4), np.ones((3, 4), dtype=np.float32), 2)
    classes = torch.tensor([0, 1, 1])[nearest]
    predicted, shares = vote(similarity, classes, [1, 2], 0.07, 2)
    assert predicted.shape == shares.shape == (2, 0)
    assert shares[1].sum() == 0


@pytest.mark.parametrize("asked_for", [[1, 3], [1, 900, 1000]])
def test_fewer_images_than_neighbors_are_said_and_recorded(
    asked_for: list[int], random_checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, said = call(
        evaluate.main,
        monkeypatch,
        *("eval=knn", f"checkpoint={random_checkpoint}", f"paths.data_root={data}", f"paths.results={tmp_path}"),
        *("cluster.num_workers=0", "logging.wandb=false", f"protocol.num_neighbors={asked_for}"),
        f"metrics=[{','.join(f'knn{k}' for k in asked_for)}]",
    )
    assert status == 0, said
    (path,) = tmp_path.glob("smoke/*/result.json")
    noted = json.loads(path.read_text())["provenance"].get("fewer_neighbors")
    if asked_for == [1, 3]:
        assert noted is None and "training images vote" not in said
    else:
        num_images = len(read_image_folder(data / "imagenet" / "train"))
        assert noted == f"knn900, knn1000: all {num_images} training images vote, because there are fewer than 900"
        assert f"warning: {noted}\n" in said


def test_a_checkpoint_without_head_ends_in_a_sentence(
    random_checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(load_trunk(random_checkpoint, depth=14).state_dict(), tmp_path / "trunk.pt")
    asked = ("eval=knn_head", f"checkpoint={tmp_path / 'trunk.pt'}", f"paths.data_root={data}", "logging.wandb=false")
    status, said = call(evaluate.main, monkeypatch, *asked, "cluster.num_workers=0", f"paths.results={tmp_path}")
    assert status == 2
    assert said.startswith(f"error: checkpoint {tmp_path / 'trunk.pt'} has no projection head")
    assert "eval=knn" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("protocol.features=heads", "unknown protocol.features 'heads': did you mean 'head'?"),
        ("++protocol.center_crop.interpolation=cubic", "unknown protocol.center_crop.interpolation 'cubic'"),
    ],
)
def test_unknown_choices_end_in_a_sentence(
    override: str, says: str, random_checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = (
        "eval=knn_head",
        f"checkpoint={random_checkpoint}",
        f"paths.data_root={data}",
        "logging.wandb=false",
        override,
    )
    status, said = call(evaluate.main, monkeypatch, *asked, f"paths.results={tmp_path}")
    assert status == 2 and said.startswith(f"error: {says}"), said


@pytest.mark.parametrize("catalog", ["generated", "cifar10"])
def test_images_of_another_catalog_than_the_trainings_are_said(
    catalog: str, random_checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cifar10").symlink_to(data / "imagenet")
    root = data if catalog == "generated" else tmp_path
    status, said = call(
        evaluate.main, monkeypatch, "eval=knn", f"checkpoint={random_checkpoint}", f"data={catalog}",
        "data.imagenet.val=val", "protocol.num_neighbors=[1]", "cluster.num_workers=0", "logging.wandb=false",
        f"paths.data_root={root}", f"paths.results={tmp_path / 'results'}",
    )  # fmt: skip
    assert status == 0, said
    warned = "was trained with generated-2 in place of ImageNet, and is evaluated with CIFAR-10" in said
    assert warned == (catalog == "cifar10")


@pytest.mark.parametrize(
    "content",
    ["- a list", "3", "a: !!python/tuple [1]", "a: [", "\0", "a: ${b}", "data: {imagenet: 3}", "\ud800"],
)
def test_another_code_bases_config_beside_a_checkpoint_does_not_matter(
    content: str, random_checkpoint: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copy2(random_checkpoint, tmp_path / "weights.pt"))
    own.with_name("config.yaml").write_bytes(content.encode(errors="surrogatepass"))
    evaluate._warn_of_other_images(compose("evaluate", ["eval=knn", f"checkpoint={own}", "scale=smoke"]), own)
