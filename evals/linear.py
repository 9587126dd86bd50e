"""A linear classifier on frozen features, trained by SGD on augmented images (A.3, A.5)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evals.classifier import ClassifierTraining, train_classifier
from evals.context import CenterCropConfig, EvalContext
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
    BatchNorm without scale and shift before the classifier.
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


def build_classifier(protocol: ProtocolConfig, num_features: int, num_classes: int) -> nn.Module:
    """Build the classifier of features `(N, num_features)`: linear with weights N(0, .01), after a BatchNorm if set."""
    linear = nn.Linear(num_features, num_classes)
    nn.init.normal_(linear.weight, std=WEIGHT_STD)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.BatchNorm1d(num_features, affine=False), linear) if protocol.feature_batchnorm else linear


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
