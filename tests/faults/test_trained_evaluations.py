"""Evaluations that train or work out features: killed, asked to stop, shared by two processes, another batch."""

import json
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from evals import features
from models.networks import resnet
from reproduce import evaluate
from reproduce.config.compose import compose
from reproduce.config.schema import Dataset
from reproduce.config.validate import to_dataclass
from reproduce.data.prepare import write_shards
from reproduce.engine import checkpoint
from reproduce.errors import EXIT_TRAINING_FAILED, REQUEUE
from tests.runs import Uninterrupted, call, curve, killed_after, run, start, start_anew

FEW = ("protocol.epochs=3", "protocol.batch_size=12", "logging.wandb=false", "logging.every_steps=1",
       "checkpointing.sync_every_steps=1")  # fmt: skip
TRAINED = {
    "linear": ("eval=linear_imagenet", *FEW),
    "finetune": ("eval=lowshot_13", "protocol.subset.images_per_class=2", *FEW),
    "coco_detr": (
        "eval=coco_detr", *FEW, "protocol.batch_size=30", "protocol.validate_every_epochs=2",
        "protocol.transformer.num_layers=1", "protocol.transformer.hidden_dim=16",
        "protocol.transforms.train_sizes_px=[32,40]", "protocol.transforms.test_size_px=32",
    ),
}  # fmt: skip
LEARNING_RATES = ("lr", "lr_trunk", "lr_head", "lr_backbone")
WITHOUT_WORKERS = ("cluster.num_workers=0", "cluster.num_threads=1")


@pytest.fixture
def common(data: Path, random_checkpoint: Path) -> tuple[str, ...]:
    return (f"checkpoint={random_checkpoint}", f"paths.data_root={data}", *WITHOUT_WORKERS)


def outcome(results: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, torch.Tensor]]:
    """The one run's result, its last curve point, and the weights that it trained."""
    (path,) = results.glob("smoke/*/result.json")
    state = checkpoint.load(path.parent / "checkpoint.pt")
    return json.loads(path.read_text()), curve(results)[-1], state.get("model") or state["classifier"]


@pytest.mark.parametrize("kind", TRAINED)
def test_resumed_equals_uninterrupted_to_the_bit(
    kind: str, common: tuple[str, ...], uninterrupted: Uninterrupted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed within an epoch and at the ends of two; there are two steps in each (of 12 and of 8 of the 20 images)."""
    asked = (*TRAINED[kind], *common, "checkpointing.save_every_seconds=0")
    undisturbed = uninterrupted(evaluate.main, *asked)
    for step in (1, 2, 4):
        with killed_after(step):
            call(evaluate.main, monkeypatch, *asked, f"paths.results={tmp_path}")
    assert call(evaluate.main, monkeypatch, *asked, f"paths.results={tmp_path}")[0] == 0
    (whole, _, expected), (killed, _, found) = outcome(undisturbed), outcome(tmp_path)
    assert (whole["num_attempts"], killed["num_attempts"]) == (1, 4)
    assert curve(undisturbed) == curve(tmp_path)
    assert [point["step"] for point in curve(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert whole["metrics"] == killed["metrics"]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", TRAINED)
def test_lost_result_is_rewritten_with_its_counts(
    kind: str, random_checkpoint: Path, own_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts of pictures too: one of the test set can't be read, each time it is read."""
    tested = own_data / ("coco/val2017" if kind == "coco_detr" else "imagenet/val")
    min(tested.rglob("*.jpg")).write_bytes(b"no picture")
    asked = (
        *TRAINED[kind],
        f"checkpoint={random_checkpoint}",
        f"paths.data_root={own_data}",
        *WITHOUT_WORKERS,
        "on_bad_image=skip",
    )
    assert call(evaluate.main, monkeypatch, *asked, f"paths.results={tmp_path}")[0] == 0
    whole, _, _ = outcome(tmp_path)
    assert whole["counts"]["num_skipped_images"] == 1
    assert whole["counts"]["num_test_images"] > 0
    next(tmp_path.glob("smoke/*/result.json")).unlink()
    assert call(evaluate.main, monkeypatch, *asked, f"paths.results={tmp_path}")[0] == 0
    again, _, _ = outcome(tmp_path)
    assert again["counts"] == whole["counts"]


def test_concurrently_written_features_are_reused(tmp_path: Path) -> None:
    store = features.FeatureStore(tmp_path, "ours")
    other = features.FeatureStore(tmp_path, "theirs")
    rows = [(torch.tensor([0, 1]), torch.eye(2))]

    def overtaken() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        yield from rows
        other.write({"of": "one"}, rows, ["bad"])

    found = store.write({"of": "one"}, overtaken(), [])
    assert found.unreadable == ["bad"]
    assert found.rows.tolist() == [[1, 0], [0, 1]]
    assert len(list(tmp_path.iterdir())) == 1  # what was written for nothing, GBs of it, is gone


@pytest.mark.parametrize("kind", TRAINED)
def test_two_processes_equal_one(kind: str, common: tuple[str, ...], tmp_path: Path) -> None:
    # At its own learning rates a random network does not settle in six steps: any difference grows tenfold in each.
    lower: tuple[str, ...] = ("protocol.lr_trunk=0.0002", "protocol.lr_head=0.01") if kind == "finetune" else ()
    if kind == "coco_detr":  # each rank draws its own dropout, and pads its pictures only to the largest of its own
        lower = (
            "protocol.transformer.dropout=0",
            "protocol.transforms.crop_probability=0",
            "protocol.transforms.train_sizes_px=[32]",
        )
    outcomes = []
    for processes in (1, 2):
        results = tmp_path / str(processes)
        asked = (*TRAINED[kind], *common, *lower, "precision=fp64", f"paths.results={results}")
        done = run("reproduce.evaluate", *asked, processes=processes)
        assert done.returncode == 0, done.stderr
        outcomes.append(outcome(results))
    (one, end_of_one, expected), (two, end_of_two, found) = outcomes
    assert two["provenance"]["world_size"] == 2
    assert two["counts"] == one["counts"]
    assert two["metrics"] == one["metrics"]
    assert end_of_two == end_of_one
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-9)  # other orders of sums, six steps


def metrics_of(results: Path) -> dict[str, float]:
    """The metrics of the one run below `results`."""
    (path,) = results.glob("smoke/*/result.json")
    found: dict[str, float] = json.loads(path.read_text())["metrics"]
    return found


@pytest.mark.parametrize("name", ["knn", "voc07_svm"])
def test_two_processes_have_the_metrics_of_one(
    name: str, common: tuple[str, ...], uninterrupted: Uninterrupted, tmp_path: Path
) -> None:
    asked = (f"eval={name}", *common, "logging.wandb=false")
    done = run("reproduce.evaluate", *asked, f"paths.results={tmp_path}", processes=2)
    assert done.returncode == 0, done.stderr
    assert metrics_of(tmp_path) == pytest.approx(metrics_of(uninterrupted(evaluate.main, *asked)))


def test_features_are_cached_by_checkpoint_images_and_code(
    common: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    write = features.FeatureStore.write

    def counted(self: features.FeatureStore, *arguments: Any) -> features.Features:
        written.append(1)
        return write(self, *arguments)

    monkeypatch.setattr(features.FeatureStore, "write", counted)
    asked = ("eval=knn", *common, "logging.wandb=false", f"paths.results={tmp_path}")
    for more, expected in (
        ((), 2),  # train and val
        (("protocol.temperature=0.1",), 2),
        (("protocol.center_crop.resize_px=50",), 4),
        (("precision=bf16",), 6),
    ):
        assert call(evaluate.main, monkeypatch, *asked, *more)[0] == 0
        assert len(written) == expected
    monkeypatch.setattr(features, "FINGERPRINTED_MODULES", (resnet,))
    assert call(evaluate.main, monkeypatch, *asked)[0] == 0
    assert len(written) == 8


@pytest.mark.parametrize("kind", TRAINED)
def test_sigterm_saves_and_exits_for_requeue(kind: str, common: tuple[str, ...], tmp_path: Path) -> None:
    asked = (*TRAINED[kind], *common, "protocol.epochs=200", f"paths.results={tmp_path}")
    process = start("reproduce.evaluate", *asked)
    while not process.stdout.readline().startswith("step 2/"):
        assert process.returncode is None
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == REQUEUE
    assert "stop requested; saved after step" in said
    assert list(tmp_path.glob("smoke/*/checkpoint-*.pt"))
    assert not list(tmp_path.glob("smoke/*/failure.json"))


@pytest.mark.parametrize("kind", TRAINED)
def test_weights_that_are_not_finite_name_the_evaluations_own_learning_rates(
    kind: str, common: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = (*TRAINED[kind], *common, "protocol.epochs=1", f"paths.results={tmp_path}")
    monkeypatch.setattr(checkpoint, "_is_finite", lambda _: False)
    status, said = call(evaluate.main, monkeypatch, *asked)
    assert status == EXIT_TRAINING_FAILED
    (sentence,) = [line for line in said.splitlines() if line.startswith("error: ")]
    (rates,) = re.findall(r"^error: the weights after the last step, \d+, are not finite: lower (.*), or use", sentence)
    cfg = compose("evaluate", list(asked))
    assert all(OmegaConf.select(cfg, key) > 0 for key in rates.split(" and "))
    assert set(rates.split(" and ")) == {f"protocol.{key}" for key in cfg.protocol if key in LEARNING_RATES}


@pytest.mark.parametrize(("kind", "batch_size"), [("linear", 16), ("finetune", 8)])
def test_batch_size_scales_the_learning_rates(
    kind: str, batch_size: int, common: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scale's learning rates are for its batches of 32 and 65."""
    rates: list[list[float]] = []
    step = torch.optim.SGD.step

    def noted(self: torch.optim.SGD, *arguments: Any) -> Any:
        rates.append([group["lr"] for group in self.param_groups])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", noted)
    asked = (*TRAINED[kind], *common, f"protocol.batch_size={batch_size}", f"paths.results={tmp_path}")
    assert call(evaluate.main, monkeypatch, *asked)[0] == 0
    base = {"linear": 32, "finetune": 65}[kind]
    share = batch_size / base
    assert rates[0] == pytest.approx([lr * share for lr in {"linear": [0.3], "finetune": [0.001, 0.02]}[kind]])
    result, _, _ = outcome(tmp_path)
    said = f"learning rates x {share:g}: batch {batch_size} in place of the protocol's {base}"
    assert result["provenance"]["lr_scaled"] == said


def test_sigterm_during_svms_keeps_finished_classes(
    common: tuple[str, ...], uninterrupted: Uninterrupted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks, each with a class judged and one that never ends: all stop, and what was kept is not fitted again."""
    asked = ("eval=voc07_svm", *common, "logging.wandb=false")
    process = start_anew("tests.faults.endless_svm", *asked, f"paths.results={tmp_path}", processes=2)
    assert process.stdout
    while not process.stdout.readline().startswith("step "):
        assert process.returncode is None
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == REQUEUE, said
    assert "stop requested; the results of scored classes are kept" in said
    assert not list(tmp_path.glob("smoke/*/failure.json"))
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("smoke/*/classes/*.json")}
    assert 1 <= len(kept) <= 2
    status, said = call(evaluate.main, monkeypatch, *asked, f"paths.results={tmp_path}")
    assert status == 0, said
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert metrics_of(tmp_path) == pytest.approx(metrics_of(uninterrupted(evaluate.main, *asked)))


def test_sigterm_interrupts_the_neighbour_search(
    common: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signalled as the first block of the bank is compared; the next attempt finds the features."""
    asked = ("eval=knn", *common, "logging.wandb=false", f"paths.results={tmp_path}")
    compared: list[int] = []
    product = torch.mm

    def signalled(*arguments: Any, **options: Any) -> torch.Tensor:
        compared.append(1)
        signal.raise_signal(signal.SIGTERM)
        return product(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "mm", signalled)
        patch.setattr("evals.knn.BANK_BLOCK_BYTES", 4 * 128 * 5)
        status, said = call(evaluate.main, patch, *asked)
    assert status == REQUEUE
    few = "warning: knn200: all 20 training images vote, because there are fewer than 200\n"
    assert said == f"{few}stop requested; the features are kept\n"
    assert len(compared) == 1
    monkeypatch.setattr(features.FeatureStore, "write", None)
    assert call(evaluate.main, monkeypatch, *asked)[0] == 0


def test_unreadable_images_are_counted_over_all_ranks(random_checkpoint: Path, own_data: Path, tmp_path: Path) -> None:
    """One in the first rank's half of the bank, one in the second's."""
    train = sorted((own_data / "imagenet" / "train").rglob("*.jpg"))
    for path in (train[0], train[-1]):
        path.write_bytes(b"no picture")
    done = run(
        "reproduce.evaluate", "eval=knn", f"checkpoint={random_checkpoint}", f"paths.data_root={own_data}",
        *WITHOUT_WORKERS, "logging.wandb=false", "on_bad_image=skip", f"paths.results={tmp_path}", processes=2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("smoke/*/result.json")
    assert json.loads(path.read_text())["counts"]["num_skipped_images"] == 2


@pytest.mark.parametrize("kind", ["linear", "knn", "voc07_svm"])
def test_shards_equal_folders(
    kind: str, common: tuple[str, ...], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the order of training does not matter, to the bit; and the same pictures are quoted."""
    catalog = compose("pretrain", ["data=generated"]).data
    for name in ("imagenet", "voc07"):
        dataset = to_dataclass(catalog[name], Dataset, name)
        write_shards.write_shards(data, tmp_path / "shards", dataset, lambda _: None)
    own = {name: {**catalog[name], "layout": "shards"} for name in ("imagenet", "places205", "inat18", "voc07")}
    OmegaConf.save({"name": "shards", **own}, tmp_path / "own.yaml")
    results: list[dict[str, Any]] = []
    for where in (f"paths.data_root={data}", f"paths.data_root={tmp_path / 'shards'}"):
        folder = tmp_path / str(len(results))
        asked = (*TRAINED.get(kind, (f"eval={kind}", "logging.wandb=false")), *common, where)
        layout = (f"data={tmp_path / 'own.yaml'}",) if results else ()
        status, said = call(evaluate.main, monkeypatch, *asked, *layout, f"paths.results={folder}")
        assert status == 0, said
        results.append(json.loads(next(folder.glob("smoke/*/result.json")).read_text()))
    quoted = [result["provenance"]["data_manifest_sha256"] for result in results]
    assert len(quoted[0]) == 2
    assert quoted[1] == quoted[0]
    assert results[1]["counts"] == results[0]["counts"]
    if kind != "linear":
        assert results[1]["metrics"] == pytest.approx(results[0]["metrics"], abs=1e-4)


def test_broken_coco_annotations_stop_a_run_or_are_counted(
    data: Path, common: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(data / "coco", tmp_path / "coco")
    path = tmp_path / "coco" / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"][2] = 0
    content["annotations"][1]["category_id"] = 2
    path.write_text(json.dumps(content))
    (tmp_path / "coco" / "val2017" / f"{7:012d}.jpg").unlink()
    asked = (
        *TRAINED["coco_detr"],
        *common,
        f"paths.data_root={tmp_path}",
        f"paths.results={tmp_path}",
        "protocol.epochs=1",
    )
    status, said = call(evaluate.main, monkeypatch, *asked)
    assert status == 2
    assert said.startswith(f"error: 2 broken annotations; the first: annotation 1 of {path} has a box without area: [")
    assert "SKIP_BAD_IMAGES=1" in said
    assert said.count("\n") == 1
    status, said = call(evaluate.main, monkeypatch, *asked, "on_bad_image=skip")
    assert status == 0, said
    assert f"left out: annotation 2 of {path} has category 2, which the file does not list\n" in said
    result, _, _ = outcome(tmp_path)
    assert result["counts"] == {
        "num_skipped_images": 0, "num_broken_annotations": 3, "num_train_images": 60, "num_test_images": 29,
    }  # fmt: skip
    (drawn,) = tmp_path.glob("smoke/*/detections.json")
    assert len(json.loads(drawn.read_text())) == 6


@pytest.mark.parametrize("kind", ["linear", "finetune"])
def test_replaced_checkpoint_is_evaluated_from_scratch(
    kind: str, data: Path, random_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was trained on the one before must not pass for what this one gives."""
    name = random_checkpoint.parent.name
    other = checkpoint.load(random_checkpoint)
    other["model"] = {
        key: value.roll(1) if value.is_floating_point() else value for key, value in other["model"].items()
    }
    found = []
    for before in (True, False):
        home = tmp_path / f"{before}"
        file = home / "smoke" / name / "checkpoint.pt"
        file.parent.mkdir(parents=True)
        asked = (
            *TRAINED[kind],
            f"checkpoint={name}",
            f"paths.data_root={data}",
            *WITHOUT_WORKERS,
            f"paths.results={home}",
        )
        if before:
            shutil.copy(random_checkpoint, file)
            assert call(evaluate.main, monkeypatch, *asked)[0] == 0
        checkpoint.save(file, other)
        assert call(evaluate.main, monkeypatch, *asked)[0] == 0
        found.append(outcome(home))
    (again, _, weights), (fresh, _, expected) = found
    assert again["metrics"] == fresh["metrics"]
    assert again["provenance"]["checkpoint_sha256"] == fresh["provenance"]["checkpoint_sha256"]
    assert all(torch.equal(value, weights[key]) for key, value in expected.items())
