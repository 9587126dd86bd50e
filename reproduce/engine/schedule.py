"""Learning-rate schedules, as functions of the step or the epoch."""

import math
from dataclasses import replace

from reproduce.config.schema import Optimizer


def learning_rate(step: int, num_steps: int, num_epochs: int, optimizer: Optimizer) -> float:
    """Return a pretraining's rate at `step`: linear warm-up, then a cosine per step, or step decay per epoch.

    With a `restart_epoch`, the epochs before and those from it on have the whole schedule each.
    With milestones, each multiplies the rate by the same factor, so that the last one reaches `final_lr`; a rate of 0
    stays 0.
    """
    if again := optimizer.restart_epoch:
        once, first = replace(optimizer, restart_epoch=None), again * num_steps // num_epochs
        if step < first:
            return learning_rate(step, first, again, once)
        return learning_rate(step - first, num_steps - first, num_epochs - again, once)
    warmup_steps = round(optimizer.warmup_epochs * num_steps / num_epochs)
    lr, final_lr, milestones = optimizer.lr, optimizer.final_lr, optimizer.milestones
    if not milestones or step < warmup_steps:
        return warmup_cosine_lr(step, num_steps, warmup_steps, lr, final_lr, optimizer.warmup_start_lr)
    factor = (final_lr / lr) ** (1 / len(milestones)) if lr else 0.0
    return multistep_lr(step * num_epochs // num_steps, num_epochs, lr, milestones, factor)


def warmup_cosine_lr(
    step: int, num_steps: int, warmup_steps: int, lr: float, final_lr: float, warmup_start_lr: float
) -> float:
    """Return the rate of a linear warm-up from `warmup_start_lr` to `lr`, then a cosine to `final_lr` (A.1).

    The first warm-up step has exactly `warmup_start_lr`, the last one exactly `lr`.
    """
    if step < warmup_steps:
        return warmup_start_lr + (lr - warmup_start_lr) * step / max(1, warmup_steps - 1)
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return final_lr + 0.5 * (lr - final_lr) * (1 + math.cos(math.pi * progress))


def epoch_cosine_lr(epoch: int, num_epochs: int, lr: float) -> float:
    """Return the rate of a cosine from `lr` to zero that changes once per epoch (A.3)."""
    return 0.5 * lr * (1 + math.cos(math.pi * epoch / num_epochs))


def multistep_lr(epoch: int, num_epochs: int, lr: float, milestones: list[float], factor: float = 0.1) -> float:
    """Return `lr` times `factor` for each milestone passed; milestones are fractions of the epochs (A.5)."""
    return lr * factor ** sum(epoch >= fraction * num_epochs for fraction in milestones)
