"""Each method on two processes calculates what it calculates on one."""

from typing import Any

import pytest
import torch

from models.methods.registry import METHODS
from tests.unit.engine.test_distributed import outcome

MODULE = "tests.unit.engine.method_ranks"
OTHERS = sorted(METHODS.keys() - {"swav"})


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    return outcome(1, folder / "1.pt", MODULE), outcome(2, folder / "2.pt", MODULE)


@pytest.mark.parametrize("name", OTHERS)
def test_two_processes_equal_one(both: tuple[dict[str, Any], dict[str, Any]], name: str) -> None:
    alone, together = (found[name] for found in both)
    # What runs in single precision (banks, scores) is summed in another order.
    torch.testing.assert_close(together["loss"], alone["loss"], rtol=1e-5, atol=0)
    assert together["gradients"].keys() == alone["gradients"].keys()
    for key, value in alone["gradients"].items():
        # A bias in front of a BatchNorm has no gradient but rounding.
        torch.testing.assert_close(together["gradients"][key], value, rtol=1e-5, atol=1e-6 * float(value.norm()) + 1e-9)
    torch.testing.assert_close(together["state"], alone["state"], rtol=1e-5, atol=1e-6)


def test_moco_keys_are_shuffled_for_local_batchnorm(
    both: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    alone, together = (found["keys_of_halves"] for found in both)
    torch.testing.assert_close(together["keys"], alone["keys"])
    assert not torch.allclose(together["keys"][:6], alone["in_order"], atol=1e-3)
