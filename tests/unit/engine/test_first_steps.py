"""What a run keeps of its first steps."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from reproduce.engine import first_steps
from reproduce.engine.checkpoint import CheckpointManager
from reproduce.engine.first_steps import (
    FirstSteps,
    FirstStepsDone,
    _signs,
    describe_images,
    describe_labels,
    describe_weights,
)
from reproduce.errors import UserError
from reproduce.files import NOT_FINITE, read_json, write_json
from reproduce.harness.spec.golden import Golden, compare


@pytest.mark.parametrize("overflow", [math.inf, -math.inf, math.nan])
def test_a_result_can_hold_an_overflow_and_compares_it(tmp_path: Path, overflow: float) -> None:
    """The loss scale of fp16 starts so high that the first gradient norms may be infinite, which is no error."""
    steps = FirstSteps()
    for norm in (overflow, 2.0):
        steps.note({"gradient norm": torch.tensor(norm)})
    write_json(tmp_path / "result.json", steps.values())
    found = read_json(tmp_path / "result.json")
    assert found == {"gradient norm": [NOT_FINITE, 2.0]}
    recorded = Golden([], [], found, {"gradient norm": [0.1, 0.1]})
    assert not compare(found, recorded).differences
    assert compare({"gradient norm": [3.0, 2.0]}, recorded).differences


def test_a_weight_s_projection_shows_what_its_norm_does_not() -> None:
    """Two weights that change places, as a wrong order of channels would make them."""
    net = nn.Linear(20_000, 1)
    before = describe_weights({"": net})["weight matrices"]
    with torch.no_grad():
        net.weight[0, [3, 7]] = net.weight[0, [7, 3]]
    norm, projection = describe_weights({"": net})["weight matrices"]
    torch.testing.assert_close(norm, before[0])
    signs = _signs(torch.device("cpu"))
    assert signs[3] != signs[7]  # else choose others
    assert abs(projection - before[1]) > 1e-6


def test_images_are_described_view_by_view_whoever_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = torch.rand(2, 4, 3, 8, 8).unbind(), torch.rand(4, 3, 5, 5)
    whole = describe_images(([*large, small], torch.arange(4)))
    assert whole["pixels of view 1"] == pytest.approx(torch.stack(large).double().mean().item())
    assert whole["squared pixels of view 2"] == pytest.approx(small.double().square().mean().item())
    flipped = describe_images(([*large, small.flip(3)], torch.arange(4)))
    assert flipped["pixels of view 2"] == pytest.approx(whole["pixels of view 2"].item())
    assert flipped["projection of view 2"] != pytest.approx(whole["projection of view 2"].item())
    shares = []
    for number in range(2):
        monkeypatch.setattr(first_steps, "rank", lambda number=number: number)
        mine = slice(2 * number, 2 * number + 2)
        shares.append(describe_images([each[mine] for each in (*large, small)]))
    for name, value in whole.items():
        assert sum(share[name] for share in shares) / 2 == pytest.approx(value.item(), abs=1e-9)


def test_labels_count_by_their_places_over_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.tensor([5, 1, 4, 2])
    whole = describe_labels(([torch.rand(4, 3, 8, 8)], labels))
    assert whole == 6 * 1 + 2 * 2 + 5 * 3 + 3 * 4
    assert describe_labels(([], labels[[1, 0, 2, 3]])) != whole
    first = describe_labels(([], labels[:2]))
    monkeypatch.setattr(first_steps, "rank", lambda: 1)
    assert first + describe_labels(([], labels[2:])) == whole


def test_a_recorder_that_resumes_goes_on() -> None:
    def train(recorder: FirstSteps, net: nn.Linear, steps: range) -> None:
        for step in steps:
            with torch.no_grad():
                net.weight += step + 1
            recorder.record(step, ([torch.rand(1, 3, 4, 4)], torch.tensor([step])), torch.tensor(1.0), {}, None, [0.5])

    torch.manual_seed(0)
    whole, net = FirstSteps(3), nn.Linear(3, 1)
    whole.watch(net, 0)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(1)
    train(whole, net, range(3))
    net.load_state_dict(state)
    first = FirstSteps(3)
    first.watch(net, 0)
    torch.manual_seed(1)
    train(first, net, range(2))
    saved = first.state_dict()
    resumed = FirstSteps(3)
    resumed.load_state_dict(saved)
    resumed.watch(net, 2)
    train(resumed, net, range(2, 3))
    assert resumed.values() == whole.values()
    signs = _signs(torch.device("cpu"))[:3].sum().item()  # of three, which don't add up to zero
    moved = whole.values()["movement of weight matrices"]
    assert moved == pytest.approx([1 * signs, 3 * signs, 6 * signs], abs=1e-5)


def test_a_rehearsal_ends_after_its_last_step() -> None:
    recorder = FirstSteps(1, stop_after_last=True)
    with pytest.raises(FirstStepsDone):
        recorder.record(0, ([torch.rand(1, 3, 4, 4)], torch.tensor([0])), torch.tensor(1.0), {}, None, [])
    assert recorder.values()["loss"] == [1.0]
    assert not recorder.wants(1)


def test_a_run_that_resumes_from_before_first_steps_goes_on_without(tmp_path: Path) -> None:
    """Its trained weights are not its initial ones, and its next step is not its first."""
    net = nn.Linear(2, 2)
    CheckpointManager(tmp_path / "checkpoint.pt", {"model": net}, save_every_seconds=0).finish(7)
    recorder = FirstSteps()
    checkpoints = CheckpointManager(tmp_path / "checkpoint.pt", {"model": net, "first_steps": recorder}, 0)
    assert checkpoints.resume() == 7
    recorder.watch(net, 7)
    assert not recorder.wants(7)
    assert recorder.values() == {}
    with pytest.raises(UserError, match="have no optimizer"):
        CheckpointManager(tmp_path / "checkpoint.pt", {"optimizer": net, "first_steps": recorder}, 0).resume()
