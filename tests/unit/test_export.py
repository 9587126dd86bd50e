"""Exported weights: other code loads them, gets the same features, and their card says what they are."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
import yaml
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from models.networks.resnet import STEMS, ResNet
from models.zoo import entries
from models.zoo.layouts import SamePool
from models.zoo.load import load_trunk
from reproduce.__main__ import main
from reproduce.config.compose import compose
from reproduce.errors import UserError
from reproduce.export import export_trunk, shape_of
from reproduce.harness.report import model_card
from reproduce.harness.report.summary import WrittenVerdicts

SMALL = {"width": 0.0625, "blocks": (1, 1, 1, 1)}
R50 = {"width": 1, "blocks": [3, 4, 6, 3], "stem": "7x7", "padding": "torch", "num_features": 2048}
"""What is written of a ResNet-50's shape, without its number of parameters."""


def save(path: Path, trunk: ResNet) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": trunk.state_dict(), "step": 0}, path)
    return path


def trained(**shape: object) -> ResNet:
    """A trunk whose running statistics are not those of a new one."""
    torch.manual_seed(0)
    trunk = ResNet(**shape)  # type: ignore[arg-type]
    trunk.train()(torch.randn(4, 3, 32, 32))
    return trunk.eval()


def test_torchvision_computes_the_same_features(tmp_path: Path) -> None:
    trunk = trained()
    export_trunk(str(save(tmp_path / "checkpoint.pt", trunk)), tmp_path / "export")
    theirs = torchvision.models.resnet50()
    theirs.fc = torch.nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    for tensors in (
        load_file(tmp_path / "export/trunk.safetensors"),
        torch.load(tmp_path / "export/trunk.pth", weights_only=True),
    ):
        theirs.load_state_dict(tensors)
        torch.testing.assert_close(theirs.eval()(images), trunk(images))


@pytest.mark.parametrize("stem", STEMS)
def test_a_small_trunk_is_built_again_from_its_shape(stem: str, tmp_path: Path) -> None:
    trunk = trained(**SMALL, stem=stem)
    export_trunk(str(save(tmp_path / "checkpoint.pt", trunk)), tmp_path / "export", depth=14, stem=stem)
    shape = json.loads((tmp_path / "export/trunk.json").read_text())
    again = ResNet(shape["width"], shape["blocks"], stem=shape["stem"]).eval()
    again.load_state_dict(load_file(tmp_path / "export/trunk.safetensors"))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(images), trunk(images))
    assert shape["num_features"] == 128
    assert load_trunk(tmp_path / "export/trunk.pth", depth=14, stem=stem).num_features == 128  # and is a checkpoint


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The run_id of a finished pretraining at scale smoke, with an evaluation beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    folder = Path("results/smoke/swav_800ep-s0-0123456789")
    save(folder / "checkpoint.pt", trained(**SMALL))
    cfg = compose("pretrain", ["experiment=swav_800ep", "scale=smoke"])
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    made = {
        "run_id": folder.name,
        "kind": "pretrain",
        "name": "swav_800ep",
        "seed": 0,
        "scale": "smoke",
        "metrics": {},
        "parents": [],
    }
    (folder / "result.json").write_text(json.dumps(made | {"provenance": {"git_commit": "c" * 40}}))
    evaluated = {"run_id": "knn-s0-1", "name": "knn", "seed": 0, "metrics": {"knn20": 91.5}, "parents": [folder.name]}
    Path("results/smoke/knn-s0-1").mkdir()
    Path("results/smoke/knn-s0-1/result.json").write_text(json.dumps(evaluated))
    return folder.name


@pytest.mark.parametrize("named_by", ["{}", "results/smoke/{}/checkpoint.pt"])
def test_a_run_is_exported_with_its_card(run: str, named_by: str) -> None:
    assert main(["export", "--checkpoint", named_by.format(run)]) == 0
    folder = Path("results/smoke", run, "export")
    card = (folder / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["library_name"] == "pytorch"
    assert "# swav_800ep, seed 0, scale smoke" in card and "`generated" not in card
    assert "trunk = ResNet(width=0.0625, blocks=(1, 1, 1, 1), stem='7x7')" in card
    assert "| knn, seed 0 | knn20 91.50 |" in card
    for line in ("- method: swav", "- epochs: 12", "- optimizer.lr: 1.2", "- trained on generated-2"):
        assert line in card, line
    code = card.split("```python\n")[1].split("```")[0]
    here: dict[str, object] = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        exec(code, here)  # what the card says
    assert isinstance(here["trunk"], ResNet)


def test_a_run_with_the_stem_of_small_images_is_exported(run: str) -> None:
    folder = Path("results/smoke", run)
    save(folder / "checkpoint.pt", trained(**SMALL, stem="3x3"))
    cfg = compose("pretrain", ["experiment=swav_800ep", "scale=smoke", "network.stem=3x3"])
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    assert main(["export", "--checkpoint", run]) == 0
    card = (folder / "export/README.md").read_text()
    assert "trunk = ResNet(width=0.0625, blocks=(1, 1, 1, 1), stem='3x3')" in card


def test_another_file_beside_a_runs_checkpoint_is_not_taken_for_it(run: str) -> None:
    folder = Path("results/smoke", run)
    save(folder / "other.pth", trained())
    assert main(["export", "--checkpoint", str(folder / "other.pth")]) == 0
    assert "trunk = resnet50()" in Path("results/export/other/README.md").read_text()
    with pytest.raises(UserError, match=r"checkpiont\.pt is no file"):
        main(["export", "--checkpoint", str(folder / "checkpiont.pt")])


def test_a_verdict_stands_beside_its_number(run: str) -> None:
    cell = {"run_ids": ["knn-s0-1"], "verdict": "within"}
    table = {"heading": "Table 7", "rows": [{"cells": {"knn20": cell, "knn200": None}}]}
    shape = {**R50, "num_parameters": 23_508_032}
    folder = Path("results/smoke", run)
    config, made = (
        yaml.safe_load((folder / "config.yaml").read_text()),
        json.loads((folder / "result.json").read_text()),
    )
    card = model_card.of_run(config, made, folder, shape, WrittenVerdicts([table], [], []))
    assert "| knn, seed 0 | knn20 91.50 | within (Table 7) |" in card
    assert "trunk = resnet50()" in card and "23.5 million parameters, 2048 pooled features" in card


@pytest.mark.parametrize("shape", [{}, SMALL])
def test_the_card_pads_as_tensorflow_where_the_trunk_does(
    shape: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk = trained(**shape)
    trunk.maxpool = SamePool(kernel_size=3, stride=2)
    monkeypatch.chdir(tmp_path)
    save_file(trunk.state_dict(), "trunk.safetensors")
    card = model_card.of_released(entries.get_entry("simclr_1000ep"), shape_of(trunk))
    here: dict[str, Any] = {}
    exec(card.split("```python\n")[1].split("```")[0], here)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(here["trunk"].eval()(images), trunk(images))


def test_numbers_of_an_earlier_checkpoint_are_not_on_the_card(run: str) -> None:
    for name, sha256 in ((run, "a" * 64), ("knn-s0-1", "b" * 64)):
        path = Path("results/smoke", name, "result.json")
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"provenance": {"git_commit": "c" * 40, "checkpoint_sha256": sha256}}))
    assert main(["export", "--checkpoint", run]) == 0
    card = Path("results/smoke", run, "export/README.md").read_text()
    assert "knn20" not in card and "Nothing has been evaluated on these weights yet." in card


def test_public_weights_keep_their_licence() -> None:
    entry = next(each for each in entries.load_entries().values() if each.license and each.url)
    shape = {**R50, "num_parameters": 1}
    card = model_card.of_released(entry, shape)
    assert str(entry.license) in card and str(entry.url) in card


def test_what_cannot_be_exported_is_a_sentence(run: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing is no file, and results/smoke has no finished pretraining"):
        main(["export", "--checkpoint", "nothing"])
    with pytest.raises(UserError, match=rf"no finished pretraining 'swav_800ep': did you mean '{run}'\?"):
        main(["export", "--checkpoint", "swav_800ep"])
    classifier = Path("results/smoke/linear_imagenet-s0-1")
    classifier.mkdir()
    for name in ("checkpoint.pt", "config.yaml", "result.json"):
        (classifier / name).write_text(json.dumps({"kind": "evaluate"}))
    with pytest.raises(UserError, match=r"linear_imagenet-s0-1 is no file, and .* has no finished pretraining"):
        main(["export", "--checkpoint", classifier.name])
    Path("other.pt").write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match=r"other\.pt"):
        main(["export", "--checkpoint", "other.pt"])
    with pytest.raises(UserError, match="unknown released checkpoint"):
        main(["export", "--checkpoint", "released:nothing"])
