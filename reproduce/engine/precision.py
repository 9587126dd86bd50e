"""The precision of matrix products and convolutions: fp32, TF32, mixed with half precision, or double."""

import torch
from torch import Tensor

from reproduce.engine.distributed.collectives import device
from reproduce.errors import UserError, did_you_mean

AUTOCAST = {"fp64": None, "fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Autocast dtype of each `precision`. Weights, losses, Sinkhorn and the optimizer stay in fp32, except with `fp64`.

fp64 is for checks: rounding, which a step of training magnifies to a percent in fp32, stays invisible for a dozen. On a
GPU, products of fp32 tensors are rounded to TF32 with `tf32` and only then (`arithmetic.configure_torch`).
"""
TORCH_LOSS_SCALE = 65536.0


def autocast(precision: str, device_type: str | None = None) -> torch.autocast:
    """Return the autocast context of `precision`. Raises `UserError` if it is unknown.

    `device_type` ("cpu", "cuda") defaults to this process's device.
    """
    if precision not in AUTOCAST:
        raise UserError(f"unknown precision {precision!r}: {did_you_mean(precision, AUTOCAST)}")
    dtype = AUTOCAST[precision]
    return torch.autocast(device_type or device().type, dtype=dtype, enabled=dtype is not None)


def at_least_fp32(tensor: Tensor) -> Tensor:
    """Return a tensor in fp32, for sums and exponentials that half precision can't hold; fp64 stays as it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def loss_scaler(precision: str, initial_scale: float | None = None) -> torch.amp.GradScaler:
    """Return a gradient scaler, enabled for fp16 only: small gradients would underflow without it.

    `initial_scale` is what it starts with, before it grows and shrinks by itself; None is torch's default.
    """
    return torch.amp.GradScaler(device().type, initial_scale or TORCH_LOSS_SCALE, enabled=precision == "fp16")
