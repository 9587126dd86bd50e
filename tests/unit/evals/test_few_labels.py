"""Which pictures have labels, and at which learning rates a network is finetuned on them."""

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evals import finetune
from evals.classifier import ClassifierTraining
from evals.finetune import LabeledSubset, ProtocolConfig, learning_rates, select_labeled
from models.networks.resnet import ResNet
from reproduce.config.compose import compose
from reproduce.config.validate import to_dataclass
from reproduce.data.datasets.image_folder import ImageList
from reproduce.errors import UserError


def of_classes(num_classes: int, num_each: int, name: str = "n{:08d}") -> ImageList:
    classes = [name.format(number) for number in range(num_classes)]
    paths = [f"/data/train/{cls}/{cls}_{number}.JPEG" for cls in classes for number in range(num_each)]
    return ImageList(paths, [label for label in range(num_classes) for _ in range(num_each)], classes)


def protocol(name: str) -> ProtocolConfig:
    return to_dataclass(
        compose("evaluate", [f"eval={name}", "scale=paper", "checkpoint=x"]).protocol, ProtocolConfig, "protocol"
    )


@pytest.mark.parametrize(
    ("name", "trunk", "head"),
    [("semisup_1pct", 0.02, 5), ("semisup_10pct", 0.01, 0.2), ("lowshot_13", 0.02, 5), ("lowshot_128", 0.01, 0.2)],
)
def test_learning_rates_of_the_paper(name: str, trunk: float, head: float) -> None:
    asked = protocol(name)
    assert (asked.epochs, asked.batch_size, asked.weight_decay, asked.momentum) == (20, 256, 0, 0.9)
    rates = [learning_rates(asked, epoch) for epoch in range(20)]
    for number, lr in enumerate((trunk, head)):
        expected = [lr] * 12 + [lr * 0.2] * 4 + [lr * 0.04] * 4
        assert [pair[number] for pair in rates] == pytest.approx(expected)


def test_the_trunk_trains_at_its_own_rate_and_the_classifier_at_its(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, trunk = of_classes(4, 20, "class{}"), ResNet(0.0625, (1, 1, 1, 1))
    run = SimpleNamespace(provenance={}, counts={})
    context: Any = SimpleNamespace(
        root=tmp_path, run=run, cfg=SimpleNamespace(seed=0), train_and_val=lambda: (pictures, pictures)
    )
    context.lr_scale = lambda batch_size, base: batch_size / base
    rates: dict[str, set[float]] = {}

    def look(given: ClassifierTraining, *_: object) -> None:
        parameters = given.net.named_parameters()
        part_of = {id(value): "trunk" if name.startswith("0.") else "head" for name, value in parameters}
        for group, rate in zip(given.optimizer.param_groups, given.learning_rates(0), strict=True):
            for value in group["params"]:
                rates.setdefault(part_of[id(value)], set()).add(rate)

    monkeypatch.setattr(finetune, "train_classifier", look)
    finetune.evaluate(trunk, replace(protocol("semisup_1pct"), batch_size=64), context)
    assert rates == {"trunk": {0.02 / 4}, "head": {5 / 4}}


def test_imagenet_takes_the_published_list_and_nothing_else(tmp_path: Path) -> None:
    pictures = of_classes(1000, 3)
    subset = LabeledSubset(0.01, "1percent.txt", "0" * 64)
    with pytest.raises(UserError, match=r"1percent\.txt is missing: put SimCLR's list"):
        select_labeled(pictures, subset, tmp_path)
    names = [f"n{number:08d}_{number % 3}.JPEG" for number in (999, 5, 0)]
    (tmp_path / "1percent.txt").write_text("\n".join(names) + "\n")
    with pytest.raises(UserError, match="is not the one that the paper used"):
        select_labeled(pictures, subset, tmp_path)
    subset.sha256 = hashlib.sha256((tmp_path / "1percent.txt").read_bytes()).hexdigest()
    found = select_labeled(pictures, subset, tmp_path)
    assert [path.rsplit("/", 1)[1] for path in found.paths] == sorted(names)
    assert found.labels == [0, 5, 999]
    assert found.classes == pictures.classes
    with pytest.raises(UserError, match=re.escape("1 of the 3 images") + ".*e.g. n00000005_2.JPEG"):
        select_labeled(pictures.subset([index for index in range(3000) if index != 17]), subset, tmp_path)


@pytest.mark.parametrize(("share", "each", "expected"), [(0.1, 500, 50), (0.01, 500, 13), (0.01, 5, 5)])
def test_a_drawn_share_is_even_over_classes(tmp_path: Path, share: float, each: int, expected: int) -> None:
    pictures = of_classes(10, each, "class{}")
    found = select_labeled(pictures, LabeledSubset(share, "1percent.txt", "0" * 64), tmp_path)
    assert [found.labels.count(label) for label in range(10)] == [expected] * 10
    assert len(set(found.paths)) == len(found)
    assert found == select_labeled(pictures, LabeledSubset(share, "1percent.txt", "0" * 64), tmp_path)


def test_low_shot_takes_as_many_of_every_class_of_imagenet_too(tmp_path: Path) -> None:
    found = select_labeled(of_classes(1000, 20), protocol("lowshot_13").subset, tmp_path)
    assert [found.labels.count(label) for label in range(1000)] == [13] * 1000
    first = [path for path, label in zip(found.paths, found.labels, strict=True) if label == 0]
    assert first != of_classes(1000, 20).paths[:13]  # drawn, not the first


def test_a_class_too_small_for_low_shot_raises(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"class class0 of .* has 20 training images, and this protocol needs 128"):
        select_labeled(of_classes(2, 20, "class{}"), protocol("lowshot_128").subset, tmp_path)
