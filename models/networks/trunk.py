"""What every trunk is: a network from images to pooled features."""

from torch import nn


class Trunk(nn.Module):
    """A network without head: images `(N, 3, H, W)` to pooled features `(N, num_features)`."""

    num_features: int
