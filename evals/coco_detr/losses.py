"""Which query answers for which object, and how far off it is: a one-to-one matching, and the losses of it."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou, generalized_box_iou_loss

from reproduce.engine.distributed.collectives import all_reduce_mean
from reproduce.errors import TrainingFailed


@dataclass
class Weights:
    """How much each part counts, in the cost of a match and in the loss alike; `no_object` is that class' weight."""

    classes: float
    l1: float
    giou: float
    no_object: float


@dataclass(frozen=True)
class Target:
    """The objects of one picture: class numbers `(n,)` int64, and boxes `(n, 4)` as shares of it, (cx, cy, w, h)."""

    labels: Tensor
    boxes: Tensor


Match = tuple[Tensor, Tensor]
"""Of one picture: numbers of queries, and of the objects that they answer for."""


def corners(boxes: Tensor) -> Tensor:
    """Boxes `(..., 4)` from centre, width and height to left, top, right, bottom."""
    return box_convert(boxes, "cxcywh", "xyxy")


@torch.no_grad()
def match(logits: Tensor, boxes: Tensor, targets: list[Target], weights: Weights) -> list[Match]:
    """For each picture the matching of queries to objects that costs least; every object gets a query of its own.

    `logits (N, Q, classes + 1)`, `boxes (N, Q, 4)`. A pair costs minus the probability of the object's class, the L1
    distance of the boxes, and minus their generalised IoU, weighted.
    """
    found = []
    for probabilities, predicted, target in zip(logits.softmax(-1), boxes, targets, strict=True):
        cost = (
            -weights.classes * probabilities[:, target.labels]
            + weights.l1 * torch.cdist(predicted, target.boxes, p=1)
            - weights.giou * generalized_box_iou(corners(predicted), corners(target.boxes))
        ).cpu()
        if not cost.isfinite().all():
            raise TrainingFailed("the detector's boxes are no longer finite: lower protocol.lr")
        rows, columns = linear_sum_assignment(cost)
        found.append((torch.as_tensor(rows), torch.as_tensor(columns)))
    return found


def losses(logits: Tensor, boxes: Tensor, targets: list[Target], weights: Weights) -> Tensor:
    """The loss of every decoder layer, each under its own matching: `(layers, 3)`, by class, L1 and GIoU, weighted.

    `logits (layers, N, Q, classes + 1)`, `boxes (layers, N, Q, 4)`. Cross-entropy is a weighted mean over all queries,
    the others are sums over objects by their number. Both are numbers of the whole batch: the ranks' losses, averaged,
    are that of one process. (The original takes each GPU's own weights under the cross-entropy.)
    """
    per_class = logits.new_ones(logits.shape[-1])
    per_class[-1] = weights.no_object
    num_objects = all_reduce_mean(logits.new_tensor(float(sum(len(target.labels) for target in targets)))).clamp(min=1)
    targets = [Target(target.labels, target.boxes.to(boxes.dtype)) for target in targets]
    every = []
    for of_layer, predicted in zip(logits, boxes, strict=True):
        matches = match(of_layer, predicted, targets, weights)
        classes = of_layer.new_full(of_layer.shape[:2], of_layer.shape[-1] - 1, dtype=torch.long)
        for row, target, (queries, objects) in zip(classes, targets, matches, strict=True):
            row[queries] = target.labels[objects]
        ours = torch.cat([some[queries] for some, (queries, _) in zip(predicted, matches, strict=True)])
        theirs = torch.cat([target.boxes[objects] for target, (_, objects) in zip(targets, matches, strict=True)])
        entropy = F.cross_entropy(of_layer.flatten(0, 1), classes.flatten(), per_class, reduction="sum")
        every.append(
            torch.stack(
                [
                    weights.classes * entropy / all_reduce_mean(per_class[classes].sum()),
                    weights.l1 * F.l1_loss(ours, theirs, reduction="sum") / num_objects,
                    weights.giou
                    * generalized_box_iou_loss(corners(ours), corners(theirs), reduction="sum")
                    / num_objects,
                ]
            )
        )
    return torch.stack(every)
