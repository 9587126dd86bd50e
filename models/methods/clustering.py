"""Base of DeepCluster-v2 and SeLa-v2: once per epoch, each image gets labels from its last embeddings (D)."""

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.methods.base import CropsNeeded, Method
from models.methods.diagnostics import embedding_spread, unit_length_error
from models.networks.heads import MultiCropNet, MultiPrototypes
from reproduce.data.pipeline.sampler import StepSampler
from reproduce.data.pipeline.upload import upload
from reproduce.engine.distributed.collectives import (
    all_gather,
    all_reduce_max,
    all_reduce_sum,
    rank,
    world_size,
)
from reproduce.engine.precision import at_least_fp32
from reproduce.errors import UserError

BLOCK_SCORES = {"cpu": 2**20, "cuda": 2**25}
"""Number of fp32 scores computed at once when a bank is labelled: 4 MiB, which fit a CPU's cache, or 128 MiB."""
IGNORE_LABEL = -1
"""Label of images without an embedding: those of the last epoch's incomplete batch. They add nothing to the loss."""


def iter_blocks(rows: Tensor, prototypes: Tensor) -> Iterator[Tensor]:
    """Yield `rows` in blocks whose scores against `prototypes` fit `BLOCK_SCORES`."""
    return iter(rows.split(max(1, BLOCK_SCORES[rows.device.type] // len(prototypes))))


class EpochBank:
    """This rank's embeddings of one epoch, `(num_crops, num_rows, embedding_dim)`, and each row's image index.

    Rows are ordered by step. All ranks together have `num_rows * world_size` rows; their global numbers count by step
    and within a step by rank, as a single process would.
    """

    def __init__(
        self,
        num_crops: int,
        num_steps: int,
        batch_size: int,
        embedding_dim: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.share = batch_size // world_size()
        self.num_global_rows = num_steps * batch_size
        self.embeddings = torch.zeros(num_crops, num_steps * self.share, embedding_dim, device=device, dtype=dtype)
        self.image_indices = torch.zeros(num_steps * self.share, dtype=torch.int64, device=device)

    def store(self, position: int, image_indices: Tensor, embeddings: Tensor) -> None:
        """Store the embeddings of the first `num_crops` crops at step `position` of the epoch.

        `embeddings` are `(at least num_crops * B, embedding_dim)`, crop by crop; `image_indices` are `(B,)`.
        """
        rows = slice(position * self.share, (position + 1) * self.share)
        num_crops = len(self.embeddings)
        self.embeddings[:, rows] = (
            embeddings.detach()[: num_crops * self.share].unflatten(0, (num_crops, -1)).to(self.embeddings.dtype)
        )
        self.image_indices[rows] = image_indices

    def rows(self, crop: int, numbers: Tensor) -> Tensor:
        """Return one crop's embeddings `(len(numbers), embedding_dim)` by global row number. A collective."""
        mine = numbers % (self.share * world_size()) // self.share == rank()
        local = numbers // (self.share * world_size()) * self.share + numbers % self.share
        return all_reduce_sum(self.embeddings[crop, local] * mine[:, None])

    def state_dict(self) -> dict[str, Tensor]:
        """Return all ranks' rows in global order. A collective."""
        everyone = all_gather(self.embeddings).unflatten(2, (-1, self.share))  # rank, crop, step, image
        image_indices = all_gather(self.image_indices).unflatten(1, (-1, self.share))
        return {
            "embeddings": everyone.permute(1, 2, 0, 3, 4).flatten(1, 3),
            "image_indices": image_indices.transpose(0, 1).flatten(),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load this rank's share of the result of `state_dict`, saved by any number of processes."""
        steps = (-1, world_size(), self.share)
        self.embeddings.copy_(state["embeddings"].unflatten(1, steps)[:, :, rank()].flatten(1, 2))
        self.image_indices.copy_(state["image_indices"].unflatten(0, steps)[:, rank()].flatten())


@dataclass
class ClusteringConfig:
    """Config shared by both methods. Head i learns the labels of memory bank i mod `num_banks`."""

    name: str
    num_prototypes: int
    num_heads: int
    num_banks: int
    """One per large crop; 1 if there is a single crop per image."""
    temperature: float


class Clustering(Method):
    """A method that classifies all crops of an image into its pseudo-labels, one per head (D, equation 2).

    `on_train_start` fills the banks by a pass without training; then each epoch's embeddings are the banks of the next.
    A subclass implements `assign_labels`.
    """

    @classmethod
    def network_prototypes(cls, config: ClusteringConfig) -> list[int]:
        """Return the number of prototypes of each head."""
        return [config.num_prototypes] * config.num_heads

    def __init__(self, config: ClusteringConfig, net: MultiCropNet, num_images: int, batch_size: int) -> None:
        assert isinstance(net.prototypes, MultiPrototypes)
        self.steps_per_epoch = num_images // batch_size
        if config.num_prototypes > self.steps_per_epoch * batch_size:
            raise UserError(
                f"method.num_prototypes {config.num_prototypes} is more than the {self.steps_per_epoch * batch_size} "
                "images of an epoch's batches: give fewer"
            )
        self.heads: list[nn.Parameter] = list(net.prototypes.parameters())
        self.crops_needed = CropsNeeded("2x160_4x96", min_crops=config.num_banks)
        self.num_crops, self.temperature = config.num_banks, config.temperature
        self.uniform_loss = math.log(config.num_prototypes)
        embedding_dim, device = self.heads[0].shape[1], self.heads[0].device
        dtype = at_least_fp32(self.heads[0]).dtype
        self.bank = EpochBank(config.num_banks, self.steps_per_epoch, batch_size, embedding_dim, device, dtype)
        self.labels = torch.full((config.num_heads, num_images), IGNORE_LABEL, dtype=torch.int32, device=device)

    @abstractmethod
    def assign_labels(self, head: int, rows: Tensor, epoch: int) -> Tensor:
        """Return labels `(N,)` of this rank's bank rows `(N, embedding_dim)` for one head and epoch. A collective."""

    @torch.no_grad()
    def on_train_start(self, net: nn.Module, sampler: StepSampler, extra_epoch: Iterable[list[Tensor]]) -> None:
        """Fill the banks from the crops of an extra epoch, unless the run resumes from a checkpoint."""
        super().on_train_start(net, sampler, extra_epoch)
        if sampler.first_step:
            return
        for position, crops in enumerate(extra_epoch):
            embeddings, _ = net(crops[: self.num_crops])
            self.bank.store(position, self._image_indices(len(sampler) + position), embeddings)

    @torch.no_grad()
    def before_step(self, step: int, crops: list[Tensor], labels: Tensor) -> list[Tensor]:  # noqa: ARG002
        """Recompute all labels at the start of an epoch; the dataset's class labels are not used."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if position == 0:
            self._assign_all_labels(epoch)
        return crops

    def loss(self, embeddings: Tensor, scores: Tensor, num_crops: int, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the cross-entropy over heads, crops and the global batch's labelled images, and metrics.

        `scores` are `(num_crops * B, num_heads * K)`, crop by crop. The result is scaled so that DDP's average over
        ranks is the mean over all labelled images.
        """
        image_indices = self._image_indices(step)
        self.bank.store(step % self.steps_per_epoch, image_indices, embeddings)
        labels = self.labels[:, image_indices].long()  # head, image
        logits = at_least_fp32(scores) / self.temperature
        logits = logits.unflatten(1, (len(self.heads), -1)).transpose(1, 2)  # crop and image, prototype, head
        # In two dimensions, because cross-entropy of three has no deterministic CUDA version. The softmax stays in
        # three, where it adds in the order in which the recorded numbers were computed.
        rows = logits.log_softmax(1).transpose(1, 2).flatten(0, 1)  # crop, image and head; prototype
        targets = labels.T.repeat(num_crops, 1).flatten()
        total = F.nll_loss(rows, targets, ignore_index=IGNORE_LABEL, reduction="sum")
        num_labelled = all_reduce_sum((labels != IGNORE_LABEL).sum()).clamp_min(1)
        used = torch.zeros(len(self.heads), logits.shape[1] + 1, device=labels.device)
        used.scatter_(1, labels - IGNORE_LABEL, 1)
        return total * world_size() / (num_labelled * num_crops), {
            "prototypes_used": all_reduce_max(used)[:, 1:].sum() / len(self.heads),
            "embedding_spread": embedding_spread(embeddings),
            "unit_length_error": unit_length_error(embeddings, *self.heads),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the banks and the labels of the current epoch. A collective."""
        return {"bank": self.bank.state_dict(), "labels": self.labels}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the result of `state_dict`, saved by any number of processes."""
        self.bank.load_state_dict(state["bank"])
        self.labels.copy_(state["labels"])

    def _assign_all_labels(self, epoch: int) -> None:
        labels = torch.zeros_like(self.labels)
        for head in range(len(self.heads)):
            found = self.assign_labels(head, self.bank.embeddings[head % self.num_crops], epoch)
            labels[head, self.bank.image_indices] = (found - IGNORE_LABEL).int()
        self.labels = all_reduce_sum(labels) + IGNORE_LABEL  # each image is in at most one rank's bank

    def _image_indices(self, step: int) -> Tensor:
        return upload(self.sampler.indices_at(step), self.labels.device)
