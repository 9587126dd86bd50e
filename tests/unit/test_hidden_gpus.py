"""The tests run on the CPU, whatever the machine has."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import only_tests_of_gpus
from tests.runs import REPO_ROOT


def test_no_test_sees_a_gpu() -> None:
    tells = "import os, torch; print([os.environ['CUDA_VISIBLE_DEVICES'], torch.cuda.device_count()])"
    started = subprocess.run([sys.executable, "-c", tells], capture_output=True, text=True, check=True)
    assert started.stdout == "['', 0]\n"


@pytest.mark.parametrize(
    ("arguments", "only"),
    [
        (["tests/gpu"], True),
        (["tests/gpu/test_step.py::test_one[a::b]", "tests/gpu/test_loss.py"], True),
        (["tests/gpu", "tests/unit"], False),
        (["tests"], False),
        ([], False),
    ],
)
def test_gpus_are_left_to_the_tests_of_gpus(arguments: list[str], only: bool) -> None:
    assert only_tests_of_gpus(arguments, REPO_ROOT) == only
    absolute = [str(REPO_ROOT / each) for each in arguments]
    assert only_tests_of_gpus(absolute, Path("/")) == only


def test_make_gpu_test_has_the_gpu() -> None:
    """It passes no path that hides the GPU from all of its tests, which would be skipped in silence then."""
    printed = subprocess.run(
        ["make", "--dry-run", "gpu-test"], cwd=REPO_ROOT, capture_output=True, text=True, check=True
    )
    [command] = [line for line in printed.stdout.splitlines() if "TEST_DEVICE=cuda" in line and "pytest" in line]
    paths = [word for word in shlex.split(command) if word.startswith("tests")]
    assert only_tests_of_gpus(paths, REPO_ROOT)


def _pytest(*paths: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run tests as `make gpu-test` does, on a machine whose torch finds no GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *paths]
    hidden = {**os.environ, "TEST_DEVICE": "cuda", "CUDA_VISIBLE_DEVICES": "", **environment}
    return subprocess.run(command, cwd=REPO_ROOT, env=hidden, capture_output=True, text=True, check=False)


def test_other_tests_beside_those_of_gpus_are_refused() -> None:
    done = _pytest("tests/gpu/test_half_precision.py", "tests/unit/test_files.py")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "TEST_DEVICE=cuda is for tests/gpu alone" in done.stderr


def test_a_gpu_that_torch_cannot_use_is_a_failure(tmp_path: Path) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.touch()
    smi.chmod(0o755)
    done = _pytest("tests/gpu/test_half_precision.py", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "nvidia-smi is there, and torch finds no CUDA GPU" in done.stdout


def test_what_demands_a_gpu_is_skipped_without_one() -> None:
    """As `make gpu-test` demands it; also a test whose fixture computes before the test begins."""
    done = _pytest("tests/gpu/test_half_precision.py")
    assert done.returncode == 0
    assert "torch finds no CUDA GPU (see `make doctor`)" in done.stdout
    assert re.search(r"^\d+ skipped in ", done.stdout, re.MULTILINE), done.stdout
