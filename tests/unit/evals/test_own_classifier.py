"""The classifier that public weights come with: its accuracy, and what has none."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.networks.trunk import Trunk
from models.zoo import entries
from models.zoo.other_networks import OTHER_NETWORKS, OtherNetwork
from reproduce import evaluate, export
from reproduce.errors import UserError
from tests.runs import call

ASKED = ("eval=own_classifier", "data=generated", "logging.wandb=false", "cluster.num_workers=0")


class Constant(Trunk):
    """A network whose classifier names one class, whatever it sees."""

    num_features = 3

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 1)
        linear = nn.Linear(3, num_classes)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        linear.bias.data[0] = 1
        self.classifier = nn.Sequential(nn.Dropout(0.5), linear)

    def forward(self, images: Tensor) -> Tensor:
        return self.stem(images).mean(dim=(2, 3))


class Bare(Trunk):
    """A network without a classifier."""

    num_features = 3

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Parameter(torch.zeros(1000, 3))


def file_with_classifier(num_classes: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with such a network, which loads while the test lasts."""
    monkeypatch.setitem(
        OTHER_NETWORKS, "constant", OtherNetwork(dict, "classifier.1.weight", lambda _: Constant(num_classes))
    )
    torch.save(Constant(num_classes).state_dict(), folder / "given.pt")
    return folder / "given.pt"


def given(num_classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Path) -> tuple[str, ...]:
    """The request to evaluate it."""
    file = file_with_classifier(num_classes, tmp_path, monkeypatch)
    return (*ASKED, f"checkpoint={file}", f"paths.data_root={data}", f"paths.results={tmp_path}")


def test_top1_of_one_class_is_its_share_and_no_epoch_is_better(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_classes = len(list((data / "imagenet" / "train").iterdir()))
    status, said = call(evaluate.main, monkeypatch, *given(num_classes, tmp_path, monkeypatch, data))
    assert status == 0, said
    (path,) = tmp_path.glob("*/own_classifier-*/result.json")
    metrics = json.loads(path.read_text())["metrics"]
    assert metrics["top1"] == metrics["top1_best"] == pytest.approx(100 / num_classes)
    assert metrics["top5"] == metrics["top5_best"] >= metrics["top1"]


def test_a_classifier_of_other_classes_raises(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, said = call(evaluate.main, monkeypatch, *given(1000, tmp_path, monkeypatch, data))
    assert (status, "own classifier has 1000 classes and the dataset has" in said) == (2, True)


def test_a_network_without_a_classifier_or_a_resnets_stages_raises(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = given(1000, tmp_path, monkeypatch, data)
    status, said = call(evaluate.main, monkeypatch, *asked, "eval=coco_detr")
    assert (status, "protocol.name=coco_detr needs a ResNet" in said) == (2, True)
    with pytest.raises(UserError, match=r"given\.pt is no ResNet, and only ResNets are exported"):
        export.export_trunk(str(tmp_path / "given.pt"), tmp_path / "out")
    bare = OtherNetwork(lambda content: {"stem": content["classifier.1.weight"]}, "stem", lambda _: Bare())
    monkeypatch.setitem(OTHER_NETWORKS, "constant", bare)
    status, said = call(evaluate.main, monkeypatch, *asked)
    assert (status, "has no classifier of its own: take eval=linear_imagenet" in said) == (2, True)


def test_images_of_another_size_than_the_networks_are_refused(
    data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    item = replace(entries.get_entry("amdim"), url="http://127.0.0.1:9/never")
    monkeypatch.setattr(entries, "get_entry", lambda _: item)
    status, said = call(
        evaluate.main, monkeypatch, "eval=linear_imagenet", "checkpoint=released:amdim", "normalize=imagenet",
        "++protocol.center_crop.interpolation=bicubic", "logging.wandb=false", f"paths.results={tmp_path}",
        f"paths.data_root={data}", "data=generated",
    )  # fmt: skip
    sizes = "protocol.center_crop.resize_px=146 protocol.center_crop.crop_px=128"
    assert status == 2 and f"was trained on images of another size: add {sizes}" in said
