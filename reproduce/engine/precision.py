"""The dtype of matrix products and convolutions."""

import torch

from reproduce.engine.distributed.collectives import device
from reproduce.errors import UserError, did_you_mean

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What each `precision` of a config casts to; weights, losses, Sinkhorn and the optimiser stay in fp32."""


def autocast(precision: str, device_type: str | None = None) -> torch.autocast:
    """A context that casts as a config's `precision` asks, on this run's device; `UserError` for one that there is not.

    `device_type` ("cpu") is said where tensors lie elsewhere.
    """
    if precision not in AUTOCAST:
        raise UserError(f"there is no precision {precision!r}: {did_you_mean(precision, AUTOCAST)}")
    dtype = AUTOCAST[precision]
    return torch.autocast(device_type or device().type, dtype=dtype, enabled=dtype is not None)


def loss_scaler(precision: str) -> torch.amp.GradScaler:
    """Scales the loss where small gradients would vanish in `fp16`; for any other precision it does nothing."""
    return torch.amp.GradScaler(device().type, enabled=precision == "fp16")
