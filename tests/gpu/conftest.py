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
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, torch.get_num_threads()
    cuda.allow_tf32 = cudnn.allow_tf32 = cudnn.benchmark = False
    torch.set_num_threads(1)
    yield
    # A run in this process may have set them, too (reproduce/engine/arithmetic.py).
    cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, num_threads = before
    torch.set_num_threads(num_threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def gpu(device: torch.device) -> torch.device:
    """The GPU, for what only a GPU can show."""
    if device.type != "cuda":
        pytest.skip("needs a CUDA GPU: make gpu-test")
    return device
