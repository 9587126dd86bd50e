"""A linear classifier on frozen features, trained by SGD on augmented images (A.3, A.5)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evals.classifier import train_classifier
from evals.context import CenterCropConfig, EvalContext
from models.networks.resnet import ResNet
from reproduce.engine.distributed.collectives import device
from reproduce.engine.schedule import epoch_cosine_lr, multistep_lr
from reproduce.errors import UserError, did_you_mean

WEIGHT_STD = 0.01
SCHEDULES = ("cosine", "steps")


@dataclass
class ProtocolConfig:
    """The keys of conf/eval/linear_*.yaml. `milestones` are fractions of the epochs, for schedule `steps`.

    `lr` is for a batch of `base_batch_size`; another `batch_size` scales it in proportion.
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


class LinearProbe(nn.Module):
    """A linear classifier on a frozen trunk, which stays in eval mode even while the classifier trains."""

    def __init__(self, trunk: ResNet, classifier: nn.Linear) -> None:
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


def evaluate(trunk: ResNet, protocol: ProtocolConfig, context: EvalContext) -> dict[str, float]:
    """Return top-1 and top-5 in percent of the last and of the best epoch; see `train_classifier`."""
    if protocol.schedule not in SCHEDULES:
        hint = did_you_mean(protocol.schedule, SCHEDULES)
        raise UserError(f"unknown protocol.schedule {protocol.schedule!r}: {hint}")
    train, val = context.train_and_val()
    torch.manual_seed(context.cfg.seed)
    classifier = nn.Linear(trunk.num_features, len(train.classes)).to(device())
    nn.init.normal_(classifier.weight, std=WEIGHT_STD)
    nn.init.zeros_(classifier.bias)
    optimizer = torch.optim.SGD(
        classifier.parameters(), protocol.lr, momentum=protocol.momentum, weight_decay=protocol.weight_decay
    )
    scale = context.lr_scale(protocol.batch_size, protocol.base_batch_size)
    return train_classifier(
        LinearProbe(trunk, classifier),
        {"classifier": classifier},
        optimizer,
        lambda epoch: [learning_rate(protocol, epoch) * scale],
        train,
        val,
        epochs=protocol.epochs,
        batch_size=protocol.batch_size,
        crop=protocol.center_crop,
        context=context,
    )


def learning_rate(protocol: ProtocolConfig, epoch: int) -> float:
    """Return the learning rate of an epoch, for a batch of `base_batch_size`."""
    if protocol.schedule == "cosine":
        return epoch_cosine_lr(epoch, protocol.epochs, protocol.lr)
    return multistep_lr(epoch, protocol.epochs, protocol.lr, protocol.milestones)
