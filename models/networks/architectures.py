"""Networks by name: Table 2's that are no plain ResNets, whose parameters are counted (`network.architecture`)."""

from collections.abc import Callable, Sequence

from models.networks.amdim import AmdimEncoder
from models.networks.cmc import CmcPair
from models.networks.efficientnet import EfficientNetB7
from models.networks.resnet import BLOCKS_R50, ResNet
from models.networks.resnet161 import ResNet161
from models.networks.revnet import RevNet
from models.networks.trunk import Trunk
from reproduce.errors import UserError, did_you_mean

ARCHITECTURES: dict[str, Callable[[float, Sequence[int]], Trunk]] = {
    "amdim": lambda *_: AmdimEncoder(),
    "cmc": CmcPair,
    "efficientnet_b7": lambda *_: EfficientNetB7(),
    "resnet161": lambda *_: ResNet161(),
    "revnet50_w4": lambda *_: RevNet(),
}
"""What builds each, of a ResNet's width and blocks; most have one size."""


def build_trunk(architecture: str | None, width: float, blocks: Sequence[int] = BLOCKS_R50) -> Trunk:
    """Build the trunk of this name, or a ResNet of this width and these blocks if the name is None.

    Raises `UserError` for an unknown name.
    """
    if architecture is None:
        return ResNet(width, blocks)
    if architecture not in ARCHITECTURES:
        hint = did_you_mean(architecture, list(ARCHITECTURES))
        raise UserError(f"unknown network.architecture {architecture!r}: {hint}")
    return ARCHITECTURES[architecture](width, blocks)
