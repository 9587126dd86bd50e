"""MoCo v1 and v2: tell an image's other crop from a queue of older keys, which a slow copy of the network makes.

Facts of the authors' released code; v1 and v2 differ in head, temperature, crops and schedule, all of them config.
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

from models.methods.base import Method
from models.methods.diagnostics import embedding_spread, unit_length_error
from models.networks.heads import MultiCropNet
from reproduce.data.pipeline.sampler import StepSampler
from reproduce.engine.batchnorm import uses_global_stats
from reproduce.engine.distributed.collectives import all_gather, rank, world_size
from reproduce.errors import UserError

NOT_SHUFFLED = (
    "BatchNorm over the whole batch: MoCo's shuffled order of the keys changes nothing, so a query and its key are "
    "normalised in the same company, which tells them from older keys"
)


def queue_loss(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """InfoNCE of unit queries `(B, D)` against their own keys `(B, D)` and all of the queue `(length, D)`."""
    queries = queries.to(torch.promote_types(queries.dtype, torch.float32))
    positives = (queries * keys).sum(dim=1, keepdim=True)
    logits = torch.cat([positives, F.linear(queries, queue)], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))


@dataclass
class MocoConfig:
    """conf/method/moco.yaml."""

    name: str
    queue_length: int
    """In keys; the same queue stands on every rank."""
    momentum: float
    temperature: float

    @property
    def prototypes(self) -> int:
        """What the network needs: none."""
        return 0


class Moco(Method):
    """The method as the loop uses it: the network sees the first crop of each image, the key encoder the second.

    Keys are made in an order of the global batch that is drawn anew in each step, so that BatchNorm over a rank's share
    (or a group of it, `network.batchnorm_group_size`) does not tell a query its key by the company that both keep.
    """

    collapse_hints = "a larger method.queue_length, a method.momentum nearer to 1"

    def __init__(self, config: MocoConfig, net: MultiCropNet, _num_images: int, batch_size: int) -> None:
        if config.queue_length % batch_size or not config.queue_length:
            raise UserError(
                f"method.queue_length {config.queue_length} is no multiple of batch_size {batch_size}: the queue holds "
                "whole batches"
            )
        self.config, self.net = config, net
        self.uniform_loss = math.log(1 + config.queue_length)
        self.key_encoder = copy.deepcopy(net).requires_grad_(False)
        self.extra_networks = [self.key_encoder]
        weight = list(net.projection_head.parameters())[-1]
        self.queue = F.normalize(torch.randn(config.queue_length, len(weight)), dim=1).to(weight)
        self.pointer = 0
        """Where the oldest keys stand, which the next batch replaces."""

    def on_train_start(self, net: nn.Module, sampler: StepSampler, extra_epoch: Iterable[list[Tensor]]) -> None:  # noqa: ARG002
        """Keep what the order of the keys is drawn from; note where it changes nothing."""
        self.seed = sampler.seed
        self.note = NOT_SHUFFLED if uses_global_stats(self.key_encoder) else ""

    @torch.no_grad()
    def before_step(self, step: int, crops: list[Tensor], labels: Tensor) -> list[Tensor]:  # noqa: ARG002
        """Move the key encoder towards the network, and make the keys; only the first crops are trained on."""
        if len(crops) != 2:
            raise UserError(f"MoCo compares 2 crops of an image, crops gives {len(crops)}: take crops=moco_v2")
        keys: list[Tensor] = list(self.key_encoder.parameters())
        weights: list[Tensor] = list(self.net.parameters())
        torch._foreach_lerp_(keys, weights, 1 - self.config.momentum)
        self.keys = self._keys(crops[1], step)
        return crops[:1]

    def loss(self, embeddings: Tensor, _scores: None, _num_crops: int, _step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of this rank's queries, and what to watch."""
        share = len(embeddings)
        own_keys = self.keys[rank() * share : (rank() + 1) * share]
        watched = {
            "embedding_spread": embedding_spread(embeddings),
            "unit_length_error": unit_length_error(embeddings.detach(), own_keys),
        }
        return queue_loss(embeddings, own_keys, self.queue, self.config.temperature), watched

    @torch.no_grad()
    def after_backward(self, step: int) -> None:  # noqa: ARG002
        """The batch's keys take the place of the oldest, once the gradient no longer needs these."""
        self.queue[self.pointer : self.pointer + len(self.keys)] = self.keys
        self.pointer = (self.pointer + len(self.keys)) % len(self.queue)

    def state_dict(self) -> dict[str, Any]:
        """The key encoder, the queue and its pointer; the same on all ranks."""
        return {"key_encoder": self.key_encoder.state_dict(), "queue": self.queue, "pointer": self.pointer}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of `state_dict`, from a run of any number of processes."""
        self.key_encoder.load_state_dict(state["key_encoder"])
        self.queue.copy_(state["queue"])
        self.pointer = state["pointer"]

    def _keys(self, crops: Tensor, step: int) -> Tensor:
        """Keys `(global batch, D)` of all ranks' crops `(B, 3, S, S)`, in the batch's order; collectives."""
        everyone = all_gather(crops.contiguous()).flatten(0, 1)
        order = torch.from_numpy(np.random.default_rng((self.seed, step)).permutation(len(everyone)))
        order = order.to(crops.device)
        mine = everyone[order.chunk(world_size())[rank()]].contiguous(memory_format=torch.channels_last)
        shuffled = all_gather(self.key_encoder([mine])[0].to(self.queue.dtype)).flatten(0, 1)
        return torch.empty_like(shuffled).index_copy_(0, order, shuffled)
