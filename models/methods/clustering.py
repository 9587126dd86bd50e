"""What DeepCluster-v2 and SeLa-v2 share: once per epoch every image gets labels, from its last embeddings (D)."""

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.methods.base import Method
from models.methods.diagnostics import embedding_spread, unit_length_error
from models.networks.heads import MultiCropNet, PrototypeSets
from reproduce.data.pipeline.sampler import StepSampler
from reproduce.engine.distributed.collectives import all_gather, all_reduce_max, all_reduce_sum, rank, world_size
from reproduce.errors import UserError

BLOCK_SCORES = {"cpu": 2**20, "cuda": 2**25}
"""Scores that are held at once while a bank is assigned: 4 MiB, which a CPU's cache holds, or 128 MiB."""
UNSEEN = -1
"""The label of an image that no batch of the last epoch held (the incomplete one is dropped): it is not learned."""


def blocks(rows: Tensor, prototypes: Tensor) -> Iterator[Tensor]:
    """`rows` in blocks whose scores against `prototypes` are few enough to be held."""
    return iter(rows.split(max(1, BLOCK_SCORES[rows.device.type] // len(prototypes))))


class MemoryBank:
    """This rank's embeddings of one epoch, `(num_crops, num_rows, embedding)` in fp32, and the picture of each row.

    Rows stand step by step. All ranks together hold `num_rows * world_size` rows; as one process would count them, step
    by step and rank by rank within a step, these have global numbers.
    """

    def __init__(self, num_crops: int, num_steps: int, batch_size: int, embedding: int, device: torch.device) -> None:
        self.share = batch_size // world_size()
        self.num_global_rows = num_steps * batch_size
        self.embeddings = torch.zeros(num_crops, num_steps * self.share, embedding, device=device)
        self.pictures = torch.zeros(num_steps * self.share, dtype=torch.int64, device=device)

    def put(self, position: int, pictures: Tensor, embeddings: Tensor) -> None:
        """Keep the first crops' `(at least num_crops * B, embedding)` of the epoch's step number `position`."""
        rows = slice(position * self.share, (position + 1) * self.share)
        num_crops = len(self.embeddings)
        self.embeddings[:, rows] = embeddings.detach()[: num_crops * self.share].unflatten(0, (num_crops, -1)).float()
        self.pictures[rows] = pictures

    def rows(self, crop: int, numbers: Tensor) -> Tensor:
        """Embeddings of one crop by global numbers, on every rank (a collective)."""
        mine = numbers % (self.share * world_size()) // self.share == rank()
        local = numbers // (self.share * world_size()) * self.share + numbers % self.share
        return all_reduce_sum(self.embeddings[crop, local] * mine[:, None])

    def state_dict(self) -> dict[str, Tensor]:
        """All ranks' rows in their global order (a collective)."""
        everyone = all_gather(self.embeddings).unflatten(2, (-1, self.share))  # rank, crop, step, picture
        pictures = all_gather(self.pictures).unflatten(1, (-1, self.share))
        return {
            "embeddings": everyone.permute(1, 2, 0, 3, 4).flatten(1, 3),
            "pictures": pictures.transpose(0, 1).flatten(),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take this rank's share of `state_dict`, from any number of processes."""
        steps = (-1, world_size(), self.share)
        self.embeddings.copy_(state["embeddings"].unflatten(1, steps)[:, :, rank()].flatten(1, 2))
        self.pictures.copy_(state["pictures"].unflatten(0, steps)[:, rank()].flatten())


@dataclass
class ClusteringConfig:
    """What both methods' configs hold. Head i learns to tell the clusters of memory bank i mod `num_banks`."""

    name: str
    num_prototypes: int
    num_heads: int
    num_banks: int
    """One per large crop; 1 where there is a single crop per image."""
    temperature: float

    @property
    def prototypes(self) -> list[int]:
        """What the network needs."""
        return [self.num_prototypes] * self.num_heads


class Clustering(Method):
    """A method that classifies all crops of an image into its pseudo-labels, one per head (equation 2 of D).

    `on_train_start` fills the banks before the first epoch; from then on each epoch's embeddings are the next one's
    banks. A subclass says how a bank is labelled.
    """

    def __init__(self, config: ClusteringConfig, net: MultiCropNet, num_images: int, batch_size: int) -> None:
        assert isinstance(net.prototypes, PrototypeSets)
        self.steps_per_epoch = num_images // batch_size
        if config.num_prototypes > self.steps_per_epoch * batch_size:
            raise UserError(
                f"method.num_prototypes {config.num_prototypes} is more than the {self.steps_per_epoch * batch_size} "
                "pictures of an epoch's batches: give fewer"
            )
        self.heads: list[nn.Parameter] = list(net.prototypes.parameters())
        self.num_crops, self.temperature = config.num_banks, config.temperature
        self.uniform_loss = math.log(config.num_prototypes)
        embedding, device = self.heads[0].shape[1], self.heads[0].device
        self.bank = MemoryBank(config.num_banks, self.steps_per_epoch, batch_size, embedding, device)
        self.labels = torch.full((config.num_heads, num_images), UNSEEN, dtype=torch.int32, device=device)

    @abstractmethod
    def label(self, head: int, rows: Tensor, epoch: int) -> Tensor:
        """Labels `(N,)` of this rank's rows of a bank, `(N, embedding)`, before an epoch (a collective)."""

    @torch.no_grad()
    def on_train_start(self, net: nn.Module, sampler: StepSampler, extra_epoch: Iterable[list[Tensor]]) -> None:
        """Fill the banks by a pass over an extra epoch, unless the run goes on from a checkpoint."""
        self.sampler = sampler
        if sampler.first_step:
            return
        for position, crops in enumerate(extra_epoch):
            embeddings, _ = net(crops[: self.num_crops])
            self.bank.put(position, self._pictures(len(sampler) + position), embeddings)

    @torch.no_grad()
    def before_step(self, step: int, crops: list[Tensor], labels: Tensor) -> list[Tensor]:  # noqa: ARG002
        """At an epoch's start, label all images anew; the classes that people gave them play no part."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if position == 0:
            self._label_all(epoch)
        return crops

    def loss(self, embeddings: Tensor, scores: Tensor, num_crops: int, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy over heads, crops and the global batch's labelled images; and what to watch."""
        pictures = self._pictures(step)
        self.bank.put(step % self.steps_per_epoch, pictures, embeddings)
        labels = self.labels[:, pictures].long()  # head, image
        logits = scores.to(torch.promote_types(scores.dtype, torch.float32)) / self.temperature
        logits = logits.unflatten(1, (len(self.heads), -1)).transpose(1, 2)  # crop and image, prototype, head
        total = F.cross_entropy(logits, labels.T.repeat(num_crops, 1), ignore_index=UNSEEN, reduction="sum")
        num_labelled = all_reduce_sum((labels != UNSEEN).sum()).clamp_min(1)
        used = torch.zeros(len(self.heads), logits.shape[1] + 1, device=labels.device)
        used.scatter_(1, labels - UNSEEN, 1)
        return total * world_size() / (num_labelled * num_crops), {
            "prototypes_used": all_reduce_max(used)[:, 1:].sum() / len(self.heads),
            "embedding_spread": embedding_spread(embeddings),
            "unit_length_error": unit_length_error(embeddings, *self.heads),
        }

    def state_dict(self) -> dict[str, Any]:
        """The banks and the labels of the epoch under way (a collective)."""
        return {"bank": self.bank.state_dict(), "labels": self.labels}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of `state_dict`, from a run of any number of processes."""
        self.bank.load_state_dict(state["bank"])
        self.labels.copy_(state["labels"])

    def _label_all(self, epoch: int) -> None:
        labels = torch.zeros_like(self.labels)
        for head in range(len(self.heads)):
            found = self.label(head, self.bank.embeddings[head % self.num_crops], epoch)
            labels[head, self.bank.pictures] = (found - UNSEEN).int()
        self.labels = all_reduce_sum(labels) + UNSEEN  # every picture is in one rank's bank at most

    def _pictures(self, step: int) -> Tensor:
        return torch.from_numpy(self.sampler.indices_at(step)).to(self.labels.device)
