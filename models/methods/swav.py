"""SwAV: predict the cluster assignment of one crop from the other crops of the image (section 3; A.1, A.6)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.methods.base import CropsNeeded, Method, require_whole_batches
from models.methods.diagnostics import embedding_spread, unit_length_error
from models.methods.sinkhorn import sinkhorn
from models.networks.heads import MultiCropNet
from reproduce.engine.distributed.collectives import all_gather, all_reduce_max, all_reduce_mean, rank, world_size
from reproduce.engine.precision import at_least_fp32

NUM_LARGE_CROPS = 2
"""Assignments are computed for the two large crops only; every other crop predicts them."""


def swapped_prediction_loss(scores: Tensor, assignments: list[Tensor], num_crops: int, temperature: float) -> Tensor:
    """Return the cross-entropy of every other crop's prediction against each large crop's assignment.

    This is equation 2 for several crops (section 3.2). `scores` are `(num_crops * B, K)`, crop by crop; `assignments`
    are one `(B, K)` per large crop. The scalar is the mean over pairs (large crop, other crop) and over this rank's
    share of the batch, in fp32 or fp64.
    """
    log_predictions = F.log_softmax(at_least_fp32(scores) / temperature, dim=1).chunk(num_crops)
    pairs = [(large, other) for large in range(len(assignments)) for other in range(num_crops) if other != large]
    losses = [-(assignments[large] * log_predictions[other]).sum(dim=1).mean() for large, other in pairs]
    return torch.stack(losses).mean()


class Queue:
    """This rank's last embeddings, newest first: one block `(length, embedding_dim)` per large crop (A.6)."""

    def __init__(self, length: int, embedding_dim: int, device: torch.device) -> None:
        self.blocks = torch.zeros(NUM_LARGE_CROPS, length, embedding_dim, device=device)
        self.num_filled = 0

    @property
    def full(self) -> bool:
        """Whether every row holds an embedding. The queue is used only then."""
        return self.num_filled >= self.blocks.shape[1]

    def push(self, embeddings: list[Tensor]) -> None:
        """Push one batch `(B, embedding_dim)` per large crop; the oldest rows are dropped."""
        batch = len(embeddings[0])
        for block, rows in zip(self.blocks, embeddings, strict=True):
            block[batch:] = block[:-batch].clone()
            block[:batch] = rows.detach()
        self.num_filled += batch


@dataclass
class SwavConfig:
    """conf/method/swav.yaml. `queue_length` counts embeddings of all ranks; each rank stores its share."""

    name: str
    num_prototypes: int
    temperature: float
    epsilon: float
    num_sinkhorn_iterations: int
    freeze_prototypes_epochs: float
    train_prototypes: bool
    hard_assignments: bool
    queue_length: int
    queue_start_epochs: int


class Swav(Method):
    """SwAV as a method of the training loop: prototypes, assignments, queue and loss."""

    crops_needed = CropsNeeded("2x224_6x96", min_crops=NUM_LARGE_CROPS)
    collapse_hints = "method.epsilon=0.03 (sharper assignments), a longer method.freeze_prototypes_epochs"

    @classmethod
    def network_prototypes(cls, config: SwavConfig) -> int:
        """Return the number of prototypes."""
        return config.num_prototypes

    def __init__(self, config: SwavConfig, net: MultiCropNet, num_images: int, batch_size: int) -> None:
        assert isinstance(net.prototypes, nn.Linear)
        self.config = config
        self.prototypes = net.prototypes.weight
        # The released code freezes for 313 steps although an epoch has 312 whole batches: it counts the partial one.
        frozen = math.ceil(config.freeze_prototypes_epochs * num_images / batch_size)
        self.freeze_prototypes_steps = frozen if config.train_prototypes else math.inf
        self.queue_start_step = config.queue_start_epochs * (num_images // batch_size)
        self.uniform_loss = math.log(config.num_prototypes)
        self.plateau_grace_epochs = config.freeze_prototypes_epochs
        self.loss_jump_step = self.queue_start_step if config.queue_length else None
        require_whole_batches(config.queue_length, batch_size)
        self._share = batch_size // world_size()
        length = config.queue_length // world_size()
        self.queue = Queue(length, self.prototypes.shape[1], self.prototypes.device) if length else None

    @torch.no_grad()
    def before_forward(self) -> None:
        """Normalize the prototypes, as the released code does before each forward pass."""
        self.prototypes.copy_(F.normalize(self.prototypes, dim=1))

    def loss(self, embeddings: Tensor, scores: Tensor, num_crops: int, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of one batch, and metrics such as the assignments' entropy (nats) and prototypes in use."""
        batch = len(embeddings) // num_crops
        large = range(NUM_LARGE_CROPS)
        assignments = [self._assign(crop, scores.detach()[crop * batch : (crop + 1) * batch], step) for crop in large]
        if self.queue is not None and step >= self.queue_start_step:
            self.queue.push([embeddings[crop * batch : (crop + 1) * batch] for crop in large])
        loss = swapped_prediction_loss(scores, assignments, num_crops, self.config.temperature)
        return loss, diagnostics(torch.cat(assignments), embeddings, self.prototypes)

    def after_backward(self, step: int) -> None:
        """Drop the prototypes' gradient while they are frozen."""
        if step < self.freeze_prototypes_steps:
            self.prototypes.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return the queue of all ranks. A collective.

        `queue` is `(2, length, embedding_dim)`, batch by batch, as a single process would store it.
        """
        if self.queue is None:
            return {}
        shares = all_gather(self.queue.blocks).unflatten(2, (-1, self._share))  # rank, large crop, batch, image
        return {
            "queue": shares.permute(1, 2, 0, 3, 4).flatten(1, 3),
            "num_filled": self.queue.num_filled * world_size(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the result of `state_dict`, saved by any number of processes."""
        if self.queue is None:
            return
        batches = state["queue"].unflatten(1, (-1, world_size(), self._share))
        self.queue.blocks.copy_(batches[:, :, rank()].flatten(1, 2))
        self.queue.num_filled = state["num_filled"] // world_size()

    @torch.no_grad()
    def _assign(self, crop: int, scores: Tensor, step: int) -> Tensor:
        batch = len(scores)
        if self.queue is not None and self.queue.full and step >= self.queue_start_step:
            queued = F.linear(self.queue.blocks[crop], self.prototypes.to(self.queue.blocks.dtype))
            scores = torch.cat([queued, scores.to(queued.dtype)])
        assignments = sinkhorn(scores, self.config.epsilon, self.config.num_sinkhorn_iterations)[-batch:]
        if self.config.hard_assignments:
            return F.one_hot(assignments.argmax(dim=1), assignments.shape[1]).to(assignments.dtype)
        return assignments


@torch.no_grad()
def diagnostics(assignments: Tensor, embeddings: Tensor, prototypes: Tensor) -> dict[str, Tensor]:
    """Return metrics over the global batch that reveal a collapse. A collective.

    `assignment_entropy` is the mean in nats; `prototypes_used` counts prototypes that are some sample's first choice.
    """
    entropy = -torch.xlogy(assignments, assignments).sum(dim=1).mean()
    used = torch.zeros(assignments.shape[1], device=assignments.device)
    used[assignments.argmax(dim=1)] = 1
    return {
        "assignment_entropy": all_reduce_mean(entropy),
        "prototypes_used": all_reduce_max(used).sum(),
        "embedding_spread": embedding_spread(embeddings),
        "unit_length_error": unit_length_error(embeddings, prototypes),
    }
