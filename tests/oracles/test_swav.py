"""SwAV's official training, with apex's LARC and SyncBatchNorm, beside ours on two and four processes."""

from typing import Any

import pytest
import torch

from tests.oracles.official import checkout
from tests.runs import run


@pytest.fixture(scope="module", params=[2, 4])
def outcome(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = checkout("swav", "main_swav.py").parent
    checkout("apex", "apex/parallel/LARC.py")
    output = tmp_path_factory.mktemp("swav") / "out.pt"
    done = run("tests.oracles.swav_ranks", str(folder), str(output), processes=request.param)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = torch.load(output, weights_only=True)
    return found


@pytest.mark.parametrize("batchnorm", ["all", "pairs"])
def test_losses_weights_statistics_and_queue_equal_the_official_ones(outcome: dict[str, Any], batchnorm: str) -> None:
    """After four steps, two with frozen prototypes and two with the queue; BatchNorm over all ranks or pairs."""
    theirs, ours = outcome[batchnorm]["theirs"], outcome[batchnorm]["ours"]
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-12)
    torch.testing.assert_close(ours["queue"].double(), theirs["queue"], rtol=0, atol=1e-12)
    assert ours["state"].keys() == theirs["state"].keys()
    for name, value in theirs["state"].items():
        torch.testing.assert_close(ours["state"][name], value, rtol=0, atol=1e-9 * float(value.abs().max()), msg=name)
