"""The whole network finetuned on few labels: 1% and 10% of ImageNet (A.4), 13 and 128 pictures a class (B.5)."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from evals.classifier import train_classifier
from evals.context import CenterCropConfig, EvalContext
from models.networks.resnet import ResNet
from reproduce.data.datasets.image_folder import ImageList
from reproduce.engine.distributed.collectives import device
from reproduce.engine.schedule import multistep_lr
from reproduce.errors import UserError

IMAGENET_CLASS = re.compile(r"n\d{8}")
NUM_IMAGENET_CLASSES = 1000
DRAW_SEED = 0
"""Of drawn subsets: one draw for all runs, as a published list is one for all."""
FEWEST_PER_CLASS = 13
"""A share of a smaller set is no less than what 1% of ImageNet is, where a class has as many."""


@dataclass
class Subset:
    """Which of the training pictures have labels: a share of every class, or so many pictures of every class.

    On ImageNet a share is the published list `file` (names, one a line), which lies in the set's own folder.
    """

    fraction: float | None = None
    file: str | None = None
    sha256: str | None = None
    images_per_class: int | None = None


@dataclass
class ProtocolConfig:
    """conf/eval/semisup_*.yaml and lowshot_*.yaml. `milestones` are shares of the epochs.

    The learning rates are for a batch of `base_batch_size`; another `batch_size` scales them in proportion.
    """

    name: str
    epochs: int
    batch_size: int
    base_batch_size: int
    lr_trunk: float
    lr_head: float
    lr_factor: float
    milestones: list[float]
    momentum: float
    weight_decay: float
    subset: Subset
    center_crop: CenterCropConfig


def evaluate(trunk: ResNet, protocol: ProtocolConfig, context: EvalContext) -> dict[str, float]:
    """Top-1 and top-5 in percent of the last epoch, and of the best on the validation set: see `train_classifier`.

    Trunk and head train at learning rates of their own, BatchNorm on the batch's statistics over all ranks.
    """
    everything, val = context.train_and_val()
    train = labelled(everything, protocol.subset, context.root)
    context.run.provenance["subset_sha256"] = train.sha256()
    context.run.counts["num_train_images"] = len(train)
    torch.manual_seed(context.cfg.seed)
    net = nn.Sequential(trunk, nn.Linear(trunk.num_features, len(train.classes)).to(device()))
    groups = [{"params": list(part.parameters())} for part in net]
    optimizer = torch.optim.SGD(
        groups, protocol.lr_head, momentum=protocol.momentum, weight_decay=protocol.weight_decay
    )
    scale = context.lr_scale(protocol.batch_size, protocol.base_batch_size)
    return train_classifier(
        net,
        {"model": net},
        optimizer,
        lambda epoch: [rate * scale for rate in learning_rates(protocol, epoch)],
        train,
        val,
        epochs=protocol.epochs,
        batch_size=protocol.batch_size,
        crop=protocol.center_crop,
        context=context,
    )


def learning_rates(protocol: ProtocolConfig, epoch: int) -> tuple[float, float]:
    """The epoch's learning rates of trunk and head, for a batch of `base_batch_size`."""
    trunk, head = (
        multistep_lr(epoch, protocol.epochs, lr, protocol.milestones, protocol.lr_factor)
        for lr in (protocol.lr_trunk, protocol.lr_head)
    )
    return trunk, head


def labelled(pictures: ImageList, subset: Subset, root: Path) -> ImageList:
    """The pictures of a subset, in their order; ImageNet's from its list, others by one seeded draw for each class.

    Raises `UserError` where the list is not there, is another, or names what is not there, and where a class is too
    small.
    """
    imagenet = len(pictures.classes) == NUM_IMAGENET_CLASSES and all(map(IMAGENET_CLASS.fullmatch, pictures.classes))
    if subset.file and imagenet:
        return _listed(pictures, root / subset.file, subset.sha256)
    if subset.fraction is not None:
        wanted = max(round(subset.fraction * len(pictures) / len(pictures.classes)), FEWEST_PER_CLASS)
        fewest = 1
    else:
        assert subset.images_per_class is not None
        wanted = fewest = subset.images_per_class
    labels = np.array(pictures.labels)
    rng = np.random.default_rng(DRAW_SEED)
    chosen: list[int] = []
    for number, name in enumerate(pictures.classes):
        of_class = np.flatnonzero(labels == number)
        if len(of_class) < fewest:
            raise UserError(
                f"class {name} of {root} has {len(of_class)} training pictures, and this protocol takes {fewest} of "
                "each class: give more, or lower protocol.subset.images_per_class"
            )
        chosen += sorted(rng.permutation(of_class)[:wanted].tolist())
    return pictures.subset(chosen)


def _listed(pictures: ImageList, path: Path, sha256: str | None) -> ImageList:
    where = f"SimCLR's list {path.name} (github.com/google-research/simclr, imagenet_subsets)"
    if not path.is_file():
        raise UserError(f"list {path} is not there: put {where} at that place")
    content = path.read_bytes()
    if sha256 not in (None, hashlib.sha256(content).hexdigest()):
        raise UserError(f"list {path} is not the one that the paper used (another SHA-256): put {where} in its place")
    at = {picture.rsplit("/", 1)[-1]: index for index, picture in enumerate(pictures.paths)}
    names = content.decode().split()
    gone = [name for name in names if name not in at]
    if gone:
        raise UserError(
            f"{len(gone)} of the {len(names)} pictures that {path} names are not among the training pictures of "
            f"{path.parent}, e.g. {gone[0]}: restore them from ImageNet's archive"
        )
    return pictures.subset(sorted(at[name] for name in names))
