"""Two and four processes calculate what one process calculates on the whole batch."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.nccl_conditions import require_contiguous
from tests.runs import run


def outcome(processes: int, output: Path, module: str = "tests.unit.engine.ranks") -> dict[str, Any]:
    """What `module` writes on so many processes."""
    done = run(module, str(output), processes=processes)
    assert done.returncode == 0, done.stderr
    return torch.load(output, weights_only=True)


def outcome_under_torchrun(output: Path) -> dict[str, Any]:
    """Its agent is that of the command `torchrun`, which would start interpreters and import torch in each."""
    return outcome(1, output, "tests.unit.engine.ranks_under_torchrun")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return outcome(1, tmp_path_factory.mktemp("alone") / "out.pt")


@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_equal_one(alone: dict[str, Any], tmp_path: Path, processes: int) -> None:
    together = outcome_under_torchrun(tmp_path / "out.pt") if processes == 2 else outcome(4, tmp_path / "out.pt")
    assert together["skipped"] == [str(each) for each in range(processes)]  # what rank 0 saves is of all ranks
    # Four steps; Sinkhorn runs in single precision, all else here in double.
    torch.testing.assert_close(together["loss"], alone["loss"], rtol=1e-5, atol=0)
    share = len(together["assignments"])
    torch.testing.assert_close(together["assignments"], alone["assignments"][:share], rtol=1e-5, atol=1e-7)
    for name in ("halves_out", "halves_gradient"):
        torch.testing.assert_close(together[name], alone[name][: len(together[name])])
    torch.testing.assert_close(together["halves_mean"], alone["halves_mean"])
    for name, value in alone["running"].items():
        torch.testing.assert_close(together["running"][name], value, rtol=1e-5, atol=1e-7)
    for name, value in alone["gradients"].items():
        # A bias in front of a BatchNorm has no gradient but rounding.
        torch.testing.assert_close(
            together["gradients"][name], value, rtol=1e-5, atol=1e-6 * float(value.norm()) + 1e-9
        )


def test_a_collective_on_strided_tensors_would_be_detected() -> None:
    """As NCCL detects it; each rank of these tests runs under this check."""
    checked = require_contiguous(lambda *_, **__: "done")
    rows = torch.zeros(2, 3)
    assert checked([rows], rows, group=None) == "done"
    for strided in ((rows.T,), ([rows, rows.T], rows)):
        with pytest.raises(ValueError, match="Tensors must be contiguous"):
            checked(*strided)
