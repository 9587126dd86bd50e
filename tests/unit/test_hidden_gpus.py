"""The tests run on the CPU, whatever the machine has."""

import os
import re
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


def test_what_demands_a_gpu_is_skipped_without_one() -> None:
    """As `make gpu-test` demands it; also a test whose fixture computes before the test begins."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu/test_half_precision.py"]
    environment = {**os.environ, "TEST_DEVICE": "cuda", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=REPO_ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "torch finds no CUDA GPU (see `make doctor`)" in done.stdout
    assert re.search(r"^\d+ skipped in ", done.stdout, re.MULTILINE), done.stdout
