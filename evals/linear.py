"""A linear classifier on frozen features, trained by SGD on augmented pictures (A.3, A.5)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evals.setting import FEATURE_BATCH, Pixels, Setting
from models.resnet import ResNet
from reproduce.config import Augment, View
from reproduce.data.batches import centre_batches, crop_batches
from reproduce.data.loader import StepSampler
from reproduce.data.pictures import Pictures, read_splits
from reproduce.engine.distributed import device
from reproduce.engine.schedule import cosine_per_epoch, steps_per_epoch
from reproduce.errors import UserError, nearest

CROP_AREA = [0.08, 1.0]
"""RandomResizedCrop's default share of the picture."""
FLIP_ONLY = Augment(0.5, [0.0, 0.0, 0.0, 0.0], 0.0, 0.0, 0.0, [0.0, 0.0])
WEIGHT_STD = 0.01
SCHEDULES = ("cosine", "steps")


@dataclass
class Protocol:
    """conf/eval/linear_*.yaml. `milestones` are shares of the epochs, for schedule `steps`."""

    name: str
    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    schedule: str
    milestones: list[float]
    pixels: Pixels


def evaluate(trunk: ResNet, protocol: Protocol, setting: Setting) -> dict[str, float]:
    """Top-1 and top-5 of the last epoch and top-1 of the best epoch on the validation set, in percent.

    The released code reports the best; `top1` is the last.
    """
    if protocol.schedule not in SCHEDULES:
        raise UserError(f"there is no schedule {protocol.schedule!r}: {nearest(protocol.schedule, SCHEDULES)}")
    train, val = read_splits(setting.root, setting.dataset.train, setting.dataset.val)
    setting.provenance["data_manifest_sha256"] = train.sha256()
    torch.manual_seed(setting.seed)
    classifier = nn.Linear(trunk.num_features, len(train.classes)).to(device())
    nn.init.normal_(classifier.weight, std=WEIGHT_STD)
    nn.init.zeros_(classifier.bias)
    optimizer = torch.optim.SGD(
        classifier.parameters(), protocol.lr, momentum=protocol.momentum, weight_decay=protocol.weight_decay
    )
    sampler = StepSampler(len(train), protocol.batch_size, protocol.epochs, setting.seed)
    batches = crop_batches(
        train,
        [View(1, protocol.pixels.crop_px, CROP_AREA)],
        FLIP_ONLY,
        setting.normalize,
        sampler,
        num_workers=setting.num_workers,
        device=device(),
        on_bad=setting.on_bad,
    )
    trunk.eval()
    best = {"top1": 0.0, "top5": 0.0}
    for epoch in range(protocol.epochs):
        optimizer.param_groups[0]["lr"] = learning_rate(protocol, epoch)
        for _ in range(sampler.steps_per_epoch):
            (images,), labels = next(batches)
            with torch.no_grad():
                rows = trunk(images)
            loss = F.cross_entropy(classifier(rows), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        last = accuracy(trunk, classifier, val, protocol.pixels, setting)
        best = max(best, last, key=lambda scores: scores["top1"])
        setting.tell(epoch + 1, protocol.epochs, loss=loss.item(), **last)
    return {"top1": last["top1"], "top5": last["top5"], "top1_best": best["top1"]}


def learning_rate(protocol: Protocol, epoch: int) -> float:
    """The epoch's learning rate."""
    if protocol.schedule == "cosine":
        return cosine_per_epoch(epoch, protocol.epochs, protocol.lr)
    return steps_per_epoch(epoch, protocol.epochs, protocol.lr, protocol.milestones)


@torch.no_grad()
def accuracy(trunk: ResNet, classifier: nn.Module, val: Pictures, pixels: Pixels, setting: Setting) -> dict[str, float]:
    """Top-1 and top-5 in percent on centre crops."""
    labels = torch.tensor(val.labels, device=device())
    hits, total = torch.zeros(2, device=device()), 0
    for index, images in centre_batches(
        val,
        pixels.resize_px,
        pixels.crop_px,
        setting.normalize,
        batch_size=FEATURE_BATCH,
        num_workers=setting.num_workers,
        device=device(),
        on_bad=setting.on_bad,
    ):
        hits += top_hits(classifier(trunk(images)), labels[index.to(device())])
        total += len(index)
    setting.counts["num_test_images"] = total
    top1, top5 = (hits / total * 100).tolist()
    return {"top1": top1, "top5": top5}


def top_hits(logits: Tensor, labels: Tensor) -> Tensor:
    """How many labels `(n,)` are the first, and among the first five, of `logits (n, classes)`: `(2,)`."""
    first = logits.topk(min(5, logits.shape[1]), dim=1).indices
    found = first == labels.unsqueeze(1)
    return torch.stack([found[:, 0].sum(), found.sum()]).float()
