"""Local Aggregation: pull an image towards those neighbors in the memory bank that share a cluster with it.

Follows the authors' released code (Zhuang et al. 2019, section 3): NPID's loss for some epochs; then, several k-means
of the bank at the start of each epoch say which of an image's nearest neighbors are close.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.methods.base import CropsNeeded
from models.methods.diagnostics import embedding_spread, unit_length_error
from models.methods.kmeans import best_kmeans
from models.methods.memory_bank import nce_loss
from models.methods.npid import Npid, NpidConfig
from models.networks.heads import MultiCropNet
from reproduce.data.datasets.imagenet import NUM_IMAGENET_IMAGES
from reproduce.data.pipeline.upload import upload
from reproduce.engine.precision import at_least_fp32
from reproduce.errors import UserError

NORMALIZER_PER_IMAGE = 2876934.2 / NUM_IMAGENET_IMAGES
"""Z of the probabilities of the first epochs, per image of the bank: a constant of the released code."""
SMALLEST_SHARE = 1e-7
"""Added to the share of the close neighbors, which is zero if none of the nearest is close (released code)."""


def local_aggregation_loss(
    embeddings: Tensor, bank: Tensor, own_labels: Tensor, labels: Tensor, num_neighbors: int, temperature: float
) -> Tensor:
    """Return the loss (equations 3 and 7) of unit embeddings `(B, D)` against the bank's rows `(N, D)`.

    An image's `num_neighbors` nearest rows are its background neighbors; those that are in its cluster in any of the H
    clusterings are close. The loss is the negative logarithm of the close ones' share of the background's probability.
    `own_labels` `(H, B)` are the images' clusters, `labels` `(H, N)` those of the rows.
    """
    cosines, nearest = F.linear(at_least_fp32(embeddings), bank).topk(num_neighbors, dim=1, sorted=False)
    close = (labels[:, nearest] == own_labels[:, :, None]).any(dim=0)
    share = ((cosines / temperature).softmax(dim=1) * close).sum(dim=1)
    return -(share + SMALLEST_SHARE).log().mean()


@dataclass
class LocalAggregationConfig(NpidConfig):
    """conf/method/local_aggregation.yaml."""

    num_neighbors: int
    """Nearest rows of the bank, an image's background neighbors."""
    num_clusters: int
    num_clusterings: int
    num_kmeans_iterations: int
    warmup_epochs: int
    """Epochs of NPID's loss alone."""


class LocalAggregation(Npid):
    """Local Aggregation as a method of the training loop."""

    config: LocalAggregationConfig
    crops_needed = CropsNeeded("npid", max_crops=1)
    collapse_hints = "more method.warmup_epochs, more method.num_clusters, a method.bank_momentum nearer to 1"

    def __init__(self, config: LocalAggregationConfig, net: MultiCropNet, num_images: int, batch_size: int) -> None:
        super().__init__(config, net, num_images, batch_size)
        if max(config.num_clusters, config.num_neighbors) > num_images:
            raise UserError(
                f"method.num_clusters {config.num_clusters} and method.num_neighbors {config.num_neighbors} should be "
                f"at most the {num_images} images"
            )
        self.steps_per_epoch = num_images // batch_size
        self.uniform_loss = None  # the two losses have one each
        self.loss_jump_step = self.first_step_of_clusters = config.warmup_epochs * self.steps_per_epoch
        self.log_z.fill_(math.log(NORMALIZER_PER_IMAGE * num_images))
        self.labels = torch.zeros(config.num_clusterings, num_images, dtype=torch.int32, device=self.bank.rows.device)
        """Each image's cluster, by clustering."""

    @torch.no_grad()
    def before_step(self, step: int, crops: list[Tensor], labels: Tensor) -> list[Tensor]:  # noqa: ARG002
        """Cluster the bank at the start of an epoch after the warm-up."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if position == 0 and epoch >= self.config.warmup_epochs:
            config = self.config
            for number, row in enumerate(self.labels):
                seed = (self.sampler.seed, epoch, number)
                row.copy_(
                    best_kmeans(self.bank.rows, config.num_clusters, config.num_kmeans_iterations, 1, seed).labels
                )
        return crops

    def loss(self, embeddings: Tensor, _scores: None, _num_crops: int, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of this rank's images, and metrics."""
        images = upload(self.sampler.indices_at(step), embeddings.device)
        if step < self.first_step_of_clusters:
            loss = nce_loss(self.logits(embeddings, step, 0), self.log_z, self.num_images)
        else:
            sizes = self.config.num_neighbors, self.config.temperature
            loss = local_aggregation_loss(embeddings, self.bank.rows, self.labels[:, images], self.labels, *sizes)
        self.seen = images, embeddings.detach()
        return loss, {
            "embedding_spread": embedding_spread(embeddings),
            "unit_length_error": unit_length_error(embeddings.detach(), self.bank.rows[images]),
        }

    def after_backward(self, step: int) -> None:  # noqa: ARG002
        """Move the bank's rows towards the step's embeddings, now that the backward pass no longer needs them."""
        self.bank.update(*self.seen)

    def state_dict(self) -> dict[str, Any]:
        """Return the bank and the epoch's clusters; equal on all ranks."""
        return super().state_dict() | {"labels": self.labels}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the result of `state_dict`, saved by any number of processes."""
        super().load_state_dict(state)
        self.labels.copy_(state["labels"])
