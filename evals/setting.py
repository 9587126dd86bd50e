"""What every evaluation is given, the features of a set of pictures, and the training of a classifier."""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproduce.config.schema import Augment, Crops, Dataset, Normalize, View
from reproduce.data.datasets.image_folder import ImageList, read_train_and_val
from reproduce.data.pipeline.dataloader import OnUnreadable, center_crop_batches, multicrop_batches
from reproduce.data.pipeline.sampler import EpochOrder, StepSampler, epoch_order_for, epoch_permutation
from reproduce.engine.batchnorm import wrap_for_distributed
from reproduce.engine.checkpoint import CheckpointManager, Stateful
from reproduce.engine.distributed.collectives import (
    all_reduce_mean,
    all_reduce_sum,
    any_rank,
    device,
    is_main,
    rank,
    world_size,
)
from reproduce.engine.distributed.preemption import Preemption
from reproduce.engine.features import Features, FeatureStore
from reproduce.engine.precision import autocast, loss_scaler
from reproduce.engine.runs.counts import Counts
from reproduce.errors import TrainingFailed, UserError

FEATURE_BATCH = 128
"""Pictures per forward pass without gradients; it changes speed and memory, not features."""
CROP_AREA = [0.08, 1.0]
"""RandomResizedCrop's default share of the picture."""
FLIP_ONLY = Augment(0.5, [0.0, 0.0, 0.0, 0.0], 0.0, 0.0, 0.0, [0.0, 0.0])
SCORES = ("top1", "top5")
Batch = TypeVar("Batch")


@dataclass
class Pixels:
    """The test-time pipeline: resize the shorter side, cut the centre."""

    resize_px: int
    crop_px: int


@dataclass
class Setting:
    """Where an evaluation's pictures are, and how it reads and tells. `counts` and `provenance` go into the result."""

    root: Path
    dataset: Dataset
    normalize: Normalize
    seed: int
    precision: str
    num_workers: int
    num_threads: int
    on_unreadable: OnUnreadable
    on_broken: OnUnreadable
    """As `on_unreadable`, for annotations: a sentence for each that is wrong."""
    tell: Callable[..., None]
    forget_after: Callable[[int], None]
    counts: Counts
    provenance: dict[str, Any]
    checkpoint_sha256: str
    """Of the trunk that is judged."""
    lr_batch_size: int
    """The batch that a protocol's learning rates are for."""
    store: FeatureStore
    checkpoint: Path
    """Where the evaluation keeps its own, while it trains."""
    save_every_seconds: float
    sync_every_steps: int
    preemption: Preemption
    quote: Callable[[str, ImageList], None]
    """Notes in the result which pictures a split is."""

    def splits(self) -> tuple[ImageList, ImageList]:
        """The pictures to train on and to judge by, of a set in classes; they are quoted in the result."""
        train, val = read_train_and_val(self.root, self.dataset)
        for split, pictures in ((self.dataset.train, train), (self.dataset.val, val)):
            self.quote(split, pictures)
        return train, val

    def lr_scale(self, batch_size: int, lr_batch_size: int | None = None) -> float:
        """By what a protocol's learning rates are multiplied for this batch: in proportion, and told in the result.

        `lr_batch_size` is the batch that they are for, where it is not the linear evaluations'.
        """
        given = lr_batch_size or self.lr_batch_size
        scale = batch_size / given
        if scale != 1:
            note = f"learning rates x {scale:g}: batch {batch_size} in place of the protocol's {given}"
            self.provenance["lr_scaled"] = note
            if is_main():
                print(note, flush=True)
        return scale


def features(trunk: nn.Module, pictures: ImageList, pixels: Pixels, setting: Setting) -> Features:
    """Pooled features of the centre crops, from the disk where they lie there, else shared by all ranks and kept.

    Pictures that can't be decoded are left out (or stop the run).
    """
    about = {
        "checkpoint_sha256": setting.checkpoint_sha256,
        "pictures_sha256": pictures.sha256(),
        # That knows no folders: two splits, or two sets, may have the same names.
        "paths_sha256": hashlib.sha256("\n".join(pictures.paths).encode()).hexdigest(),
        "pixels": dataclasses.asdict(pixels),
        "normalize": [list(setting.normalize.mean), list(setting.normalize.std)],
        "precision": setting.precision,
    }
    found = setting.store.find(about)
    if any_rank(found is None) or found is None:  # another run may have put them there since another rank looked
        bad: list[str] = []
        found = setting.store.write(about, _rows(trunk, pictures, pixels, setting, bad), bad)
    setting.on_unreadable(found.bad)
    return found


@torch.no_grad()
def _rows(
    trunk: nn.Module, pictures: ImageList, pixels: Pixels, setting: Setting, bad: list[str]
) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's share, which the disk reads forward: indices among all pictures, and features. Bad ones: `bad`."""
    trunk.eval()
    start, end = (len(pictures) * number // world_size() for number in (rank(), rank() + 1))

    def note(names: list[str]) -> None:
        setting.on_unreadable(names)
        bad.extend(names)

    mine = pictures.reading_order()[start:end]
    share = pictures.subset(mine.tolist())
    for number, (index, images) in enumerate(_centres(share, pixels, setting, note), start=1):
        with autocast(setting.precision):
            rows = trunk(images)
        yield torch.from_numpy(mine)[index], rows
        if world_size() == 1:  # shares have unequal numbers of batches: ranks ask each other afterwards
            setting.preemption.stop_if_requested(number, "features are worked out anew")
    setting.preemption.stop_if_requested(0, "features are worked out anew")


def _centres(
    pictures: ImageList, pixels: Pixels, setting: Setting, on_unreadable: OnUnreadable
) -> Iterator[tuple[Tensor, Tensor]]:
    return center_crop_batches(
        pictures,
        pixels.resize_px,
        pixels.crop_px,
        setting.normalize,
        batch_size=FEATURE_BATCH,
        num_workers=setting.num_workers,
        device=device(),
        on_unreadable=on_unreadable,
    )


class _Scores:
    """Accuracies of the last epoch, and of the best by top-1 on the validation set."""

    def __init__(self) -> None:
        self.last = dict.fromkeys(SCORES, 0.0)
        self.best = dict(self.last)

    def take(self, scores: dict[str, float]) -> None:
        self.last = scores
        self.best = max(self.best, scores, key=lambda each: each["top1"])

    def state_dict(self) -> dict[str, Any]:
        return {"last": self.last, "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.last, self.best = state["last"], state["best"]


def train_classifier(
    net: nn.Module,
    kept: Mapping[str, Stateful],
    optimizer: torch.optim.Optimizer,
    learning_rates: Callable[[int], list[float]],
    train: ImageList,
    val: ImageList,
    *,
    epochs: int,
    batch_size: int,
    pixels: Pixels,
    setting: Setting,
) -> dict[str, float]:
    """Train `net` (images to logits) on random crops and flips, judge it on centre crops after every epoch.

    `kept` are the parts of `net` that training changes. BatchNorm that trains is synced over ranks. The rest is as
    `train_network` says.
    Returns `top1` and `top5` of the last epoch in percent, and as `top1_best` and `top5_best` those of the epoch with
    the best top-1 on the validation set, which is what the released code reports.
    """
    scores = _Scores()
    crop = Crops("one", [View(1, pixels.crop_px, CROP_AREA)], FLIP_ONLY, setting.normalize)
    batches = partial(
        multicrop_batches,
        train,
        crop,
        num_workers=setting.num_workers,
        device=device(),
        on_unreadable=setting.on_unreadable,
    )

    def loss(trained: nn.Module, batch: tuple[list[Tensor], Tensor], _: int) -> Tensor:
        (images,), labels = batch
        return F.cross_entropy(trained(images), labels)

    def judge(_: int) -> dict[str, float]:
        scores.take(accuracy(net, val, pixels, setting))
        return scores.last

    train_network(
        net,
        {**kept, "scores": scores},
        optimizer,
        learning_rates,
        batches,
        loss,
        judge,
        num_images=len(train),
        epochs=epochs,
        batch_size=batch_size,
        setting=setting,
        order=epoch_order_for(train, batch_size),
    )
    return scores.last | {f"{name}_best": value for name, value in scores.best.items()}


def train_network(
    net: nn.Module,
    kept: Mapping[str, Stateful],
    optimizer: torch.optim.Optimizer,
    learning_rates: Callable[[int], list[float]],
    batches: Callable[[StepSampler], Iterator[Batch]],
    loss_of: Callable[[nn.Module, Batch, int], Tensor],
    judge: Callable[[int], dict[str, float]],
    *,
    num_images: int,
    epochs: int,
    batch_size: int,
    setting: Setting,
    order: EpochOrder = epoch_permutation,
    clip_norm: float = math.inf,
) -> None:
    """Train `net` as all ranks share it: `loss_of(net, batch, step)` on each of the sampler's `batches`.

    `learning_rates(epoch)` has one for each of the optimiser's groups; gradients longer than `clip_norm`, all together,
    are shortened to it. `judge(epoch)`, with the number of epochs done, gives numbers for the curves, and may leave
    `net` in eval mode. Goes on from the run's last checkpoint, which holds `kept` and the optimiser. Raises
    `TrainingFailed` where the loss is not finite at the end of an epoch, `Preempted` where the run was asked to stop.
    """
    scaler = loss_scaler(setting.precision)
    checkpoints = CheckpointManager(
        setting.checkpoint,
        {**kept, "optimizer": optimizer, "scaler": scaler, "counts": setting.counts},
        setting.save_every_seconds,
        setting.sync_every_steps,
    )
    first_step = checkpoints.resume()
    sampler = StepSampler(num_images, batch_size, epochs, setting.seed, first_step, rank(), world_size(), order=order)
    setting.forget_after(first_step // sampler.steps_per_epoch)
    num_steps = epochs * sampler.steps_per_epoch
    trained = wrap_for_distributed(net)
    trained.train()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for step, batch in enumerate(batches(sampler), start=first_step):
        for group, lr in zip(optimizer.param_groups, learning_rates(step // sampler.steps_per_epoch), strict=True):
            group["lr"] = lr
        with autocast(setting.precision):
            loss = loss_of(trained, batch, step)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        if clip_norm < math.inf:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, clip_norm)
        scaler.step(optimizer)
        scaler.update()
        done = step + 1
        if done % sampler.steps_per_epoch == 0:
            epoch, mean_loss = done // sampler.steps_per_epoch, all_reduce_mean(loss.detach().clone()).item()
            if not math.isfinite(mean_loss):
                raise TrainingFailed(f"the loss is {mean_loss} after epoch {epoch}: lower protocol.lr")
            values = judge(epoch)
            trained.train()
            setting.tell(epoch, epochs, loss=mean_loss, **values)
            if done < num_steps:
                checkpoints.save(done)
        whole_epoch = done % sampler.steps_per_epoch == 0
        setting.preemption.checkpoint_and_stop_if_requested(checkpoints, done, num_steps, sync_now=whole_epoch)
        checkpoints.save_if_due(done)
    checkpoints.finish(num_steps)


@torch.no_grad()
def accuracy(net: nn.Module, val: ImageList, pixels: Pixels, setting: Setting) -> dict[str, float]:
    """Top-1 and top-5 in percent on centre crops, which the ranks share. A collective; leaves `net` in eval mode."""
    net.eval()
    share = val.subset(val.reading_order()[rank() :: world_size()].tolist())
    labels = torch.tensor(share.labels, device=device())
    counts = torch.zeros(3, device=device())
    for index, images in _centres(share, pixels, setting, setting.on_unreadable):
        with autocast(setting.precision):
            logits = net(images)
        counts[:2] += top_hits(logits, labels[index.to(device())])
        counts[2] += len(index)
    all_reduce_sum(counts)
    total = int(counts[2].item())
    if not total:
        raise UserError(f"none of the {len(val)} pictures of {setting.root / setting.dataset.val} can be decoded")
    setting.counts["num_test_images"] = total
    return dict(zip(SCORES, (counts[:2] / total * 100).tolist(), strict=True))


def top_hits(logits: Tensor, labels: Tensor) -> Tensor:
    """How many labels `(n,)` are the first, and among the first five, of `logits (n, classes)`: `(2,)`."""
    first = logits.topk(min(5, logits.shape[1]), dim=1).indices
    found = first == labels.unsqueeze(1)
    return torch.stack([found[:, 0].sum(), found.sum()]).float()
