"""Learning rates as functions of the step."""

import math

from reproduce.config.schema import Optimizer


def learning_rate(step: int, num_steps: int, num_epochs: int, optimizer: Optimizer) -> float:
    """The rate of a pretraining's step: warm-up, then cosine per step, or one factor less from each milestone on."""
    warmup_steps = round(optimizer.warmup_epochs * num_steps / num_epochs)
    lr, final_lr, milestones = optimizer.lr, optimizer.final_lr, optimizer.milestones
    if not milestones or step < warmup_steps:
        return warmup_cosine(step, num_steps, warmup_steps, lr, final_lr, optimizer.warmup_start_lr)
    factor = (final_lr / lr) ** (1 / len(milestones))
    return steps_per_epoch(step * num_epochs // num_steps, num_epochs, lr, milestones, factor)


def warmup_cosine(
    step: int, num_steps: int, warmup_steps: int, lr: float, final_lr: float, warmup_start_lr: float
) -> float:
    """Linear from `warmup_start_lr` to `lr` over the warm-up (both ends included), then cosine to `final_lr` (A.1)."""
    if step < warmup_steps:
        return warmup_start_lr + (lr - warmup_start_lr) * step / max(1, warmup_steps - 1)
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return final_lr + 0.5 * (lr - final_lr) * (1 + math.cos(math.pi * progress))


def cosine_per_epoch(epoch: int, num_epochs: int, lr: float) -> float:
    """Cosine to zero, constant within an epoch (A.3)."""
    return 0.5 * lr * (1 + math.cos(math.pi * epoch / num_epochs))


def steps_per_epoch(epoch: int, num_epochs: int, lr: float, milestones: list[float], factor: float = 0.1) -> float:
    """`lr` times `factor` for each milestone (a share of the epochs) that lies behind (A.5)."""
    return lr * factor ** sum(epoch >= share * num_epochs for share in milestones)
