"""PIRL: an image and the shuffled patches of it share one entry of a memory bank (Misra and van der Maaten 2020).

Follows its authors' later public code (VISSL), whose loss normalizes as NPID's does, by a constant Z. The paper's
equation 5 normalizes by the batch instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.methods.base import CropsNeeded, trunk_layers
from models.methods.npid import Npid, NpidConfig
from models.networks.heads import MultiCropNet
from models.networks.resnet import BLOCKS_R50, STEM_R50
from reproduce.config.schema import Network


@dataclass
class PirlConfig(NpidConfig):
    """conf/method/pirl.yaml."""

    num_patches: int
    jigsaw_weight: float
    """Share of the patches' loss; the image's has the rest (lambda, equation 6)."""


class PirlNet(MultiCropNet):
    """A trunk with a linear head for images, and one for the patches of an image together.

    `forward` maps an image's crop `(B, 3, S, S)` and its `num_patches` patches, each `(B, 3, P, P)`, to unit embeddings
    `(2 * B, embedding_dim)`: those of the images, then those of the patches. Images and patches pass the trunk apart.
    """

    def __init__(
        self,
        width: float,
        embedding_dim: int,
        num_patches: int,
        blocks: Sequence[int] = BLOCKS_R50,
        stem: str = STEM_R50,
    ) -> None:
        super().__init__(width, None, embedding_dim, blocks=blocks, stem=stem)
        self.num_patches = num_patches
        self.patch_head = nn.Linear(self.num_features, embedding_dim)
        self.jigsaw_head = nn.Linear(num_patches * embedding_dim, embedding_dim)

    def forward(self, crops: list[Tensor]) -> tuple[Tensor, None]:  # type: ignore[override]
        """Return the embeddings of images and patches (shapes: see the class). Patches are first to move BatchNorm."""
        images, *patches = crops
        of_patches = self.patch_head(self.pooled_features(torch.cat(patches))).unflatten(0, (self.num_patches, -1))
        of_jigsaws = self.jigsaw_head(of_patches.transpose(0, 1).flatten(1))
        embeddings, _ = super().forward([images])
        return torch.cat([embeddings, F.normalize(of_jigsaws, dim=1)]), None


class Pirl(Npid):
    """PIRL as a method of the training loop: NPID, with the patches as the image's second crop."""

    @classmethod
    def build_network(cls, sizes: Network, config: PirlConfig, num_classes: int) -> PirlNet:  # noqa: ARG003
        """Build a `PirlNet`."""
        return PirlNet(sizes.width, sizes.embedding_dim, config.num_patches, *trunk_layers(sizes))

    def __init__(self, config: PirlConfig, net: PirlNet, num_images: int, batch_size: int) -> None:
        super().__init__(config, net, num_images, batch_size)
        self.crops_needed = CropsNeeded("pirl", min_crops=1 + config.num_patches, max_crops=1 + config.num_patches)
        self.jigsaw_weight = config.jigsaw_weight

    def loss(self, embeddings: Tensor, scores: None, _num_crops: int, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of this rank's images and their patches, and metrics; the bank gets the images'."""
        return super().loss(embeddings, scores, 2, step)

    def combine(self, losses: Tensor) -> Tensor:
        """Return the loss of an image, given those of its crop and of its patches (equation 6)."""
        return torch.lerp(losses[0], losses[1], self.jigsaw_weight)
