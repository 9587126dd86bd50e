"""What holds for the tests of GPUs: full fp32, no autotuning, and a reason where there is no GPU.

`make gpu-test` runs this folder on a CUDA GPU. `make test` runs the same tests on the CPU, where they compare single
with double precision, so that the suite itself is tested; what only a GPU can show is skipped there.
"""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _full_fp32(device: torch.device) -> Iterator[None]:
    """Matrix products and convolutions in fp32 without TF32, by the kernels that cuDNN prefers."""
    if device.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA GPU (see `make doctor`)")
    backends = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends], torch.backends.cudnn.benchmark
    for backend in backends:
        backend.fp32_precision = "ieee"
    torch.backends.cudnn.benchmark = False
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)
    for backend, precision in zip(backends, before[0], strict=True):
        backend.fp32_precision = precision
    torch.backends.cudnn.benchmark = before[1]
    torch.use_deterministic_algorithms(False)  # a run in this process may have set it


@pytest.fixture
def gpu(device: torch.device) -> torch.device:
    """The GPU, for what only a GPU can show."""
    if device.type != "cuda":
        pytest.skip("needs a CUDA GPU: make gpu-test")
    return device
