"""Faults as a careless change would make them, each in one recipe: what is planted, and which number has to notice."""

import contextlib
import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.svm import LinearSVC
from torch import Tensor, nn

from evals import classifier, finetune, linear, voc07_svm
from evals.coco_detr import protocol as coco_detr
from models.methods import deepcluster, simclr, swav
from models.methods.deepcluster import DeepCluster
from models.methods.moco import Moco
from models.methods.swav import Queue, Swav
from reproduce import pretrain
from reproduce.data.pipeline import multicrop, sampler
from reproduce.engine import schedule
from reproduce.engine.optimizer import Larc
from reproduce.engine.precision import at_least_fp32

Plant = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Fault:
    """A fault in the rehearsal of one recipe."""

    name: str
    recipe: str
    noticed_by: str
    """The beginning of the first quantity outside its tolerance."""
    config: dict[str, Any] = field(default_factory=dict)
    """Changes of the rehearsal's config, by dotted key."""
    plant: Plant = contextlib.nullcontext
    num_steps: int = 2
    """Steps of the rehearsal that are taken."""


def replaced(owner: Any, name: str, new: Any) -> Plant:
    """Replace an attribute while the fault is planted."""
    return lambda: mock.patch.object(owner, name, new)


def wrapped(owner: Any, name: str, wrap: Callable[[Any], Any]) -> Plant:
    """Replace a function by what `wrap` makes of it."""
    return replaced(owner, name, wrap(getattr(owner, name)))


# --- SwAV


def _freeze_one_step_more(build: Any) -> Any:
    def init(self: Swav, *arguments: Any) -> None:
        build(self, *arguments)
        self.freeze_prototypes_steps += 1

    return init


def _queue_one_step_early(build: Any) -> Any:
    def init(self: Swav, *arguments: Any) -> None:
        build(self, *arguments)
        self.queue_start_step -= 1

    return init


def _swapped_blocks(push: Any) -> Any:
    return lambda self, embeddings: push(self, embeddings[::-1])


def _oldest_first(self: Queue, embeddings: list[Tensor]) -> None:
    batch = len(embeddings[0])
    for block, rows in zip(self.blocks, embeddings, strict=True):
        block[:-batch] = block[batch:].clone()
        block[-batch:] = rows.detach()
    self.num_filled += batch


def _loss_of_pairs(
    scores: Tensor, assignments: list[Tensor], num_crops: int, temperature: float, own: bool, too_many: int
) -> Tensor:
    predictions = F.log_softmax(at_least_fp32(scores) / temperature, dim=1).chunk(num_crops)
    pairs = [(a, b) for a in range(len(assignments)) for b in range(num_crops) if own or a != b]
    terms = [-(assignments[a] * predictions[b]).sum(dim=1).mean() for a, b in pairs]
    return torch.stack(terms).sum() / (len(pairs) + too_many)


def _columns_last(scores: Tensor, epsilon: float, num_iterations: int) -> Tensor:
    """Sinkhorn whose iterations end with the prototypes, so that no image's assignment sums to one."""
    found = torch.exp((scores - scores.max()) / epsilon)
    for _ in range(num_iterations):
        found = found / found.sum(dim=1, keepdim=True)
        found = found / found.sum(dim=0) * len(found) / found.shape[1]
    return found


def _no_decay_of_vectors(step: Any) -> Any:
    def without(self: Larc, closure: Any = None) -> Any:
        vectors = [p for group in self.param_groups for p in group["params"] if p.dim() == 1 and p.grad is not None]
        with torch.no_grad():
            for p in vectors:  # what LARC adds, under the rate that it will have
                decay, (norm, gradient) = self.larc_weight_decay, (p.norm(), p.grad.norm())
                if norm and gradient:
                    p.grad -= decay * p
        return step(self, closure)

    return without


def _zero_norms_adapted(scale: Any) -> Any:
    """LARC as its paper has it: a bias that is zero gets a rate of zero."""

    def adapted(self: Larc) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and not p.norm():
                    p.grad.zero_()
        scale(self)

    return adapted


def _per_epoch(steps_per_epoch: int) -> Callable[[Any], Any]:
    def wrap(rate: Any) -> Any:
        return lambda step, *rest: rate(step // steps_per_epoch * steps_per_epoch, *rest)

    return wrap


def _warmup_one_step_longer(rate: Any) -> Any:
    return lambda step, num_steps, warmup_steps, *rest: rate(step, num_steps, warmup_steps + 1, *rest)


def _slow_statistics(init: Any) -> Any:
    def build(self: nn.BatchNorm2d, *arguments: Any, **keywords: Any) -> None:
        init(self, *arguments, **keywords)
        self.momentum = 0.01

    return build


# --- input


def _fixed_order(draw: Any) -> Any:
    def drawn(rng: np.random.Generator, settings: Any) -> np.ndarray:
        row: np.ndarray = draw(rng, settings)
        row[5:9] = range(4)
        return row

    return drawn


def _no_blur_of_small_crops(draw: Any) -> Any:
    def drawn(width: int, height: int, views: Any, settings: Any, rng: np.random.Generator) -> Any:
        found = draw(width, height, views, settings, rng)
        for each in found[1:]:
            each.parameters[:, 10] = 0
        return found

    return drawn


def _without_antialias(image: Tensor, box: Any, size_px: int) -> Tensor:
    left, top, right, bottom = box
    cut = image[None, :, top:bottom, left:right].float()
    resized = F.interpolate(cut, (size_px, size_px), mode="bilinear", antialias=False)
    return resized[0].round().to(torch.uint8)


def _zeros(pad: Any) -> Any:
    return lambda x, padding: pad(x, padding) * 0


def _labels_shuffled(read: Any) -> Any:
    def shuffled(*arguments: Any) -> Any:
        images = read(*arguments)
        labels = np.random.default_rng(0).permutation(images.labels).tolist()
        return dataclasses.replace(images, labels=labels)

    return shuffled


# --- other methods


def _updated_after(before: Any) -> Any:
    """MoCo whose keys come from the key encoder of the step before."""

    def late(self: Moco, step: int, crops: list[Tensor], labels: Tensor) -> Any:
        momentum, self.config.momentum = self.config.momentum, 1.0
        out = before(self, step, crops, labels)
        self.config.momentum = momentum
        with torch.no_grad():
            for key, weight in zip(self.key_encoder.parameters(), self.net.parameters(), strict=True):
                key.lerp_(weight, 1 - momentum)
        return out

    return late


def _first_bank_always(assign: Any) -> Any:
    return lambda self, head, rows, epoch: assign(self, head, self.bank.embeddings[0], epoch)  # noqa: ARG005


def _centroids_not_normalized(rows: Tensor, centroids: Tensor, num_iterations: int) -> tuple[Tensor, Tensor]:
    for _ in range(num_iterations):
        labels = deepcluster.nearest_centroids(rows, centroids)
        sums = torch.zeros_like(centroids).index_add_(0, labels, rows)
        counts = torch.bincount(labels, minlength=len(centroids)).to(rows.dtype)[:, None]
        centroids = torch.where(counts > 0, sums / counts.clamp_min(1), centroids)
    return centroids, deepcluster.nearest_centroids(rows, centroids)


def _own_pair_among_negatives(embeddings: Tensor, num_crops: int, temperature: float) -> Tensor:
    own = embeddings.unflatten(0, (num_crops, -1))
    positives = torch.einsum("cid,oid->ico", own, own) / temperature
    similarities = torch.einsum("cid,jod->icjo", own, own.transpose(0, 1)) / temperature
    itself = (
        torch.eye(own.shape[1], dtype=torch.bool)[:, None, :, None] & torch.eye(num_crops, dtype=torch.bool)[:, None]
    )
    negatives = similarities.masked_fill(itself, -torch.inf).flatten(2).logsumexp(dim=2)
    terms = F.softplus(negatives[:, :, None] - positives).flatten(1)
    return terms[:, 1:].unflatten(1, (num_crops - 1, num_crops + 1))[:, :, :-1].flatten().mean()


# --- evaluations


def _batchnorm_trains(train: Any) -> Any:
    def everything(self: linear.LinearProbe, mode: bool = True) -> linear.LinearProbe:
        nn.Module.train(self, mode)
        return self

    return everything


def _eval_mode(init: Any) -> Any:
    def build(self: classifier.ClassifierTask, *arguments: Any) -> None:
        init(self, *arguments)
        self.net_on_all_ranks.eval()

    return build


def _one_epoch_late(rate: Any) -> Any:
    return lambda epoch, *rest: rate(epoch - 1, *rest)


def _swapped_rates(rates: Any) -> Any:
    return lambda *arguments: rates(*arguments)[::-1]


def _last_layer_only(compute: Any) -> Any:
    return lambda logits, boxes, *rest: compute(logits[-1:], boxes[-1:], *rest)


def _positives_weighted_once(rows: np.ndarray, present: np.ndarray, cost: float) -> Any:
    svm = LinearSVC(C=cost, dual=True, tol=1e-4, max_iter=2000, random_state=0)
    return svm.fit(rows, present)


SWAV, QUEUED = "swav_100ep", "swav_200ep_bs256"

FAULTS = (
    Fault("temperature .11 for .1", SWAV, "loss", {"method.temperature": 0.11}),
    Fault("epsilon .03 for .02", SWAV, "assignment_entropy", {"method.epsilon": 0.03}),
    Fault("2 Sinkhorn iterations for 3", SWAV, "assignment_entropy", {"method.num_sinkhorn_iterations": 2}),
    Fault(
        "Sinkhorn ends with the prototypes", SWAV, "assignment_entropy", plant=replaced(swav, "sinkhorn", _columns_last)
    ),
    Fault("learning rate x 1.1", SWAV, "learning rate", {"optimizer.lr": 1.32}),
    Fault(
        "warm-up one step longer",
        SWAV,
        "learning rate",
        plant=wrapped(schedule, "warmup_cosine_lr", _warmup_one_step_longer),
    ),
    Fault("cosine per epoch", SWAV, "learning rate", plant=wrapped(pretrain, "learning_rate", _per_epoch(6))),
    Fault("momentum .95 for .9", SWAV, "movement of", {"optimizer.momentum": 0.95}),
    Fault("weight decay x 10", SWAV, "movement of", {"optimizer.weight_decay": 1e-5}),
    Fault("biases without weight decay", SWAV, "movement of", plant=wrapped(Larc, "step", _no_decay_of_vectors)),
    Fault(
        "LARC scales zero weights, too",
        SWAV,
        "movement of",
        plant=wrapped(Larc, "_scale_gradients", _zero_norms_adapted),
    ),
    Fault("trust coefficient .002 for .001", SWAV, "movement of", {"optimizer.trust_coefficient": 0.002}),
    Fault("no LARC", SWAV, "movement of", {"optimizer.trust_coefficient": None}),
    Fault(
        "prototypes not normalized",
        SWAV,
        "assignment_entropy",
        plant=replaced(Swav, "before_forward", lambda _: None),
    ),
    Fault(
        "prototypes frozen for a step too many",
        SWAV,
        "gradient norm",
        plant=wrapped(Swav, "__init__", _freeze_one_step_more),
        num_steps=9,
    ),
    Fault(
        "own crop among the predictions",
        SWAV,
        "loss",
        plant=replaced(swav, "swapped_prediction_loss", partial(_loss_of_pairs, own=True, too_many=0)),
    ),
    Fault(
        "mean over one pair too many",
        SWAV,
        "loss",
        plant=replaced(swav, "swapped_prediction_loss", partial(_loss_of_pairs, own=False, too_many=2)),
    ),
    Fault("hard assignments", SWAV, "assignment_entropy", {"method.hard_assignments": True}),
    Fault(
        "queue: one step early",
        QUEUED,
        "assignment_entropy",
        plant=wrapped(Swav, "__init__", _queue_one_step_early),
        num_steps=12,
    ),
    Fault(
        "queue: the other crop's block",
        QUEUED,
        "assignment_entropy",
        plant=wrapped(Queue, "push", _swapped_blocks),
        num_steps=12,
    ),
    Fault(
        "queue: order of blocks", QUEUED, "state of queue", plant=replaced(Queue, "push", _oldest_first), num_steps=12
    ),
    Fault("queue: not used", QUEUED, "assignment_entropy", {"method.queue_start_epochs": 99}, num_steps=12),
    Fault("BatchNorm over half of the batch", SWAV, "assignment_entropy", {"network.batchnorm_group_size": 8}),
    Fault("BatchNorm's momentum .01", SWAV, "movement of", plant=wrapped(nn.BatchNorm2d, "__init__", _slow_statistics)),
    Fault("embeddings not normalized", SWAV, "assignment_entropy", plant=replaced(F, "normalize", lambda x, **_: x)),
    Fault("deviation .229 for .228", SWAV, "pixels", {"normalize.std": [0.229, 0.224, 0.225]}),
    Fault("order of jitter fixed", SWAV, "pixels", plant=wrapped(multicrop, "draw_augment_parameters", _fixed_order)),
    Fault("no blur of small crops", SWAV, "pixels", plant=wrapped(multicrop, "draw_crops", _no_blur_of_small_crops)),
    Fault(
        "flips with probability .45", SWAV, "projection of view", {"crops.augment.flip_probability": 0.45}, num_steps=6
    ),
    Fault("gray with probability .1", SWAV, "pixels", {"crops.augment.grayscale_probability": 0.1}),
    Fault("jitter of half strength", SWAV, "pixels", {"crops.augment.color_jitter": [0.2, 0.2, 0.2, 0.05]}),
    Fault("crops from .08 of the image", SWAV, "pixels", {"crops.views.0.scale": [0.08, 1.0]}),
    Fault("no antialiasing", SWAV, "pixels", plant=replaced(multicrop, "crop_and_resize", _without_antialias)),
    Fault("blur: edges not mirrored", SWAV, "pixels", plant=wrapped(F, "pad", _zeros)),
    Fault(
        "seed shared by all epochs",
        SWAV,
        "indices",
        plant=wrapped(sampler, "epoch_permutation", lambda draw: lambda n, seed, _: draw(n, seed, 0)),
        num_steps=7,
    ),
    Fault("seed 1", SWAV, "initial norm", {"seed": 1}),
    Fault("a narrower trunk", SWAV, "initial norm", {"network.width": 0.125}),
    Fault(
        "labels shuffled",
        "supervised",
        "labels and boxes",
        plant=wrapped(pretrain, "read_image_list", _labels_shuffled),
    ),
    Fault(
        "milestones an epoch late", "supervised", "learning rate", {"optimizer.milestones": [0.6, 0.8]}, num_steps=12
    ),
    Fault(
        "key encoder updated after the keys",
        "moco_v2_200ep",
        "loss",
        plant=wrapped(Moco, "before_step", _updated_after),
    ),
    Fault("MoCo's temperature of v1", "moco_v2_200ep", "loss", {"method.temperature": 0.07}),
    Fault(
        "k-means on the first bank only",
        "deepcluster_v2_800ep",
        "prototypes_used",
        plant=wrapped(DeepCluster, "assign_labels", _first_bank_always),
    ),
    Fault(
        "centroids not normalized",
        "deepcluster_v2_800ep",
        "prototypes_used",
        plant=replaced(deepcluster, "spherical_kmeans", _centroids_not_normalized),
    ),
    Fault("SeLa-v2's epsilon x 2", "sela_v2_400ep_2x224", "loss", {"method.epsilon": 0.04}),
    Fault(
        "own pair among SimCLR's negatives",
        "simclr_1000ep",
        "loss",
        plant=replaced(simclr, "contrastive_loss", _own_pair_among_negatives),
    ),
    Fault("SimCLR's temperature .2", "simclr_1000ep", "loss", {"method.temperature": 0.2}),
    Fault("kNN: bilinear for bicubic", "knn", "mean of features", {"protocol.center_crop.interpolation": "bilinear"}),
    Fault("kNN: temperature .1 for .07", "knn", "winning share", {"protocol.temperature": 0.1}),
    Fault("kNN: pooled features for the head's", "knn_head", "mean of features", {"protocol.features": "pooled"}),
    Fault("linear: weight decay x 10", "linear_places205", "movement of", {"protocol.weight_decay": 1e-3}),
    Fault("linear: no Nesterov", "linear_places205", "movement of", {"protocol.nesterov": False}),
    Fault("linear: no BatchNorm", "linear_inat18", "loss", {"protocol.feature_batchnorm": False}),
    Fault("linear: a grid of features for their average", "linear_inat18", "initial norm of", {"protocol.grid": 2}),
    Fault(
        "linear: the trunk's BatchNorm trains",
        "linear_imagenet",
        "loss",
        plant=wrapped(linear.LinearProbe, "train", _batchnorm_trains),
    ),
    Fault(
        "linear: milestones an epoch late",
        "linear_places205",
        "learning rate",
        plant=wrapped(linear, "multistep_lr", _one_epoch_late),
        num_steps=12,
    ),
    Fault(
        "finetuning: rates of trunk and head swapped",
        "semisup_1pct",
        "learning rate",
        plant=wrapped(finetune, "learning_rates", _swapped_rates),
    ),
    Fault(
        "finetuning: BatchNorm in eval mode",
        "semisup_1pct",
        "loss",
        plant=wrapped(classifier.ClassifierTask, "__init__", _eval_mode),
    ),
    Fault("DETR: weight of 'no object' 1", "coco_detr", "loss", {"protocol.loss_weights.no_object": 1.0}),
    Fault("DETR: the trunk's rate x 2", "coco_detr", "learning rate", {"protocol.lr_backbone": 6e-5}),
    Fault("DETR: no auxiliary losses", "coco_detr", "loss", plant=wrapped(coco_detr, "losses", _last_layer_only)),
    Fault("DETR: clipped at 1", "coco_detr", "movement of", {"protocol.clip_norm": 1.0}),
    Fault("Faster R-CNN: BGR", "voc_detection", "projection of view", {"protocol.detectron2.INPUT.FORMAT": "BGR"}),
    Fault(
        "Faster R-CNN: mean of BGR",
        "voc_detection",
        "initial",
        {"protocol.detectron2.MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675]},
    ),
    Fault(
        "Faster R-CNN: anchors",
        "voc_detection",
        "initial",
        {"protocol.detectron2.MODEL.ANCHOR_GENERATOR.SIZES": [[32, 64, 128]]},
    ),
    Fault(
        "Faster R-CNN: no extra norm",
        "voc_detection",
        "initial",
        {"protocol.detectron2.MODEL.ROI_HEADS.NAME": "Res5ROIHeads"},
    ),
    Fault(
        "SVM: positives weighted once",
        "voc07_svm",
        "average precision",
        plant=replaced(voc07_svm, "fit_svm", _positives_weighted_once),
    ),
    Fault("SVM: one cost for all classes", "voc07_svm", "average precision", {"protocol.costs": [0.01]}),
)

NO_FAULTS = (
    *(Fault("none", recipe, "", num_steps=12) for recipe in (SWAV, "simclr_1000ep", "knn", "linear_places205")),
    Fault(
        "the right pairs, added up in another order", SWAV, "",
        plant=replaced(swav, "swapped_prediction_loss", partial(_loss_of_pairs, own=False, too_many=0)),
    ),
)  # fmt: skip
"""What no comparison may notice."""
