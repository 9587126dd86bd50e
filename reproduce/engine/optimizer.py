"""SGD, with or without layer-wise adaptive rates: LARC as apex had it until 25.05 (A.1; the paper calls it LARS)."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reproduce.config.schema import Optimizer
from reproduce.data.pipeline.upload import upload
from reproduce.errors import UserError

EPSILON = 1e-8
BLOCK = 1024
"""Elements that are filled with one copy of a factor; a tensor has a whole number of such blocks."""


def build_optimizer(parameters: Iterable[nn.Parameter], config: Optimizer) -> torch.optim.SGD:
    """Return SGD with momentum, under LARC if the config has a trust coefficient.

    With a weight decay of their own, vectors are the second parameter group. LARC knows one group only: `UserError`.
    """
    if config.trust_coefficient is None:
        return torch.optim.SGD(
            _groups(parameters, config), config.lr, config.momentum, weight_decay=config.weight_decay
        )
    if config.vector_weight_decay is not None:
        raise UserError("optimizer.vector_weight_decay needs plain SGD: set optimizer.trust_coefficient=null")
    return Larc(parameters, config.lr, config.momentum, config.weight_decay, config.trust_coefficient)


def _groups(parameters: Iterable[nn.Parameter], config: Optimizer) -> list[dict[str, Any]]:
    every = list(parameters)
    if config.vector_weight_decay is None:
        return [{"params": every}]
    others, vectors = ([p for p in every if (p.ndim == 1) == is_vector] for is_vector in (False, True))
    return [{"params": others}, {"params": vectors, "weight_decay": config.vector_weight_decay}]


class Larc(torch.optim.SGD):
    """SGD with momentum whose gradients are first scaled, tensor by tensor, to the norm of their parameter.

    gradient <- trust * |p| / (|g| + weight_decay * |p| + 1e-8) * (g + weight_decay * p), without clipping.
    If |p| or |g| is zero (a bias at initialization), the gradient stays as it is: no scaling, no weight decay.
    BatchNorm and bias parameters are treated like all others.

    On a GPU the number of kernels does not grow with that of the parameters, and nothing waits for the device. torch's
    multi-tensor kernels take no list of 0-dim tensors, so each factor is spread over a tensor of its parameter's shape.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float,
        weight_decay: float,
        trust_coefficient: float,
    ) -> None:
        super().__init__(parameters, lr=lr, momentum=momentum)
        self.larc_weight_decay = weight_decay
        self.trust_coefficient = trust_coefficient
        self._tensor_of_block: dict[tuple[int, ...], Tensor] = {}

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Scale the gradients in place, then take an SGD step. With a loss scaler, unscale them first."""
        self._scale_gradients()
        return super().step(closure)

    @torch.no_grad()
    def _scale_gradients(self) -> None:
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        gradients: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
        p_norms = torch.stack(torch._foreach_norm(parameters))
        g_norms = torch.stack(torch._foreach_norm(gradients))
        adapted = (p_norms != 0) & (g_norms != 0)
        rates = self.trust_coefficient * p_norms / (g_norms + self.larc_weight_decay * p_norms + EPSILON)
        rates = torch.where(adapted, rates, torch.ones_like(rates))
        decays = torch.where(adapted, rates * self.larc_weight_decay, torch.zeros_like(rates))
        torch._foreach_mul_(gradients, self._partners(rates, gradients))
        torch._foreach_addcmul_(gradients, parameters, self._partners(decays, gradients))

    def _partners(self, factors: Tensor, gradients: list[Tensor]) -> list[Tensor]:
        """Return what to multiply each gradient with, given factors `(n,)`: on a CPU the 0-dim factor itself."""
        return list(factors.unbind()) if factors.device.type == "cpu" else self._spread(factors, gradients)

    def _spread(self, factors: Tensor, like: list[Tensor]) -> list[Tensor]:
        """Return a tensor of the shape and strides of each of `like`, filled with its factor of `factors` `(n,)`."""
        blocks = tuple(-(-each.numel() // BLOCK) for each in like)
        if blocks not in self._tensor_of_block:
            self._tensor_of_block[blocks] = upload(np.repeat(np.arange(len(blocks)), blocks), factors.device)
        filled = factors[self._tensor_of_block[blocks]].unsqueeze(1).expand(-1, BLOCK).flatten()
        starts = itertools.accumulate(blocks, initial=0)
        return [
            filled.as_strided(each.shape, each.stride(), start * BLOCK)
            for each, start in zip(like, starts, strict=False)
        ]
