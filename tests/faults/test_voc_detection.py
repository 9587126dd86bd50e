"""VOC detection as a run: resumed, asked to stop, shared by two processes, and with data that is broken."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models.networks.resnet import ResNet
from reproduce import evaluate
from reproduce.data.datasets.voc import VOC_CLASSES, read_voc_boxes
from reproduce.data.prepare import synthetic
from reproduce.engine import checkpoint
from reproduce.engine.checkpoint import CheckpointManager
from reproduce.engine.runs import detection_examples
from reproduce.errors import EXIT_USAGE, REQUEUE
from tests.runs import call, curve, made_once, run, tiny_pictures

KEYS = "protocol.detectron2"
TINY = (
    "eval=voc_detection", "scale=smoke", "protocol.batch_size=4", f"{KEYS}.INPUT.MIN_SIZE_TRAIN=[32,48]",
    f"{KEYS}.INPUT.MIN_SIZE_TEST=32", f"{KEYS}.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE=4", f"{KEYS}.SOLVER.MAX_ITER=4",
    f"{KEYS}.SOLVER.STEPS=[3]", f"{KEYS}.SOLVER.WARMUP_ITERS=2", f"{KEYS}.TEST.PRECISE_BN.NUM_ITER=2",
    "logging.wandb=false", "logging.every_steps=1", "checkpointing.sync_every_steps=1",
    "cluster.num_workers=0", "cluster.num_threads=1",
)  # fmt: skip


@pytest.fixture(scope="session")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("trunk") / "checkpoint.pt"
    torch.save(ResNet(0.0625).state_dict(), path)
    return path


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(root: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            # All of one size: a process that holds fewer of them pads them no less.
            scenes = replace(synthetic.VOC0712_SCENES, size_px=(96, 96))
            patch.setitem(synthetic.VOC_SETS, "VOC0712", (scenes, "voc0712"))
            tiny_pictures(root, num_voc=(10, 6))

    return made_once(tmp_path_factory, "voc-of-one-size", make)


@pytest.fixture
def common(pictures: Path, trunk: Path) -> tuple[str, ...]:
    return (*TINY, f"checkpoint={trunk}", f"paths.data_root={pictures}")


def outcome(results: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    (path,) = results.glob("smoke/*/result.json")
    return json.loads(path.read_text()), checkpoint.load(path.with_name("checkpoint.pt"))["model"]


def at_step(step: int, act: Callable[[], None]) -> Callable[[CheckpointManager, int], None]:
    """In place of `save_if_due`: save after every step, and act after one."""

    def save(self: CheckpointManager, done: int) -> None:
        self.save(done)
        self.wait()
        if done == step:
            act()

    return save


def test_preempted_and_resumed_equals_uninterrupted_to_the_bit(
    common: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = (f"paths.results={tmp_path / name}" for name in ("whole", "cut"))
    assert call(evaluate.main, monkeypatch, *common, whole) == (0, "")
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointManager, "save_if_due", at_step(1, lambda: os.kill(os.getpid(), signal.SIGTERM)))
        status, said = call(evaluate.main, patch, *common, cut)
    assert (status, said) == (REQUEUE, "stop requested; saved after step 2 of 4\n")
    assert call(evaluate.main, monkeypatch, *common, cut)[0] == 0
    (first, expected), (second, found) = outcome(tmp_path / "whole"), outcome(tmp_path / "cut")
    assert first["metrics"] == second["metrics"] and first["metrics"].keys() == {"ap", "ap50", "ap75"}
    assert (first["num_attempts"], second["num_attempts"]) == (1, 2)
    assert curve(tmp_path / "whole") == curve(tmp_path / "cut")
    assert [point["step"] for point in curve(tmp_path / "cut")] == [1, 2, 3, 4]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert first["counts"]["num_train_images"] == 10 and first["counts"]["num_test_images"] == 6
    (folder,) = (tmp_path / "whole" / "smoke").glob("voc_detection-*")
    shown = detection_examples.read_examples(folder)
    assert len(shown) == 6 and all(picture["true"] for picture in shown)
    assert {box["name"] for picture in shown for box in picture["true"]} <= set(VOC_CLASSES)


def test_two_processes_share_batch_norm_and_evaluate_all_images(common: tuple[str, ...], tmp_path: Path) -> None:
    """They sample boxes of their own, but see the same pictures: the backbone's running means are those of one."""
    means = []
    for processes in (1, 2):
        results = tmp_path / str(processes)
        asked = (*common, f"{KEYS}.SOLVER.MAX_ITER=1", f"{KEYS}.SOLVER.STEPS=[]", f"paths.results={results}")
        done = run("reproduce.evaluate", *asked, processes=processes)
        assert done.returncode == 0, done.stderr
        result, weights = outcome(results)
        assert result["counts"]["num_test_images"] == 6 and result["metrics"].keys() == {"ap", "ap50", "ap75"}
        means.append({name: value for name, value in weights.items() if "backbone" in name and "running_mean" in name})
    one, two = means
    assert len(one) == 43
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)  # fp32, other orders of sums


@pytest.fixture
def broken(pictures: Path, tmp_path: Path) -> Path:
    """One broken thing of each kind, and a list that names a picture that is not there."""
    root = tmp_path / "data"
    voc = root / "VOCdevkit" / "VOC0712"
    shutil.copytree(pictures / "VOCdevkit", root / "VOCdevkit")
    names = (voc / "ImageSets" / "Main" / "trainval.txt").read_text().split()
    box = "<bndbox><xmin>{}</xmin><ymin>1</ymin><xmax>{}</xmax><ymax>9</ymax></bndbox>"
    for name, kind, corners in (
        (names[0], "cat", (90, 99)),
        (names[1], "cat", (9, 8)),
        (names[2], "dragon", (1, 9)),
        (names[3], "cat", ("one", 9)),
    ):
        annotation = voc / "Annotations" / f"{name}.xml"
        wrong = f"<object><name>{kind}</name>{box.format(*corners)}</object></annotation>"
        annotation.write_text(annotation.read_text().replace("</annotation>", wrong))
    (voc / "JPEGImages" / f"{names[4]}.jpg").unlink()
    (voc / "JPEGImages" / f"{names[5]}.jpg").write_bytes((voc / "JPEGImages" / f"{names[6]}.jpg").read_bytes()[:-400])
    annotation = voc / "Annotations" / f"{names[7]}.xml"
    annotation.write_text(annotation.read_text().replace("<width>96", "<width>69"))
    return root


def test_broken_annotations_are_named(broken: Path) -> None:
    pictures, sentences = read_voc_boxes(broken / "VOCdevkit" / "VOC0712", "trainval")
    assert len(pictures) == 8
    said = "\n".join(sentences)
    for part in (
        r"(cat) lies outside its image: 90, 1 to 99, 9 in 96 x 96 pixels",
        r"(cat) has no area: 9, 1 to 8, 9 in 96 x 96 pixels",
        r"is 'dragon', which is not one of VOC's 20 classes",
        r"(cat) has a corner that is not a number",
        r".jpg is missing",
        r".jpg is 96 x 96, but annotated as 69 x 96",
    ):
        assert said.count(part) == 1, said
    assert len(sentences) == 6


def test_broken_data_stops_the_run_unless_skipped(
    broken: Path, common: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = (*common, f"paths.data_root={broken}", f"paths.results={tmp_path / 'results'}")
    status, said = call(evaluate.main, monkeypatch, *asked)
    assert status == EXIT_USAGE
    assert said.startswith("error: 6 broken annotations; the first: object ") and "SKIP_BAD_IMAGES=1" in said
    status, said = call(evaluate.main, monkeypatch, *asked, "on_bad_image=skip")
    assert status == 0
    assert said.count("left out: ") == 6 and said.count("skipped ") == 1
    result, _ = outcome(tmp_path / "results")
    counts = result["counts"]
    assert (counts["num_broken_annotations"], counts["num_skipped_images"], counts["num_train_images"]) == (6, 1, 8)
