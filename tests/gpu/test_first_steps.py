"""First steps of recipes on a GPU against the recorded ones, which a CPU computed; `make preflight` has all recipes.

On the CPU, which `make test` has, two steps show that the comparison works.
"""

from pathlib import Path

import pytest
import torch

from reproduce.harness.preflight.rehearsals import Rehearsal
from reproduce.harness.spec import golden
from tests.rehearsed import cut, plan, random_trunk, take

RECIPES = (
    *("deepcluster_v2_800ep", "moco_v2_200ep", "sela_v2_400ep_2x160_4x96", "simclr_1000ep", "supervised"),
    *("swav_200ep_bs256", "coco_detr", "knn_head", "linear_inat18", "semisup_1pct"),
)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rehearsal]:
    return plan(tmp_path_factory.mktemp("images"), RECIPES)


@pytest.fixture(scope="module")
def trunk(planned: dict[str, Rehearsal], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_trunk(planned, tmp_path_factory.mktemp("trunk"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_recorded_steps(
    device: torch.device, planned: dict[str, Rehearsal], trunk: Path, tmp_path: Path, recipe: str
) -> None:
    rehearsal = planned[recipe]
    num_steps = rehearsal.num_steps if device.type == "cuda" else 2
    found = take(rehearsal, trunk, tmp_path, num_steps)
    recorded = golden.load("smoke").rehearsals[rehearsal.name]
    compared = golden.compare_recorded(found, cut(recorded, num_steps))
    assert not compared.differences, str(compared.differences[0])
    assert compared.num_compared >= 7
