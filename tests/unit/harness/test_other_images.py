"""A result is of its pictures: others in their place, under whatever path, are evaluated again."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from models.networks.resnet import ResNet
from reproduce import evaluate, run_images
from reproduce.__main__ import main
from reproduce.data.datasets import content
from reproduce.errors import RetryableError, describe_error
from reproduce.harness.execute import process_group
from reproduce.harness.plan import build
from reproduce.harness.plan.model import Plan, Request, Run
from reproduce.harness.plan.run_state import RunState, run_state, sync_mtimes, valid_result
from tests.runs import call

CATALOG = "imagenet: {name: imagenet, source: mine, layout: folders, root: mine, train: train, val: val}\n"


def draw(path: Path, bright: bool, seed: int) -> None:
    """A picture of one of two looks."""
    pixels = np.random.default_rng(seed).integers(150 * bright, 60 + 150 * bright, (16, 16, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def pictures(root: Path, right: bool) -> Path:
    """Two classes of 20 pictures for training and test; unless `right`, half of those for the test look otherwise."""
    for label, name in enumerate(("dark", "light")):
        for number in range(20):
            draw(root / "mine" / "train" / name / f"{number}.png", bool(label), number)
            turned = not right and number % 2
            draw(root / "mine" / "val" / name / f"{number}.png", bool(label) != turned, 100 + number)
    return root


@pytest.fixture
def checkout(tmp_path: Path, composed_here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def knn(checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`knn(DATA)`: what `evaluate knn` prints on pictures of one's own; the run is done in this process."""
    torch.manual_seed(0)
    torch.save(ResNet(0.0625).state_dict(), checkout / "trunk.pt")
    (checkout / "own.yaml").write_text(CATALOG)
    monkeypatch.setattr(content, "SETTLED_SECONDS", -3600)

    def run_process(command: list[str], folder: Path, **_: Any) -> int:
        status, said = call(evaluate.main, monkeypatch, *command[3:], "cluster.num_workers=0", "logging.wandb=false")
        (folder / "stderr.txt").write_text(said)
        return status

    monkeypatch.setattr(process_group, "run_process", run_process)

    def evaluated(data: Path) -> str:
        capsys.readouterr()
        words = ["evaluate", "knn", "--checkpoint", "trunk.pt", "--data", str(data), "--data-config", "own.yaml"]
        status = main(words)
        said = capsys.readouterr()
        assert status == 0, said.err + "".join(path.read_text() for path in checkout.rglob("stderr.txt"))
        return said.out

    return evaluated


def test_pictures_decide_whether_a_result_stands_and_paths_do_not(checkout: Path, knn: Callable[..., str]) -> None:
    first, second = pictures(checkout / "a", right=True), pictures(checkout / "b", right=False)
    assert "knn20 100.00" in knn(first)
    assert "already done" in knn(first)
    copy = Path(shutil.copytree(first, checkout / "c", copy_function=shutil.copyfile))
    assert "already done" in knn(copy)

    said = knn(second)
    assert "its result is of other images than imagenet/val in" in said and "already done" not in said
    assert "knn20 50.00" in said
    assert "already done" in knn(second)
    (result,) = (checkout / "results").glob("*/*/result.json")
    recorded = json.loads(result.read_text())["provenance"]["data_content_sha256"]
    assert recorded.keys() == {"imagenet/train", "imagenet/val"}
    (kept,) = (checkout / "results").glob(f"*/*/{run_images.ASIDE}*/result.json")
    assert json.loads(kept.read_text())["metrics"]["knn20"] == 100
    assert "knn20 100.00" in knn(first)


def test_pictures_replaced_in_place_are_read_again(checkout: Path, knn: Callable[..., str]) -> None:
    """Features of the earlier ones are stale, whatever their names."""
    data = pictures(checkout / "a", right=True)
    assert "knn20 100.00" in knn(data)
    shutil.copytree(pictures(checkout / "b", right=False), data, dirs_exist_ok=True)
    assert "knn20 50.00" in knn(data)


def test_a_mended_picture_is_decoded_again(checkout: Path, knn: Callable[..., str]) -> None:
    data = pictures(checkout / "a", right=True)
    broken = data / "mine" / "val" / "dark" / "3.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:100])
    with pytest.raises(AssertionError, match=r"can't decode image .*3\.png"):
        knn(data)
    broken.write_bytes(whole)
    assert "knn20 100.00" in knn(data)


def test_a_run_says_what_it_passes_over(checkout: Path, knn: Callable[..., str]) -> None:
    data = pictures(checkout / "a", right=True)
    draw(data / "mine" / "val" / "dark" / "x.bmp", bright=True, seed=0)
    for number in range(20):
        draw(data / "mine" / "val" / ".ipynb_checkpoints" / f"{number}.png", bright=True, seed=number)
    assert "knn20 100.00" in knn(data)
    (result,) = (checkout / "results").glob("*/*/result.json")
    said = result.with_name("stderr.txt").read_text()
    assert "1 .bmp: dark/x.bmp" in said and "hidden or system files and folders (.ipynb_checkpoints)" in said
    assert json.loads(result.read_text())["provenance"]["data_passed_over"].keys() == {"imagenet/val"}


@pytest.fixture
def table7(checkout: Path) -> Plan:
    """Table 7 on pictures of one's own in the folder `data`."""
    (checkout / "own.yaml").write_text(CATALOG)
    return build.build_plan(Request(("table7",), "smoke", data="data", data_config="own.yaml"))


def finish_on(
    plan: Plan, finish: Callable[..., None], hashes: dict[str, str], kind: str = "data_content_sha256"
) -> None:
    for run in plan.runs.values():
        finish(run, provenance={"checkpoint_sha256": run.parents[0] if run.parents else run.run_id, kind: hashes})


def states(plan: Plan) -> set[RunState]:
    plan.content_hashes.clear()
    return {run_state(plan, run) for run in plan.runs.values()}


def found(plan: Plan) -> dict[str, str]:
    run: Run = next(iter(plan.runs.values()))
    from reproduce.config.schema import Dataset

    dataset = Dataset(**run.workload.dataset)
    return {
        f"imagenet/{split}": content.split_content_sha256(Path("data"), dataset, split) for split in ("train", "val")
    }


def test_pretrainings_of_other_pictures_are_done_again_and_kept(
    checkout: Path, table7: Plan, finish: Callable[..., None]
) -> None:
    pictures(checkout / "data", right=True)
    finish_on(table7, finish, found(table7))
    assert states(table7) == {RunState.DONE}
    run = next(run for run in table7.runs.values() if run.name == "swav_800ep")
    (Path(run.folder) / "checkpoint.pt").write_bytes(b"weeks of work")
    draw(checkout / "data" / "mine" / "train" / "dark" / "0.png", bright=True, seed=7)
    assert states(table7) == {RunState.TO_DO}
    assert valid_result(table7, run) is None
    sync_mtimes(table7)
    assert not run.result.exists() and not (Path(run.folder) / "checkpoint.pt").exists()
    (aside,) = Path(run.folder).glob(f"{run_images.ASIDE}*")
    assert (aside / "checkpoint.pt").read_bytes() == b"weeks of work" and (aside / "result.json").exists()


def test_a_failing_disk_ends_a_command_with_a_sentence(
    checkout: Path, table7: Plan, finish: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result is neither valid nor outdated as long as nobody can read the images."""
    pictures(checkout / "data", right=True)
    finish_on(table7, finish, found(table7))

    def fail(_: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(RetryableError, match=r"can't read .*: Input/output error") as error:
        states(table7)
    described = describe_error(error.value)
    assert described and described[1] == 1


def test_results_stand_where_the_pictures_are_not(table7: Plan, finish: Callable[..., None]) -> None:
    """Results that were copied to a machine without the images are judged there."""
    finish_on(table7, finish, {"imagenet/train": "a", "imagenet/val": "b"})
    assert states(table7) == {RunState.DONE}


def test_older_results_are_compared_by_names_and_sizes(
    checkout: Path, table7: Plan, finish: Callable[..., None]
) -> None:
    from reproduce.config.schema import Dataset
    from reproduce.data.datasets.image_folder import read_image_list
    from reproduce.data.datasets.manifest import split_manifest

    pictures(checkout / "data", right=True)
    dataset = Dataset(**next(iter(table7.runs.values())).workload.dataset)
    images = read_image_list(Path("data/mine"), dataset, "val")
    hashes = {"imagenet/val": split_manifest(Path("data"), dataset, "val", images)["sha256"]}
    finish_on(table7, finish, hashes, "data_manifest_sha256")
    assert states(table7) == {RunState.DONE}
    (checkout / "data" / "mine" / "val" / "dark" / "3.png").unlink()
    assert states(table7) == {RunState.TO_DO}


def test_generated_pictures_are_not_looked_at(
    checkout: Path, finish: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their version says what they are, and is part of the run's name."""
    monkeypatch.setattr(content, "split_content_sha256", lambda *_: pytest.fail("looked at"))
    plan = build.build_plan(Request(("table7",), "smoke"))
    Path(plan.generated_data_dir).mkdir(parents=True)
    finish_on(plan, finish, {"imagenet/train": "a", "imagenet/val": "b"})
    assert states(plan) == {RunState.DONE}


def test_checkpoints_of_other_pictures_are_not_resumed(tmp_path: Path) -> None:
    assert run_images.start_over_on_other_images(tmp_path, "imagenet/train", "a" * 64) is None
    assert run_images.start_over_on_other_images(tmp_path, "imagenet/val", "b" * 64) is None
    (tmp_path / "checkpoint-00000007.pt").write_bytes(b"of these")
    (tmp_path / "checkpoint-00000007.sha256").write_text("x")
    assert run_images.start_over_on_other_images(tmp_path, "imagenet/train", "a" * 64) is None
    assert (tmp_path / "checkpoint-00000007.pt").exists()
    aside = run_images.start_over_on_other_images(tmp_path, "imagenet/val", "c" * 64)
    assert aside is not None and not list(tmp_path.glob("checkpoint*"))
    assert {path.name for path in aside.iterdir()} >= {"checkpoint-00000007.pt", "checkpoint-00000007.sha256"}
    assert run_images.start_over_on_other_images(tmp_path, "imagenet/train", "a" * 64) is None


def test_own_pictures_in_place_of_generated_ones_have_no_baseline_and_are_done_again(
    checkout: Path, finish: Callable[..., None]
) -> None:
    """At scale smoke both have one name: only the folder and the content tell them apart."""
    pictures(checkout / "data", right=True)
    own, generated = (build.build_plan(Request(("table7",), "smoke", data=data)) for data in ("data", None))
    assert own.runs.keys() == generated.runs.keys()
    assert (own.uses_reference_data, generated.uses_reference_data) == (False, True)
    for run in own.runs.values():
        images = {"data_content_sha256": {"imagenet/val": "a"}, "data_root": "data"}
        finish(run, provenance={"git_commit": "c" * 40, **images})
    assert states(generated) == {RunState.TO_DO}
    for run in own.runs.values():
        finish(run, provenance={"git_commit": "c" * 40, **images, "data_root": generated.data_root})
    assert states(generated) == {RunState.DONE}


def test_a_copy_of_the_generated_images_is_compared_with_the_recorded_numbers(checkout: Path) -> None:
    (checkout / "copy").mkdir()
    (checkout / "copy" / "manifest.json").write_text(json.dumps({"version": "generated-2"}))
    assert build.build_plan(Request(("table7",), "smoke", data="copy")).uses_reference_data
    (checkout / "copy" / "manifest.json").write_text(json.dumps({"version": "generated-1"}))
    assert not build.build_plan(Request(("table7",), "smoke", data="copy")).uses_reference_data


def test_a_split_may_be_a_folder_in_a_folder(checkout: Path, finish: Callable[..., None]) -> None:
    from reproduce.config.schema import Dataset

    pictures(checkout / "data", right=True)
    for split in ("train", "val"):
        (checkout / "data/mine/images").mkdir(exist_ok=True)
        (checkout / "data/mine" / split).rename(checkout / "data/mine/images" / split)
    own = CATALOG.replace("train: train", "train: images/train").replace("val: val", "val: images/val")
    assert own != CATALOG
    (checkout / "own.yaml").write_text(own)
    plan = build.build_plan(Request(("table7",), "smoke", data="data", data_config="own.yaml"))
    dataset = Dataset(**next(iter(plan.runs.values())).workload.dataset)
    hashes = {
        f"{dataset.name}/{split}": content.split_content_sha256(Path("data"), dataset, split)
        for split in ("images/train", "images/val")
    }
    finish_on(plan, finish, hashes)
    assert states(plan) == {RunState.DONE}
    draw(checkout / "data/mine/images/val/dark/3.png", bright=True, seed=9)
    assert states(plan) == {RunState.TO_DO}


def test_no_file_set_aside_replaces_another(tmp_path: Path) -> None:
    """Of other test images with the same training images, and of the same images a second time."""
    asides = []
    for val in ("b", "c", "b", "c", "d"):
        if aside := run_images.start_over_on_other_images(tmp_path, "imagenet/val", val * 64):
            asides.append(aside)
        run_images.start_over_on_other_images(tmp_path, "imagenet/train", "a" * 64)
        (tmp_path / "checkpoint.pt").write_text(val)
        (tmp_path / "pictures").mkdir()
        (tmp_path / "pictures" / "crops.jpg").write_text(val)
    assert [(aside / "checkpoint.pt").read_text() for aside in asides] == ["b", "c", "b", "c"]
    assert [(aside / "pictures" / "crops.jpg").read_text() for aside in asides] == ["b", "c", "b", "c"]
    first, second, *again = (aside.name for aside in asides)
    assert again == [f"{first}-2", f"{second}-2"]
