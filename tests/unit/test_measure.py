"""Measurements of a network need no pictures, and say what they are."""

from pathlib import Path
from typing import Any

import pytest
import torch

from reproduce import measure, pretrain
from reproduce.config.schema import Crops, View
from reproduce.files import read_json
from reproduce.harness.plan import build
from reproduce.harness.plan.model import Request
from reproduce.harness.spec import tables
from tests.runs import call

SMALL = ("scale=smoke", "batch_size=64", "data=standard", "logging.wandb=false", "paths.data_root=/nowhere")


def measured(monkeypatch: pytest.MonkeyPatch, results: Path, *overrides: str) -> dict[str, Any]:
    status, said = call(measure.main, monkeypatch, *SMALL, *overrides, f"paths.results={results}")
    assert status == 0, said
    (result,) = results.glob("*/*/result.json")
    content: dict[str, Any] = read_json(result)
    return content


def test_parameters_are_the_trunks_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("experiment=swav_w2_400ep", "measurement=parameters", "scale=paper")
    assert measured(monkeypatch, tmp_path, *asked)["metrics"] == {"params_millions": pytest.approx(93.9, abs=0.05)}


def test_a_named_network_is_counted_and_not_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("experiment=random", "network.architecture=amdim")
    result = measured(monkeypatch, tmp_path, *asked, "measurement=parameters", "scale=paper")
    assert result["metrics"] == {"params_millions": pytest.approx(626.4, abs=0.05)}
    status, said = call(pretrain.main, monkeypatch, *SMALL, *asked, f"paths.results={tmp_path}")
    assert (status, "network.architecture=amdim is not trained here" in said) == (2, True)
    status, said = call(
        measure.main, monkeypatch, *SMALL, "experiment=random", "network.architecture=amdin",
        "measurement=parameters", f"paths.results={tmp_path}",
    )  # fmt: skip
    assert (status, "unknown network.architecture 'amdin': did you mean 'amdim'" in said) == (2, True)


def test_cost_is_that_of_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 4 images in 2, 4 and 8 seconds, after one that is not counted: a second for an image of each device."""
    few = ("measurement.num_steps=3", "measurement.images_per_step=4", "network.width=0.0625")
    timed = measure.StepTimer.seconds

    def seconds(timer: measure.StepTimer) -> list[float]:
        assert len(timed(timer)) == 4 and min(timed(timer)) > 0
        return [99.0, 8.0, 2.0, 4.0]

    monkeypatch.setattr(measure.StepTimer, "seconds", seconds)
    result = measured(monkeypatch, tmp_path, "experiment=swav_100ep", "measurement=cost", *few)
    assert result["metrics"]["seconds_per_image"] == 1
    # 100 epochs of 1,281,167 images, a 64th of them on each GPU: 2,001,823 s.
    assert result["metrics"]["hours"] == pytest.approx(556.062, abs=0.001)
    assert result["provenance"]["measured"].endswith("memory counted in bf16, not measured")


@pytest.mark.parametrize(
    "experiment", ["deepcluster_v2_400ep_2x160_4x96", "sela_v2_400ep_2x224", "moco_v2_200ep", "pirl_800ep"]
)
def test_every_kind_of_method_has_a_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, experiment: str) -> None:
    """Also those that label all pictures before an epoch (measured in its middle), or have two groups of weights."""
    monkeypatch.setattr(measure, "NUM_IMAGENET_IMAGES", 2000)
    few = ("measurement.num_steps=2", "measurement.images_per_step=4", "network.width=0.0625")
    result = measured(monkeypatch, tmp_path, f"experiment={experiment}", "measurement=cost", *few)
    assert result["metrics"]["seconds_per_image"] > 0


def test_the_cost_of_one_of_64_gpus_needs_a_batch_for_64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("experiment=swav_100ep", "measurement=cost", "batch_size=32", f"paths.results={tmp_path}")
    status, said = call(measure.main, monkeypatch, *SMALL, *asked)
    assert (status, "batch_size=32: the cost is that of one of 64 GPUs" in said) == (2, True)


def test_measurements_run_without_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    whole = build.build_plan(Request(("table2",), "paper"))
    part = whole.restricted_to(lambda run: run.kind == "measure")
    assert {run.kind for run in part.runs.values()} == {"measure"}
    assert {cell.column for cell in part.cells} == {"params_millions"}
    assert [cell.row for cell in part.cells] == [row.label for row in tables.load("table2", "paper").rows]
    assert all(run.command()[2] == "reproduce.measure" for run in part.runs.values())


class Event:
    """A CUDA event: its time is its number among all events."""

    def __init__(self, record: list[str]) -> None:
        self.record_, self.number = record, 0

    def record(self) -> None:
        self.number = sum(each.startswith("event") for each in self.record_)
        self.record_.append(f"event {self.number}")

    def synchronize(self) -> None:
        self.record_.append(f"wait for event {self.number}")

    def elapsed_time(self, end: "Event") -> float:
        return 1000.0 * (end.number - self.number) * (1 + self.number)


def test_steps_on_a_gpu_are_timed_without_waiting_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    record: list[str] = []
    monkeypatch.setattr("torch.cuda.Event", lambda **_: Event(record))
    timer = measure.StepTimer(on_gpu=True)
    record.extend(f"step {batch}" for batch in timer.timed("ab"))
    assert record == ["event 0", "step a", "event 1", "step b", "event 2"]
    assert timer.seconds() == [1, 2]
    assert record[-1] == "wait for event 2"


def test_noise_has_the_layout_of_crops() -> None:
    crops = Crops("", [View(2, 32, [0.1, 1]), View(1, 16, [0.1, 1])])
    (batch, labels), _ = measure._noise_batches(crops, num_images=4, num_steps=2)
    assert [tuple(crop.shape) for crop in batch] == [(4, 3, 32, 32)] * 2 + [(4, 3, 16, 16)]
    assert all(crop.is_contiguous(memory_format=torch.channels_last) for crop in batch)
    assert len(labels) == 4
