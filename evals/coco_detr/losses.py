"""DETR's loss: a one-to-one matching of queries to objects, and the losses of the matched pairs."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_area, box_convert, generalized_box_iou

from reproduce.data.pipeline.upload import upload
from reproduce.engine.distributed.collectives import all_gather, all_reduce_mean, rank, world_size
from reproduce.errors import TrainingFailed, UserError

EPSILON = 1e-7
"""Keeps the division by a box' area finite, as in torchvision."""


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


def corners(boxes: Tensor) -> Tensor:
    """Convert boxes `(..., 4)` from center, width and height to left, top, right, bottom."""
    return box_convert(boxes, "cxcywh", "xyxy")


def giou_loss(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the sum of 1 - generalized IoU over pairs of boxes `(n, 4)`, given by their corners.

    torchvision's picks the boxes that overlap by a mask, for which the host waits for the device.
    """
    shared = torch.minimum(ours[:, 2:], theirs[:, 2:]) - torch.maximum(ours[:, :2], theirs[:, :2])
    hull = torch.maximum(ours[:, 2:], theirs[:, 2:]) - torch.minimum(ours[:, :2], theirs[:, :2])
    overlap = torch.where((shared > 0).all(dim=1), shared[:, 0] * shared[:, 1], 0)
    union = box_area(ours) + box_area(theirs) - overlap
    hull_area = hull[:, 0] * hull[:, 1]
    giou = overlap / (union + EPSILON) - (hull_area - union) / (hull_area + EPSILON)
    return (1 - giou).sum()


@torch.no_grad()
def match_queries(logits: Tensor, boxes: Tensor, targets: list[Target], weights: LossWeights) -> Tensor:
    """Return the cheapest matching of queries to objects in each decoder layer, `(3, layers, num_matches)` int64.

    The three are the indices of image, query and object; objects count through the batch, image by image. Every object
    gets a query of its own. `logits (layers, N, Q, classes + 1)`, `boxes (layers, N, Q, 4)`. The cost of a pair is the
    weighted sum of minus the probability of the object's class, the L1 distance of the boxes, and minus their
    generalized IoU. The device is read once, for all costs, and written once, with all indices. Raises `TrainingFailed`
    if a cost is not finite.
    """
    labels = pad_sequence([target.labels for target in targets], batch_first=True)
    objects = pad_sequence([target.boxes for target in targets], batch_first=True, padding_value=1)  # a valid box
    shape = (*logits.shape[:3], labels.shape[1])
    cost = (
        -weights.classes * logits.softmax(-1).gather(-1, labels.unsqueeze(1).expand(shape))
        + weights.l1 * torch.cdist(boxes, objects, p=1)
        - weights.giou * generalized_box_iou(corners(boxes), corners(objects))
    )
    costs = cost.cpu().numpy()
    matches: list[list[np.ndarray]] = [[] for _ in costs]
    num_before = 0
    for image, target in enumerate(targets):
        num_objects = len(target.labels)
        for layer, found in enumerate(matches):
            pairs = costs[layer, image, :, :num_objects]
            if not np.isfinite(pairs).all():
                raise TrainingFailed("the detector's boxes are not finite: lower protocol.lr")
            rows, columns = linear_sum_assignment(pairs)
            found.append(np.stack([np.full_like(rows, image), rows, num_before + columns]))
        num_before += num_objects
    return upload(np.stack([np.concatenate(found, axis=1) for found in matches], axis=1), logits.device)


def class_loss_groups(images_per_rank: int, group_size: int | None) -> tuple[int, int]:
    """Return into how many groups of `group_size` images a rank's images fall, and how many ranks share a group.

    None is one group of all ranks. Raises `UserError` if neither a rank's images nor a group
    is a multiple of the other.
    """
    if group_size is None:
        return 1, world_size()
    if images_per_rank % group_size == 0:
        return images_per_rank // group_size, 1
    num_ranks = group_size // images_per_rank
    if group_size % images_per_rank or world_size() % num_ranks:
        raise UserError(
            f"protocol.class_loss_group_size {group_size} can't be formed by {world_size()} processes of "
            f"{images_per_rank} images: take another number of processes, or null for the whole batch"
        )
    return 1, num_ranks


def _mean_over_group(values: Tensor, num_ranks: int) -> Tensor:
    """Average over the ranks that share a group: consecutive ones. A collective unless each rank has its own."""
    if num_ranks == 1:
        return values
    if num_ranks == world_size():
        return all_reduce_mean(values)
    first = rank() // num_ranks * num_ranks
    return all_gather(values)[first : first + num_ranks].mean(0)


def losses(
    logits: Tensor,
    boxes: Tensor,
    targets: list[Target],
    weights: LossWeights,
    class_loss_group_size: int | None = None,
) -> Tensor:
    """Return the weighted losses of every decoder layer, each under its own matching: `(layers, 3)` class, L1, GIoU.

    `logits (layers, N, Q, classes + 1)`, `boxes (layers, N, Q, 4)`. The boxes' losses are sums over objects, divided by
    the number of objects of all ranks. The cross-entropy is a weighted mean over the queries of
    `class_loss_group_size` images, averaged over such groups; None is one group of all ranks' images. (The original
    has a group per GPU: 4 images.) The mean of the ranks' losses is the loss that one process would compute.
    """
    num_layers, num_images = logits.shape[:2]
    num_groups, num_ranks = class_loss_groups(num_images, class_loss_group_size)
    labels = torch.cat([target.labels for target in targets])
    targets = [Target(target.labels, target.boxes.to(boxes.dtype)) for target in targets]
    num_objects = all_reduce_mean(logits.new_full((), len(labels))).clamp(min=1)

    image, query, matched = match_queries(logits, boxes, targets, weights).unbind()
    layer = torch.arange(num_layers, device=logits.device).unsqueeze(1)
    classes = logits.new_full(logits.shape[:3], logits.shape[-1] - 1, dtype=torch.long)
    classes[layer, image, query] = labels[matched]
    predicted, true = boxes[layer, image, query], torch.cat([target.boxes for target in targets])[matched]

    per_class = logits.new_ones(logits.shape[-1])
    per_class[-1] = weights.no_object
    entropies, totals = [], []
    for group_logits, group_classes in zip(
        logits.unflatten(1, (num_groups, -1)).flatten(0, 1),
        classes.unflatten(1, (num_groups, -1)).flatten(0, 1),
        strict=True,
    ):
        entropies.append(
            F.cross_entropy(group_logits.flatten(0, 1), group_classes.flatten(), per_class, reduction="sum")
        )
        totals.append(per_class[group_classes].sum())
    total = _mean_over_group(torch.stack(totals), num_ranks)
    entropy = (weights.classes * torch.stack(entropies) / total).unflatten(0, (num_layers, num_groups)).mean(1)
    l1 = [F.l1_loss(*pair, reduction="sum") for pair in zip(predicted, true, strict=True)]
    giou = [giou_loss(corners(ours), corners(theirs)) for ours, theirs in zip(predicted, true, strict=True)]
    return torch.stack(
        [entropy, weights.l1 * torch.stack(l1) / num_objects, weights.giou * torch.stack(giou) / num_objects], dim=1
    )
