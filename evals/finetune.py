"""Finetuning of the whole network on few labels: 1% and 10% of ImageNet (A.4), 13 and 128 images a class (B.5)."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from evals.classifier import ClassifierTraining, train_classifier
from evals.context import CenterCropConfig, EvalContext
from models.networks.trunk import Trunk
from reproduce.data.datasets.image_folder import ImageList
from reproduce.data.datasets.imagenet import NUM_IMAGENET_CLASSES, label_list_source
from reproduce.engine.distributed.collectives import device
from reproduce.engine.schedule import multistep_lr
from reproduce.errors import UserError

IMAGENET_CLASS = re.compile(r"n\d{8}")
SUBSET_SEED = 0
"""Seeds the draw of a subset, which is the same for all runs, as a published list would be."""
MIN_PER_CLASS = 13
"""1% of ImageNet is 13 images a class; a fraction of a smaller dataset has as many, if the class does."""


@dataclass
class LabeledSubset:
    """Which training images are labeled: a fraction of every class, or a number of images of every class.

    On ImageNet a fraction is the published list `file` (one name per line), below the dataset's folder.
    """

    fraction: float | None = None
    file: str | None = None
    sha256: str | None = None
    images_per_class: int | None = None


@dataclass
class ProtocolConfig:
    """The keys of conf/eval/semisup_*.yaml and lowshot_*.yaml. `milestones` are fractions of the epochs.

    Learning rates are for a batch of `base_batch_size`; another `batch_size` scales them in proportion.
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
    subset: LabeledSubset
    center_crop: CenterCropConfig


def evaluate(trunk: Trunk, protocol: ProtocolConfig, context: EvalContext) -> dict[str, float]:
    """Return top-1 and top-5 in percent of the last and of the best epoch; see `train_classifier`.

    Trunk and head have their own learning rates. BatchNorm uses the statistics of the whole batch, over all ranks.
    """
    all_train, val = context.train_and_val()
    train = select_labeled(all_train, protocol.subset, context.root)
    context.run.provenance["subset_sha256"] = train.sha256()
    context.run.counts["num_train_images"] = len(train)
    torch.manual_seed(context.cfg.seed)
    net = nn.Sequential(trunk, nn.Linear(trunk.num_features, len(train.classes)).to(device()))
    groups = [{"params": list(part.parameters())} for part in net]
    optimizer = torch.optim.SGD(
        groups, protocol.lr_head, momentum=protocol.momentum, weight_decay=protocol.weight_decay
    )
    scale = context.lr_scale(protocol.batch_size, protocol.base_batch_size)
    training = ClassifierTraining(
        net,
        {"model": net},
        optimizer,
        learning_rates=lambda epoch: [rate * scale for rate in learning_rates(protocol, epoch)],
        lr_keys="protocol.lr_trunk and protocol.lr_head",
        epochs=protocol.epochs,
        batch_size=protocol.batch_size,
        crop=protocol.center_crop,
    )
    return train_classifier(training, train, val, context)


def learning_rates(protocol: ProtocolConfig, epoch: int) -> tuple[float, float]:
    """Return the learning rates of trunk and head in an epoch, for a batch of `base_batch_size`."""
    trunk, head = (
        multistep_lr(epoch, protocol.epochs, lr, protocol.milestones, protocol.lr_factor)
        for lr in (protocol.lr_trunk, protocol.lr_head)
    )
    return trunk, head


def select_labeled(images: ImageList, subset: LabeledSubset, root: Path) -> ImageList:
    """Return the labeled images in the list's order: ImageNet's from the published list, else a seeded draw per class.

    Raises `UserError` if the list is missing, differs from the published one or names images that do not exist, and if
    a class is too small.
    """
    is_imagenet = len(images.classes) == NUM_IMAGENET_CLASSES and all(map(IMAGENET_CLASS.fullmatch, images.classes))
    if subset.file and is_imagenet:
        return _read_listed(images, root / subset.file, subset.sha256)
    if subset.fraction is not None:
        num_wanted = max(round(subset.fraction * len(images) / len(images.classes)), MIN_PER_CLASS)
        num_required = 1
    else:
        assert subset.images_per_class is not None
        num_wanted = num_required = subset.images_per_class
    labels = np.array(images.labels)
    rng = np.random.default_rng(SUBSET_SEED)
    selected: list[int] = []
    for label, name in enumerate(images.classes):
        candidates = np.flatnonzero(labels == label)
        if len(candidates) < num_required:
            raise UserError(
                f"class {name} of {root} has {len(candidates)} training images, and this protocol needs {num_required} "
                "of each class: add images, or lower protocol.subset.images_per_class"
            )
        selected += sorted(rng.permutation(candidates)[:num_wanted].tolist())
    return images.subset(selected)


def _read_listed(images: ImageList, path: Path, sha256: str | None) -> ImageList:
    source = label_list_source(path.name)
    if not path.is_file():
        raise UserError(f"list {path} is missing: put {source} there")
    content = path.read_bytes()
    if sha256 not in (None, hashlib.sha256(content).hexdigest()):
        raise UserError(f"list {path} is not the one that the paper used (its SHA-256 differs): replace it by {source}")
    index_of = {image.rsplit("/", 1)[-1]: index for index, image in enumerate(images.paths)}
    names = content.decode().split()
    missing = [name for name in names if name not in index_of]
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(names)} images that {path} names are not among the training images of "
            f"{path.parent}, e.g. {missing[0]}: restore them from ImageNet's archive"
        )
    return images.subset(sorted(index_of[name] for name in names))
