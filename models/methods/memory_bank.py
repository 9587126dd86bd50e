"""A memory bank with one embedding per image, and the noise-contrastive loss against it.

NPID, NPID++, PIRL, CMC and Local Aggregation use them. Follows the released code of NPID (sections 3.2 and 3.3 of Wu et
al. 2018), which that of NPID++ and PIRL follows, too.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reproduce.data.pipeline.upload import upload
from reproduce.engine.distributed.collectives import all_gather, all_reduce_mean
from reproduce.engine.precision import at_least_fp32
from reproduce.errors import UserError


class InstanceBank:
    """The unit embeddings `rows` `(num_images, D)` of all training images, in fp32 or more, the same on every rank.

    They start as random directions. `weight` is a parameter of the head, for the rows' device and dtype.
    """

    def __init__(self, num_images: int, embedding_dim: int, momentum: float, weight: Tensor) -> None:
        self.momentum = momentum
        drawn = torch.rand(num_images, embedding_dim).to(at_least_fp32(weight))
        self.rows = F.normalize(2 * drawn - 1, dim=1)

    def draw(self, seed: tuple[int, ...], image_indices: np.ndarray, num_negatives: int) -> Tensor:
        """Return the bank's rows that each image is compared with, `(B, 1 + num_negatives)`: its own, then noise.

        Noise is drawn from all images, the image itself included, by `seed` and image: not by rank.
        """
        shape = (len(image_indices), 1 + num_negatives)
        candidates = np.empty(shape, np.int64)
        candidates[:, 0] = image_indices
        for row, index in zip(candidates, image_indices, strict=True):
            row[1:] = np.random.default_rng((*seed, int(index))).integers(len(self.rows), size=num_negatives)
        return upload(candidates, self.rows.device)

    def cosines(self, embeddings: Tensor, candidates: Tensor) -> Tensor:
        """Return the cosines `(B, 1 + K)` of unit embeddings `(B, D)` with the bank's rows `candidates (B, 1 + K)`."""
        return torch.einsum("bd,bkd->bk", at_least_fp32(embeddings), self.rows[candidates])

    @torch.no_grad()
    def update(self, image_indices: Tensor, embeddings: Tensor) -> None:
        """Move the rows of the global batch's images `(B,)` towards their embeddings `(B, D)`. A collective."""
        everyone = all_gather(image_indices).flatten()
        new = all_gather(at_least_fp32(embeddings).contiguous()).flatten(0, 1)
        self.rows[everyone] = F.normalize(torch.lerp(new, self.rows[everyone], self.momentum), dim=1)


def require_negatives(num_negatives: int) -> None:
    """Raise `UserError` if an image would be compared with nothing but itself."""
    if num_negatives < 1:
        raise UserError(f"method.num_negatives is {num_negatives}: noise needs at least 1")


def log_normalizer(logits: Tensor, num_images: int) -> Tensor:
    """Estimate ln Z from logits `(B, 1 + K)`, where Z is the sum of exp(logit) over all images. A collective."""
    return all_reduce_mean(logits.detach().exp().mean()).log() + math.log(num_images)


def nce_loss(logits: Tensor, log_z: Tensor, num_images: int) -> Tensor:
    """Return the noise-contrastive loss of logits `(B, 1 + K)`, the mean over images of the sum over candidates.

    It is a logistic regression that tells an image (column 0) from K draws of uniform noise: the odds are those of
    p = exp(logit) / Z against K / num_images (Wu et al. 2018, equations 5 to 7).
    """
    log_odds = logits - log_z - math.log((logits.shape[1] - 1) / num_images)
    return -(F.logsigmoid(log_odds[:, 0]) + F.logsigmoid(-log_odds[:, 1:]).sum(dim=1)).mean()


def nce_uniform_loss(num_negatives: int) -> float:
    """Return the smallest noise-contrastive loss of predictions that are the same for every image."""
    return math.log1p(num_negatives) + num_negatives * math.log1p(1 / num_negatives)
