"""EfficientNet-B7 (Tan and Le 2019), the supervised row of Table 2: torchvision's, with its own classifier."""

from torch import Tensor
from torchvision.models import efficientnet_b7

from models.networks.trunk import Trunk


class EfficientNetB7(Trunk):
    """EfficientNet-B7: images `(N, 3, H, W)`, 600 px in its paper, to pooled features `(N, 2560)`.

    `classifier` maps features to the logits of 1000 classes. It belongs to the network, whose parameters its paper, and
    so Table 2, counts with it. Tensor names are torchvision's.
    """

    def __init__(self) -> None:
        super().__init__()
        net = efficientnet_b7(weights=None)
        self.features, self.avgpool, self.classifier = net.features, net.avgpool, net.classifier
        self.num_features: int = net.classifier[-1].in_features

    def forward(self, images: Tensor) -> Tensor:
        """Return pooled features `(N, 2560)` of images `(N, 3, H, W)`."""
        return self.avgpool(self.features(images)).flatten(1)
