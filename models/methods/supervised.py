"""Supervised training, the reference row of the tables: predict class labels (standard ResNet-50 recipe)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.methods.base import CropsNeeded, Method, trunk_layers
from models.methods.diagnostics import embedding_spread
from models.networks.resnet import BLOCKS_R50, STEM_R50, ResNet
from reproduce.config.schema import Network
from reproduce.engine.precision import at_least_fp32


class ClassifierNet(ResNet):
    """A trunk with a linear classifier `fc` on its pooled features, named as in torchvision.

    `forward` maps crops, a list of `(B, 3, S, S)` of one size, to features `(num_crops * B, num_features)`, crop by
    crop, and logits `(num_crops * B, num_classes)`.
    """

    def __init__(
        self, width: float, num_classes: int, blocks: Sequence[int] = BLOCKS_R50, stem: str = STEM_R50
    ) -> None:
        super().__init__(width, blocks, stem=stem)
        self.fc = nn.Linear(self.num_features, num_classes)

    def forward(self, crops: list[Tensor]) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return features and logits of all crops (shapes: see the class)."""
        features = self.pooled_features(torch.cat(crops))
        return features, self.fc(features)


@dataclass
class SupervisedConfig:
    """conf/method/supervised.yaml."""

    name: str


class Supervised(Method):
    """Supervised training as a method of the training loop; it has no state."""

    crops_needed = CropsNeeded("supervised", of_one_size=True)

    @classmethod
    def build_network(cls, sizes: Network, config: SupervisedConfig, num_classes: int) -> ClassifierNet:  # noqa: ARG003
        """Build a `ClassifierNet`."""
        return ClassifierNet(sizes.width, num_classes, *trunk_layers(sizes))

    def __init__(self, _config: SupervisedConfig, net: ClassifierNet, _num_images: int, _batch_size: int) -> None:
        self.uniform_loss = math.log(net.fc.out_features)

    def before_step(self, step: int, crops: list[Tensor], labels: Tensor) -> list[Tensor]:  # noqa: ARG002
        """Remember the batch's labels for `loss`."""
        self.labels = labels
        return crops

    def loss(self, features: Tensor, logits: Tensor, num_crops: int, _step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the cross-entropy over this rank's crops, and metrics."""
        logits = at_least_fp32(logits)
        return F.cross_entropy(logits, self.labels.repeat(num_crops)), {
            "embedding_spread": embedding_spread(F.normalize(features.detach(), dim=1))
        }
