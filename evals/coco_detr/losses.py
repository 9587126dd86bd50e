"""DETR's loss: a one-to-one matching of queries to objects, and the losses of the matched pairs."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou, generalized_box_iou_loss

from reproduce.engine.distributed.collectives import all_reduce_mean
from reproduce.errors import TrainingFailed


@dataclass
class LossWeights:
    """Weights of the parts of the matching cost and of the loss; `no_object` is the weight of that class."""

    classes: float
    l1: float
    giou: float
    no_object: float


@dataclass(frozen=True)
class Target:
    """The objects of one image: class indices `(n,)` int64, and boxes `(n, 4)`, (cx, cy, w, h) in fractions of it."""

    labels: Tensor
    boxes: Tensor


Match = tuple[Tensor, Tensor]
"""For one image: indices of queries, and of the objects that they are matched to."""


def corners(boxes: Tensor) -> Tensor:
    """Convert boxes `(..., 4)` from center, width and height to left, top, right, bottom."""
    return box_convert(boxes, "cxcywh", "xyxy")


@torch.no_grad()
def match_queries(logits: Tensor, boxes: Tensor, targets: list[Target], weights: LossWeights) -> list[Match]:
    """Return the cheapest matching of queries to objects for each image; every object gets a query of its own.

    `logits (N, Q, classes + 1)`, `boxes (N, Q, 4)`. The cost of a pair is the weighted sum of minus the probability of
    the object's class, the L1 distance of the boxes, and minus their generalized IoU. Raises `TrainingFailed` if a cost
    is not finite.
    """
    found = []
    for probabilities, predicted, target in zip(logits.softmax(-1), boxes, targets, strict=True):
        cost = (
            -weights.classes * probabilities[:, target.labels]
            + weights.l1 * torch.cdist(predicted, target.boxes, p=1)
            - weights.giou * generalized_box_iou(corners(predicted), corners(target.boxes))
        ).cpu()
        if not cost.isfinite().all():
            raise TrainingFailed("the detector's boxes are not finite: lower protocol.lr")
        rows, columns = linear_sum_assignment(cost)
        found.append((torch.as_tensor(rows), torch.as_tensor(columns)))
    return found


def losses(logits: Tensor, boxes: Tensor, targets: list[Target], weights: LossWeights) -> Tensor:
    """Return the weighted losses of every decoder layer, each under its own matching: `(layers, 3)` class, L1, GIoU.

    `logits (layers, N, Q, classes + 1)`, `boxes (layers, N, Q, 4)`. The cross-entropy is a weighted mean over all
    queries; the other two are sums over objects, divided by their number. Both denominators count the batch of all
    ranks, so that the mean of the ranks' losses is the loss of one process. (The original divides the cross-entropy by
    each GPU's own weights.)
    """
    per_class = logits.new_ones(logits.shape[-1])
    per_class[-1] = weights.no_object
    num_objects = all_reduce_mean(logits.new_tensor(float(sum(len(target.labels) for target in targets)))).clamp(min=1)
    targets = [Target(target.labels, target.boxes.to(boxes.dtype)) for target in targets]
    layer_losses = []
    for layer_logits, layer_boxes in zip(logits, boxes, strict=True):
        matches = match_queries(layer_logits, layer_boxes, targets, weights)
        classes = layer_logits.new_full(layer_logits.shape[:2], layer_logits.shape[-1] - 1, dtype=torch.long)
        for row, target, (queries, objects) in zip(classes, targets, matches, strict=True):
            row[queries] = target.labels[objects]
        predicted = torch.cat([each[queries] for each, (queries, _) in zip(layer_boxes, matches, strict=True)])
        true = torch.cat([target.boxes[objects] for target, (_, objects) in zip(targets, matches, strict=True)])
        entropy = F.cross_entropy(layer_logits.flatten(0, 1), classes.flatten(), per_class, reduction="sum")
        layer_losses.append(
            torch.stack(
                [
                    weights.classes * entropy / all_reduce_mean(per_class[classes].sum()),
                    weights.l1 * F.l1_loss(predicted, true, reduction="sum") / num_objects,
                    weights.giou
                    * generalized_box_iou_loss(corners(predicted), corners(true), reduction="sum")
                    / num_objects,
                ]
            )
        )
    return torch.stack(layer_losses)
