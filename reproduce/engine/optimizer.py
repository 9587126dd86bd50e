"""SGD, with or without layer-wise adaptive rates: LARC as apex had it until 25.05 (A.1; the paper calls it LARS)."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from reproduce.config.schema import Optimizer

EPSILON = 1e-8


def build_optimizer(parameters: Iterable[nn.Parameter], config: Optimizer) -> torch.optim.SGD:
    """Return SGD with momentum, under LARC if the config has a trust coefficient."""
    if config.trust_coefficient is None:
        return torch.optim.SGD(parameters, config.lr, config.momentum, weight_decay=config.weight_decay)
    return Larc(parameters, config.lr, config.momentum, config.weight_decay, config.trust_coefficient)


class Larc(torch.optim.SGD):
    """SGD with momentum whose gradients are first scaled, tensor by tensor, to the norm of their parameter.

    gradient <- trust * |p| / (|g| + weight_decay * |p| + 1e-8) * (g + weight_decay * p), without clipping.
    If |p| or |g| is zero (a bias at initialization), the gradient stays as it is: no scaling, no weight decay.
    BatchNorm and bias parameters are treated like all others. Multi-tensor: no host sync, no loop over kernels.
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
        torch._foreach_mul_(gradients, list(rates.unbind()))
        torch._foreach_add_(gradients, torch._foreach_mul(parameters, list(decays.unbind())))
