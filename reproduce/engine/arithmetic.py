"""How torch computes: threads, TF32, fp64, cuDNN's choice of algorithms, determinism. Set here and nowhere else.

Of these only the precision is in a run's name: the rest changes at most the order of float sums (docs/numerics.md).
"""

import os
import warnings
from typing import Any

import torch
from omegaconf import DictConfig

CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""cuBLAS reads it when it starts; with other values its split of a product depends on what runs beside it."""


def configure_torch(cfg: DictConfig) -> None:
    """Set threads and arithmetic of this process as the config says. Call it before anything runs on a GPU."""
    torch.set_num_threads(cfg.cluster.num_threads)
    torch.set_default_dtype(torch.float64 if cfg.precision == "fp64" else torch.float32)
    with warnings.catch_warnings():
        # Not by the newer `fp32_precision`: torch 2.14's cudnn.flags() and inductor raise once that is set.
        warnings.filterwarnings("ignore", "Please use the new API", UserWarning)  # torch 2.9 to 2.11
        torch.backends.cuda.matmul.allow_tf32 = cfg.precision == "tf32"
        torch.backends.cudnn.allow_tf32 = cfg.precision == "tf32"
    if cfg.cluster.deterministic:
        os.environ[CUBLAS_WORKSPACE] = ":4096:8"
    torch.use_deterministic_algorithms(cfg.cluster.deterministic)
    torch.backends.cudnn.benchmark = cfg.cluster.cudnn_benchmark and not cfg.cluster.deterministic


def products() -> dict[str, str]:
    """Return the precision of fp32 products on this process's GPU, "fp32" or "tf32"; {} on a CPU, which has no TF32."""
    if not torch.cuda.is_available():
        return {}
    found = {
        "matmul": torch.backends.cuda.matmul.fp32_precision,
        "convolutions": torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
    }
    return {name: "tf32" if precision == "tf32" else "fp32" for name, precision in found.items()}


def describe() -> dict[str, Any]:
    """Return the arithmetic of this process for the provenance of a result."""
    found: dict[str, Any] = {"deterministic": torch.are_deterministic_algorithms_enabled(), **products()}
    if torch.cuda.is_available():
        found |= {"cudnn": torch.backends.cudnn.version(), "cudnn_benchmark": torch.backends.cudnn.benchmark}
    return found
