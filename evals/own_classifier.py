"""The network's own classifier, as its authors trained it, on center crops (Table 2's EfficientNet)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evals.classifier import accuracy
from evals.context import CenterCropConfig, EvalContext
from models.networks.trunk import Trunk
from reproduce.errors import UserError


@dataclass
class ProtocolConfig:
    """The keys of conf/eval/own_classifier.yaml."""

    name: str
    center_crop: CenterCropConfig


class OwnClassifier(nn.Module):
    """A trunk under its own classifier: images `(N, 3, H, W)` to logits `(N, num_classes)`."""

    def __init__(self, trunk: Trunk, classifier: nn.Module) -> None:
        super().__init__()
        self.trunk, self.classifier = trunk, classifier

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(N, num_classes)`."""
        return self.classifier(self.trunk(images))


def evaluate(trunk: Trunk, protocol: ProtocolConfig, context: EvalContext) -> dict[str, float]:
    """Return top-1 and top-5 in percent on the validation set.

    `top1_best` and `top5_best` are the same numbers: where nothing is trained, there is no better epoch. Classes are
    those of the dataset's folders in alphabetical order, as in torchvision. Raises `UserError` if the checkpoint's
    network has no classifier, or one of another number of classes.
    """
    classifier = getattr(trunk, "classifier", None)
    if classifier is None:
        raise UserError(
            f"the network of checkpoint={context.cfg.checkpoint} has no classifier of its own: take "
            "eval=linear_imagenet, which trains one"
        )
    context.run.resumed_from(0)
    train, val = context.train_and_val()
    net = OwnClassifier(trunk, classifier)
    _require_classes(trunk.num_features, classifier, len(train.classes))
    found = accuracy(net, val, protocol.center_crop, context)
    return found | {f"{name}_best": value for name, value in found.items()}


def _require_classes(num_features: int, classifier: nn.Module, num_classes: int) -> None:
    """Raise `UserError` if a classifier in evaluation mode has not as many logits as the dataset has classes."""
    weight = next(classifier.parameters())
    with torch.no_grad():
        num_logits = classifier(weight.new_zeros(1, num_features)).shape[1]
    if num_logits != num_classes:
        raise UserError(
            f"the checkpoint's own classifier has {num_logits} classes and the dataset has {num_classes}: take the "
            "images that it was trained for, or eval=linear_imagenet"
        )
