"""SimCLR with any number of crops, as the paper compares it (A.8)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.methods.base import CropsNeeded, Method
from models.methods.diagnostics import embedding_spread, unit_length_error
from models.networks.heads import MultiCropNet
from reproduce.engine.distributed.collectives import all_gather_differentiable, rank
from reproduce.engine.precision import at_least_fp32


def contrastive_loss(embeddings: Tensor, num_crops: int, temperature: float) -> Tensor:
    """Return the contrastive loss of A.8, which is NT-Xent for two crops: the mean over this rank's positive pairs.

    `embeddings` are `(num_crops * B, D)` of unit length, crop by crop. Positives are the other crops of the anchor's
    image; negatives are all crops of the other images of all ranks. Each pair (anchor, positive) contributes
    -log(p / (p + sum of n)), with p and n = exp(cosine / temperature) of the positive and the negatives: other
    positives are not in the denominator. A collective, with gradient.
    """
    embeddings = at_least_fp32(embeddings)
    own = embeddings.unflatten(0, (num_crops, -1))  # crop, image, D
    everyone = all_gather_differentiable(own.transpose(0, 1).contiguous())  # image of any rank, crop, D
    num_own = own.shape[1]
    positives = torch.einsum("cid,oid->ico", own, own) / temperature
    similarities = torch.einsum("cid,jod->icjo", own, everyone) / temperature
    images = torch.arange(len(everyone), device=own.device)
    same_image = images[rank() * num_own :][:num_own, None] == images
    negatives = similarities.masked_fill(same_image[:, None, :, None], -torch.inf).flatten(2).logsumexp(dim=2)
    losses = F.softplus(negatives[:, :, None] - positives).flatten(1)
    # Every entry of the (anchor, positive) matrix but the diagonal; a mask would have to be counted on the host.
    return losses[:, 1:].unflatten(1, (num_crops - 1, num_crops + 1))[:, :, :-1].flatten().mean()


@dataclass
class SimclrConfig:
    """conf/method/simclr.yaml."""

    name: str
    temperature: float


class Simclr(Method):
    """SimCLR as a method of the training loop; it has no state."""

    crops_needed = CropsNeeded("2x224", min_crops=2)

    def __init__(self, config: SimclrConfig, _net: MultiCropNet, _num_images: int, _batch_size: int) -> None:
        self.config = config

    def loss(self, embeddings: Tensor, _scores: None, num_crops: int, _step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of one batch, and metrics."""
        metrics = {"embedding_spread": embedding_spread(embeddings), "unit_length_error": unit_length_error(embeddings)}
        return contrastive_loss(embeddings, num_crops, self.config.temperature), metrics
