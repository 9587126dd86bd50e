"""RotNet: rotate each crop by 0, 90, 180 and 270 degrees, and predict by which (Gidaris et al. 2018, section 2)."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.methods.base import CropsNeeded, Method, trunk_layers
from models.methods.diagnostics import embedding_spread
from models.methods.supervised import ClassifierNet
from reproduce.config.schema import Network
from reproduce.engine.distributed.collectives import all_reduce_mean
from reproduce.engine.precision import at_least_fp32

NUM_ROTATIONS = 4


def four_rotations(crop: Tensor) -> list[Tensor]:
    """Return a crop `(B, 3, S, S)` rotated counterclockwise by 0, 90, 180 and 270 degrees, channels-last in memory."""
    turned = [torch.rot90(crop, quarters, dims=(2, 3)) for quarters in range(NUM_ROTATIONS)]
    return [each.contiguous(memory_format=torch.channels_last) for each in turned]


@dataclass
class RotnetConfig:
    """conf/method/rotnet.yaml."""

    name: str


class Rotnet(Method):
    """RotNet as a method of the training loop; it has no state.

    A step has all four rotations of each of its images, so that no class is rarer than another.
    """

    crops_needed = CropsNeeded("supervised", of_one_size=True)
    uniform_loss = math.log(NUM_ROTATIONS)

    @classmethod
    def build_network(cls, sizes: Network, config: RotnetConfig, num_classes: int) -> ClassifierNet:  # noqa: ARG003
        """Build a `ClassifierNet`."""
        return ClassifierNet(sizes.width, NUM_ROTATIONS, *trunk_layers(sizes))

    def before_step(self, step: int, crops: list[Tensor], labels: Tensor) -> list[Tensor]:  # noqa: ARG002
        """Return all rotations of each crop; the dataset's class labels are not used."""
        return [turned for crop in crops for turned in four_rotations(crop)]

    def loss(self, features: Tensor, logits: Tensor, num_crops: int, _step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the cross-entropy over this rank's rotated crops, and metrics.

        `logits` are `(num_crops * B, 4)`, crop by crop, where crop i is rotated by i mod 4 quarters.
        """
        logits = at_least_fp32(logits)
        rotations = torch.arange(num_crops, device=logits.device) % NUM_ROTATIONS
        targets = rotations.repeat_interleave(len(logits) // num_crops)
        hits = (logits.detach().argmax(dim=1) == targets).to(logits.dtype)
        return F.cross_entropy(logits, targets), {
            "rotation_accuracy": all_reduce_mean(hits.mean()),
            "embedding_spread": embedding_spread(F.normalize(features.detach(), dim=1)),
        }
