"""What a run keeps of its first steps."""

import math
from pathlib import Path

import pytest
import torch

from reproduce.engine.first_steps import FirstSteps
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
