"""PCL v1: MoCo, and from some epoch on images against the clusters of all images' momentum embeddings (Li et al. 2021).

Follows the authors' released code. Each epoch begins with an E-step: k-means on the key encoder's embeddings of all
images' center crops, at several numbers of clusters (section 3.3, algorithm 1).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.methods.base import CropsNeeded
from models.methods.clustering import IGNORE_LABEL
from models.methods.kmeans import best_kmeans
from models.methods.moco import Moco, MocoConfig
from models.networks.heads import MultiCropNet
from reproduce.data.pipeline.upload import upload
from reproduce.engine.distributed.collectives import all_gather, all_reduce_sum, rank
from reproduce.engine.precision import at_least_fp32
from reproduce.errors import UserError

SMOOTHING = 10
"""The paper's alpha: keeps small clusters from being taken for concentrated ones."""
PERCENTILES = (0.1, 0.9)
"""Concentrations beyond these quantiles are clamped to them (released code)."""


class Prototypes(NamedTuple):
    """One clustering of all images."""

    centroids: Tensor
    """Unit prototypes `(K, D)`."""
    temperatures: Tensor
    """`(K,)`: a cluster's concentration, scaled so that their mean is the method's temperature."""
    labels: Tensor
    """`(num_images,)` int64: each image's cluster, or `IGNORE_LABEL` if it could not be read."""


def cluster_temperatures(labels: Tensor, distances: Tensor, num_clusters: int, temperature: float) -> Tensor:
    """Return the temperature `(K,)` of each cluster, given each row's cluster and distance to its centroid `(N,)`.

    The concentration phi is the mean distance over ln(size + 10) (equation 12). A cluster of one row or none gets the
    largest one.
    """
    counts = torch.bincount(labels, minlength=num_clusters)
    sums = torch.zeros(num_clusters, dtype=distances.dtype, device=distances.device).index_add_(0, labels, distances)
    phi = torch.where(counts > 1, sums / counts.clamp_min(1) / (counts + SMOOTHING).to(sums.dtype).log(), 0)
    phi = torch.where(counts > 1, phi, phi.max())
    phi = phi.clamp(*phi.quantile(torch.tensor(PERCENTILES, dtype=phi.dtype, device=phi.device)))
    return temperature * torch.where(phi.mean() > 0, phi / phi.mean(), 1)


def proto_nce_loss(queries: Tensor, prototypes: Prototypes, images: Tensor, own: slice, negatives: Tensor) -> Tensor:
    """Return the ProtoNCE loss (equation 11) of one clustering for this rank's unit queries `(B, D)`.

    `images` are the global batch's, of which the queries are those at `own`. A query is compared with the prototypes of
    all images of the batch, where its own image's is the positive, and with the prototypes `negatives`.
    """
    labels = prototypes.labels[images]
    chosen = torch.cat([labels.clamp_min(0), negatives])
    logits = F.linear(at_least_fp32(queries), prototypes.centroids[chosen]) / prototypes.temperatures[chosen]
    targets = torch.arange(len(images), device=labels.device)
    targets = torch.where(labels == IGNORE_LABEL, IGNORE_LABEL, targets)[own]
    return F.cross_entropy(logits, targets, ignore_index=IGNORE_LABEL)


@dataclass
class PclConfig(MocoConfig):
    """conf/method/pcl_v1.yaml."""

    num_clusters: list[int]
    num_negative_prototypes: int
    warmup_epochs: int
    """Epochs of MoCo alone."""
    num_kmeans_iterations: int
    num_kmeans_restarts: int
    resize_px: int
    """Side to which an image is resized before its center is cut to `size_px`, for the clusters."""
    size_px: int


class Pcl(Moco):
    """PCL as a method of the training loop."""

    config: PclConfig
    crops_needed = CropsNeeded("moco_v1", min_crops=2, max_crops=2)
    collapse_hints = "more method.warmup_epochs, fewer method.num_clusters, a method.momentum nearer to 1"

    def __init__(self, config: PclConfig, net: MultiCropNet, num_images: int, batch_size: int) -> None:
        super().__init__(config, net, num_images, batch_size)
        if (
            min(config.num_clusters) < config.num_negative_prototypes + batch_size
            or max(config.num_clusters) > num_images
        ):
            raise UserError(
                f"method.num_clusters {list(config.num_clusters)} should be at most the {num_images} images, and at "
                f"least method.num_negative_prototypes and batch_size together, {config.num_negative_prototypes} + "
                f"{batch_size}: negatives are drawn from the clusters that no image of a batch is in"
            )
        self.num_images, self.steps_per_epoch = num_images, num_images // batch_size
        self.uniform_loss = None  # without clusters another one than with them
        self.loss_jump_step = config.warmup_epochs * self.steps_per_epoch
        self.clusterings: list[Prototypes] = []

    @torch.no_grad()
    def before_step(self, step: int, crops: list[Tensor], labels: Tensor) -> list[Tensor]:
        """Cluster all images at the start of an epoch after the warm-up; then as MoCo."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if position == 0 and epoch >= self.config.warmup_epochs:
            rows, known = self._embed_images()
            self.clusterings = [
                self._cluster(rows, known, number, (self.sampler.seed, epoch, level))
                for level, number in enumerate(self.config.num_clusters)
            ]
        return super().before_step(step, crops, labels)

    def loss(self, embeddings: Tensor, scores: None, num_crops: int, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of MoCo's loss and the mean over clusterings of ProtoNCE, and metrics."""
        loss, metrics = super().loss(embeddings, scores, num_crops, step)
        images = upload(self.sampler.batch_at(step), embeddings.device)
        own = slice(rank() * len(embeddings), (rank() + 1) * len(embeddings))
        losses = [
            proto_nce_loss(embeddings, each, images, own, self._draw_negatives(each, images, (step, level)))
            for level, each in enumerate(self.clusterings)
        ]
        prototype_loss = torch.stack(losses).mean() if losses else torch.zeros_like(loss)
        return loss + prototype_loss, metrics | {"prototype_loss": prototype_loss.detach()}

    def state_dict(self) -> dict[str, Any]:
        """Return MoCo's state and the epoch's clusterings; equal on all ranks."""
        return super().state_dict() | {"clusterings": [each._asdict() for each in self.clusterings]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the result of `state_dict`, saved by any number of processes."""
        super().load_state_dict(state)
        device = self.queue.device
        self.clusterings = [
            Prototypes(**{name: value.to(device) for name, value in each.items()}) for each in state["clusterings"]
        ]

    def _embed_images(self) -> tuple[Tensor, Tensor]:
        """Return the key encoder's embeddings `(num_images, D)` of all images, and which could be read. A collective.

        BatchNorm's running statistics are rank 0's on every rank, as DDP makes them in the released code.
        """
        for buffer in self.key_encoder.buffers():
            buffer.copy_(all_gather(buffer)[0])
        rows = self.queue.new_zeros(self.num_images, self.queue.shape[1] + 1)
        self.key_encoder.eval()
        for indices, pixels in self.center_crops(self.config.resize_px, self.config.size_px):
            at = indices.to(rows.device)
            rows[at, :-1] = self.key_encoder([pixels])[0].to(rows.dtype)
            rows[at, -1] = 1
        self.key_encoder.train()
        rows = all_reduce_sum(rows)
        return rows[:, :-1], rows[:, -1] > 0

    def _cluster(self, rows: Tensor, known: Tensor, num_clusters: int, seed: tuple[int, ...]) -> Prototypes:
        config, read = self.config, at_least_fp32(rows[known])
        found = best_kmeans(read, num_clusters, config.num_kmeans_iterations, config.num_kmeans_restarts, seed)
        temperatures = cluster_temperatures(found.labels, found.distances, num_clusters, config.temperature)
        labels = torch.full((len(rows),), IGNORE_LABEL, device=rows.device)
        labels[known] = found.labels
        return Prototypes(F.normalize(found.centroids, dim=1), temperatures, labels)

    def _draw_negatives(self, prototypes: Prototypes, images: Tensor, seed: tuple[int, ...]) -> Tensor:
        """Draw clusters that no image of the global batch is in; the same on every rank."""
        num_clusters = len(prototypes.centroids)
        order = upload(np.random.default_rng((self.sampler.seed, *seed)).permutation(num_clusters), images.device)
        taken = torch.zeros(num_clusters, dtype=torch.bool, device=images.device)
        taken[prototypes.labels[images].clamp_min(0)] = True
        return order[taken[order].to(torch.uint8).argsort(stable=True)[: self.config.num_negative_prototypes]]
