"""A linear classifier on frozen features, trained by SGD on augmented images (A.3, A.5)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evals.classifier import ClassifierTraining, train_classifier
from evals.context import CenterCropConfig, EvalContext
from models.networks.resnet import ResNet
from models.networks.trunk import Trunk
from reproduce.engine.distributed.collectives import device
from reproduce.engine.schedule import epoch_cosine_lr, multistep_lr
from reproduce.errors import UserError, did_you_mean

WEIGHT_STD = 0.01
SCHEDULES = ("cosine", "steps")


@dataclass
class ProtocolConfig:
    """The keys of conf/eval/linear_*.yaml. `milestones` are fractions of the epochs, for schedule `steps`.

    `lr` is for a batch of `base_batch_size`; another `batch_size` scales it in proportion. `feature_batchnorm` puts a
    BatchNorm without scale and shift before the classifier. `grid` divides the trunk's last map, see `GridAverage`;
    None averages over all of it.
    """

    name: str
    epochs: int
    batch_size: int
    base_batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    schedule: str
    milestones: list[float]
    center_crop: CenterCropConfig
    nesterov: bool = False
    feature_batchnorm: bool = False
    grid: int | None = None


class GridAverage(nn.Module):
    """Averages of a map over `grid` x `grid` windows that overlap: `(N, C, H, W)` to `(N, C, grid, grid)`.

    Windows are `grid - 1` smaller than the map, and one position apart. With `grid` 2 they are VISSL's AvgPool2d(6,
    stride=1) on the 7 x 7 map of a 224-pixel image, and maps of other sizes give as many features.
    """

    def __init__(self, grid: int) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, features: Tensor) -> Tensor:
        """Return the averages. Raises `UserError` if the map has fewer rows or columns than the grid."""
        height, width = features.shape[2:]
        if min(height, width) < self.grid:
            raise UserError(
                f"protocol.grid={self.grid} divides the trunk's last map, which is only {height} x {width}: "
                "take larger images (protocol.center_crop), or protocol.grid=null"
            )
        return F.avg_pool2d(features, (height - self.grid + 1, width - self.grid + 1), stride=1)


class LinearProbe(nn.Module):
    """A linear classifier on a frozen trunk, which stays in eval mode even while the classifier trains.

    `classifier` may normalize the features first, see `build_classifier`.
    """

    def __init__(self, trunk: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.trunk, self.classifier = trunk.requires_grad_(False), classifier

    def train(self, mode: bool = True) -> "LinearProbe":
        """Switch the mode of the classifier only."""
        super().train(mode)
        self.trunk.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(N, num_classes)` of images `(N, 3, H, W)`."""
        with torch.no_grad():
            features = self.trunk(images)
        return self.classifier(features)


def evaluate(trunk: Trunk, protocol: ProtocolConfig, context: EvalContext) -> dict[str, float]:
    """Return top-1 and top-5 in percent of the last and of the best epoch; see `train_classifier`."""
    if protocol.schedule not in SCHEDULES:
        hint = did_you_mean(protocol.schedule, SCHEDULES)
        raise UserError(f"unknown protocol.schedule {protocol.schedule!r}: {hint}")
    if protocol.grid:
        divide_map(trunk, protocol.grid)
    train, val = context.train_and_val()
    torch.manual_seed(context.cfg.seed)
    classifier = build_classifier(protocol, trunk.num_features, len(train.classes)).to(device())
    optimizer = build_optimizer(protocol, classifier)
    scale = context.lr_scale(protocol.batch_size, protocol.base_batch_size)
    training = ClassifierTraining(
        LinearProbe(trunk, classifier),
        {"classifier": classifier},
        optimizer,
        learning_rates=lambda epoch: [learning_rate(protocol, epoch) * scale],
        lr_keys="protocol.lr",
        epochs=protocol.epochs,
        batch_size=protocol.batch_size,
        crop=protocol.center_crop,
    )
    return train_classifier(training, train, val, context)


def divide_map(trunk: Trunk, grid: int) -> None:
    """Make `trunk` return `(N, num_features * grid * grid)`: the averages of `GridAverage`, channel by channel.

    Raises `UserError` if the trunk is no ResNet, nor made of them.
    """
    resnets = [module for module in trunk.modules() if isinstance(module, ResNet)]
    if not resnets:
        raise UserError(f"protocol.grid={grid} needs a ResNet, and the checkpoint has none: take protocol.grid=null")
    for resnet in resnets:
        resnet.avgpool = GridAverage(grid)


def build_classifier(protocol: ProtocolConfig, num_features: int, num_classes: int) -> nn.Module:
    """Build the classifier: linear with weights N(0, .01), after a BatchNorm if set.

    Its inputs are `(N, num_features)`, or `num_features` channels of a grid, flattened as `divide_map` says. A
    channel's BatchNorm statistics are over all positions.
    """
    num_positions = (protocol.grid or 1) ** 2
    linear = nn.Linear(num_features * num_positions, num_classes)
    nn.init.normal_(linear.weight, std=WEIGHT_STD)
    nn.init.zeros_(linear.bias)
    if not protocol.feature_batchnorm:
        return linear
    norm = nn.BatchNorm1d(num_features, affine=False)
    if num_positions == 1:
        return nn.Sequential(norm, linear)
    return nn.Sequential(nn.Unflatten(1, (num_features, num_positions)), norm, nn.Flatten(), linear)


def build_optimizer(protocol: ProtocolConfig, classifier: nn.Module) -> torch.optim.SGD:
    """Build the optimizer of the classifier."""
    return torch.optim.SGD(
        classifier.parameters(),
        protocol.lr,
        momentum=protocol.momentum,
        weight_decay=protocol.weight_decay,
        nesterov=protocol.nesterov,
    )


def learning_rate(protocol: ProtocolConfig, epoch: int) -> float:
    """Return the learning rate of an epoch, for a batch of `base_batch_size`."""
    if protocol.schedule == "cosine":
        return epoch_cosine_lr(epoch, protocol.epochs, protocol.lr)
    return multistep_lr(epoch, protocol.epochs, protocol.lr, protocol.milestones)
