"""What every trunk is: a network from images to pooled features."""

from collections.abc import Sequence

from torch import nn


class Trunk(nn.Module):
    """A network without head: images `(N, 3, H, W)` to pooled features `(N, num_features)`."""

    num_features: int
    activation_checkpointing: bool
    """Whether training keeps only the blocks' inputs, see `ResNet`; only trunks that are pretrained have it."""

    def set_normalization(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the statistics per channel with which images come normalized, for a network that computes with colors.

        Whoever builds or loads a trunk calls it; they are no part of the weights.
        """
