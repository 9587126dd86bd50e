"""SimCLR over any number of crops, as the paper compares it (A.8)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.methods.base import Method
from models.methods.diagnostics import embedding_spread, unit_length_error
from models.networks.heads import MultiCropNet
from reproduce.engine.distributed.collectives import all_gather_differentiable, rank


def contrastive_loss(embeddings: Tensor, num_crops: int, temperature: float) -> Tensor:
    """Tell each crop's other crops from all crops of other images: A.8, and NT-Xent where there are two.

    embeddings: `(num_crops * B, D)` of unit length, crop by crop; the negatives are those of all ranks. Each pair
    (anchor, positive) has a term -log(p / (p + sum of n)) of its own, p and n being exp(cosine / temperature) of the
    positive and of the negatives: other positives do not stand in the denominator. Returns the mean over this rank's
    pairs.
    """
    embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    own = embeddings.unflatten(0, (num_crops, -1))  # crop, image, D
    everyone = all_gather_differentiable(own.transpose(0, 1).contiguous())  # image of any rank, crop, D
    num_own = own.shape[1]
    positives = torch.einsum("cid,oid->ico", own, own) / temperature
    similarities = torch.einsum("cid,jod->icjo", own, everyone) / temperature
    images = torch.arange(num_own, device=own.device)
    same_image = F.one_hot(rank() * num_own + images, len(everyone)).bool()
    negatives = similarities.masked_fill(same_image[:, None, :, None], -torch.inf).flatten(2).logsumexp(dim=2)
    losses = F.softplus(negatives[:, :, None] - positives)
    return losses[:, ~torch.eye(num_crops, dtype=torch.bool, device=own.device)].mean()


@dataclass
class SimclrConfig:
    """conf/method/simclr.yaml."""

    name: str
    temperature: float

    @property
    def prototypes(self) -> int:
        """What the network needs: none."""
        return 0


class Simclr(Method):
    """The method as the loop uses it; it keeps nothing between steps."""

    def __init__(self, config: SimclrConfig, _net: MultiCropNet, _num_images: int, _batch_size: int) -> None:
        self.config = config

    def loss(self, embeddings: Tensor, _scores: None, num_crops: int, _step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one batch, and what to watch."""
        watched = {"embedding_spread": embedding_spread(embeddings), "unit_length_error": unit_length_error(embeddings)}
        return contrastive_loss(embeddings, num_crops, self.config.temperature), watched
