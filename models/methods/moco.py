"""MoCo v1 and v2: match an image's two crops against a queue of older keys from a slowly moving copy of the network.

Follows the authors' released code. v1 and v2 differ in head, temperature, crops and schedule, all of them in configs.
"""

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.methods.base import CropsNeeded, Method, require_whole_batches
from models.methods.diagnostics import embedding_spread, unit_length_error
from models.networks.heads import MultiCropNet
from reproduce.data.pipeline.sampler import StepSampler
from reproduce.data.pipeline.upload import upload
from reproduce.engine.batchnorm import uses_global_stats
from reproduce.engine.distributed.collectives import all_gather, rank, world_size
from reproduce.engine.precision import at_least_fp32

NOT_SHUFFLED = (
    "BatchNorm covers the whole batch, so MoCo's shuffling of the keys has no effect: a query and its key are "
    "normalized by the same images, which distinguishes the key from older ones"
)


def info_nce_loss(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Return the InfoNCE loss of unit queries `(B, D)` with positives `keys (B, D)`, negatives `queue (L, D)`."""
    queries = at_least_fp32(queries)
    positives = (queries * keys).sum(dim=1, keepdim=True)
    logits = torch.cat([positives, F.linear(queries, queue)], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))


@dataclass
class MocoConfig:
    """conf/method/moco.yaml."""

    name: str
    queue_length: int
    """Number of keys; every rank has the same queue."""
    momentum: float
    temperature: float


class Moco(Method):
    """MoCo as a method of the training loop: the network sees each image's first crop, the key encoder the second.

    Keys are shuffled over the global batch in each step, so that BatchNorm over a rank's share (or a group of it,
    `network.batchnorm_group_size`) cannot leak which key matches a query.
    """

    crops_needed = CropsNeeded("moco_v2", min_crops=2, max_crops=2)
    collapse_hints = "a larger method.queue_length, a method.momentum nearer to 1"

    def __init__(self, config: MocoConfig, net: MultiCropNet, _num_images: int, batch_size: int) -> None:
        require_whole_batches(config.queue_length, batch_size, least=1)
        self.config, self.net = config, net
        self.uniform_loss = math.log(1 + config.queue_length)
        self.key_encoder = copy.deepcopy(net).requires_grad_(False)
        self.extra_networks = [self.key_encoder]
        weight = list(net.projection_head.parameters())[-1]
        self.queue = F.normalize(torch.randn(config.queue_length, len(weight)), dim=1).to(weight)
        self.pointer = 0
        """Position of the oldest keys, which the next batch replaces."""

    def on_train_start(self, net: nn.Module, sampler: StepSampler, extra_epoch: Iterable[list[Tensor]]) -> None:
        """Note in the result if shuffling has no effect."""
        super().on_train_start(net, sampler, extra_epoch)
        self.note = NOT_SHUFFLED if uses_global_stats(self.key_encoder) else ""

    @torch.no_grad()
    def before_step(self, step: int, crops: list[Tensor], labels: Tensor) -> list[Tensor]:  # noqa: ARG002
        """Update the key encoder by momentum, compute the keys, and return the first crops to train on."""
        keys: list[Tensor] = list(self.key_encoder.parameters())
        weights: list[Tensor] = list(self.net.parameters())
        torch._foreach_lerp_(keys, weights, 1 - self.config.momentum)
        self.keys = self._compute_keys(crops[1], step)
        return crops[:1]

    def loss(self, embeddings: Tensor, _scores: None, _num_crops: int, _step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of this rank's queries, and metrics."""
        share = len(embeddings)
        own_keys = self.keys[rank() * share : (rank() + 1) * share]
        metrics = {
            "embedding_spread": embedding_spread(embeddings),
            "unit_length_error": unit_length_error(embeddings.detach(), own_keys),
        }
        return info_nce_loss(embeddings, own_keys, self.queue, self.config.temperature), metrics

    @torch.no_grad()
    def after_backward(self, step: int) -> None:  # noqa: ARG002
        """Replace the oldest keys by the batch's, now that the backward pass no longer needs them."""
        self.queue[self.pointer : self.pointer + len(self.keys)] = self.keys
        self.pointer = (self.pointer + len(self.keys)) % len(self.queue)

    def state_dict(self) -> dict[str, Any]:
        """Return the key encoder, the queue and its pointer; equal on all ranks."""
        return {"key_encoder": self.key_encoder.state_dict(), "queue": self.queue, "pointer": self.pointer}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the result of `state_dict`, saved by any number of processes."""
        self.key_encoder.load_state_dict(state["key_encoder"])
        self.queue.copy_(state["queue"])
        self.pointer = state["pointer"]

    def _compute_keys(self, crops: Tensor, step: int) -> Tensor:
        """Return the keys `(global batch, D)` of all ranks' crops `(B, 3, S, S)` in the batch's order. A collective."""
        everyone = all_gather(crops.contiguous()).flatten(0, 1)
        order = upload(np.random.default_rng((self.sampler.seed, step)).permutation(len(everyone)), crops.device)
        mine = everyone[order.chunk(world_size())[rank()]].contiguous(memory_format=torch.channels_last)
        shuffled = all_gather(self.key_encoder([mine])[0].to(self.queue.dtype)).flatten(0, 1)
        return torch.empty_like(shuffled).index_copy_(0, order, shuffled)
