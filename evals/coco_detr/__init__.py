"""DETR finetuned on COCO from a trunk (B.4, Table 5; Table 3's last column)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from evals.coco_detr.detector import Detr, Size
from evals.coco_detr.losses import Target, Weights, corners, losses
from evals.coco_detr.score import average_precision, shown
from evals.coco_detr.views import Views, test_pictures, training_batches
from evals.context import EvalContext
from models.networks.resnet import ResNet
from reproduce.data.datasets.coco import CocoSplit, annotation_path, read_coco_split
from reproduce.data.datasets.image_folder import ImageList
from reproduce.data.pipeline.sampler import StepSampler
from reproduce.engine.batchnorm import wrap_for_distributed
from reproduce.engine.distributed.collectives import all_reduce_sum, device, is_main, rank, world_size
from reproduce.engine.loop import StepLogger, StepOutput, Trainer, TrainTask, nan_guard, resume
from reproduce.engine.precision import autocast, loss_scaler
from reproduce.engine.runs.detection_examples import write_examples
from reproduce.errors import UserError

Batch = tuple[Tensor, Tensor, list[Target]]
"""Images `(B, 3, H, W)`, their padding `(B, H, W)` and a target each."""


@dataclass
class ProtocolConfig:
    """conf/eval/coco_detr.yaml.

    Learning rates, `lr_backbone` that of the trunk, are for `base_batch_size`; another `batch_size` scales them in
    proportion. After `lr_drop_epoch` they are multiplied by `lr_factor`. Average precision is taken every
    `validate_every_epochs`, and after the last.
    """

    name: str
    epochs: int
    batch_size: int
    base_batch_size: int
    lr: float
    lr_backbone: float
    lr_factor: float
    lr_drop_epoch: int
    weight_decay: float
    clip_norm: float
    validate_every_epochs: int
    transformer: Size
    loss_weights: Weights
    transforms: Views


def evaluate(trunk: ResNet, protocol: ProtocolConfig, context: EvalContext) -> dict[str, float]:
    """Finetune the detector, and give COCO's average precision in percent after the last epoch (`score.METRICS`)."""
    train, val = (
        read_coco_split(context.root, split, context.dataset.source, context.run.handle_bad_annotations)
        for split in (context.dataset.train, context.dataset.val)
    )
    if train.category_names != val.category_names:
        files = [str(annotation_path(context.root, split)) for split in (context.dataset.train, context.dataset.val)]
        raise UserError(f"{files[0]} and {files[1]} name different categories: one number would mean two classes")
    for split, found in ((context.dataset.train, train), (context.dataset.val, val)):
        context.run.record_split(
            split, ImageList([picture.path for picture in found.images], [0] * len(found.images), [])
        )
    context.run.provenance["annotations_sha256"] = {"train": train.sha256, "val": val.sha256}
    context.run.counts["num_train_images"] = len(train.images)
    torch.manual_seed(context.cfg.seed)
    net = Detr(trunk, protocol.transformer, train.num_classes).to(device())
    scale = context.lr_scale(protocol.batch_size, protocol.base_batch_size)
    adamw, scaler = build_optimizer(net, protocol), loss_scaler(context.cfg.precision)
    checkpoints, first_step = resume(context.run, model=net, optimizer=adamw, scaler=scaler)
    sampler = StepSampler(
        len(train.images),
        protocol.batch_size,
        protocol.epochs,
        context.cfg.seed,
        first_step,
        rank(),
        world_size(),
    )
    steps_per_epoch = sampler.steps_per_epoch
    batches = training_batches(
        train.images,
        protocol.transforms,
        context.normalize,
        sampler,
        num_workers=context.cfg.cluster.num_workers,
        device=device(),
        on_unreadable=context.run.handle_unreadable_images,
    )
    task = DetrTask(net, wrap_for_distributed(net), val, protocol, context, steps_per_epoch)
    trainer = Trainer(
        task=task,
        optimizer=adamw,
        learning_rates=lambda step: [lr * scale for lr in learning_rates(protocol, step // steps_per_epoch)],
        scaler=scaler,
        clip_norm=protocol.clip_norm,
        guard=nan_guard(context.run, "protocol.lr"),
        logger=StepLogger(context.run.metrics.log, context.cfg.logging.every_steps, protocol.batch_size),
        checkpoints=checkpoints,
        preemption=context.preemption,
    )
    trainer.train(batches, first_step, protocol.epochs * steps_per_epoch)
    # A run that was killed between its last checkpoint and its result has trained, but not validated.
    return task.metrics or score(net, val, protocol.transforms, context)


class DetrTask(TrainTask[Batch]):
    """The detector's loss on augmented images, and average precision on the validation set every few epochs."""

    def __init__(
        self,
        net: Detr,
        net_on_all_ranks: nn.Module,
        val: CocoSplit,
        protocol: ProtocolConfig,
        context: EvalContext,
        steps_per_epoch: int,
    ) -> None:
        self.net, self.net_on_all_ranks, self.val = net, net_on_all_ranks, val
        self.protocol, self.context = protocol, context
        self.validate_every_steps = self.steps_per_epoch = steps_per_epoch
        self.metrics: dict[str, float] = {}
        """Of the last validation."""
        net_on_all_ranks.train()

    def forward(self, batch: Batch, step: int) -> StepOutput:
        """Compute the loss of this rank's images; see `loss`."""
        with autocast(self.context.cfg.precision):
            return StepOutput(
                loss(self.net_on_all_ranks, batch, self.protocol.loss_weights, (self.context.cfg.seed, step))
            )

    def validate(self, num_steps_done: int) -> dict[str, float]:
        """Return the average precision every `validate_every_epochs` and after the last epoch, else {}."""
        epoch = num_steps_done // self.steps_per_epoch
        if epoch % self.protocol.validate_every_epochs and epoch < self.protocol.epochs:
            return {}
        self.metrics = score(self.net, self.val, self.protocol.transforms, self.context)
        self.net_on_all_ranks.train()
        return self.metrics


def build_optimizer(net: Detr, protocol: ProtocolConfig) -> torch.optim.Optimizer:
    """AdamW with the trunk's parameters, as far as they train, in a group of their own, the second."""
    of_trunk = [value for value in net.backbone.parameters() if value.requires_grad]
    others = [value for name, value in net.named_parameters() if not name.startswith("backbone.")]
    return torch.optim.AdamW(
        [{"params": others}, {"params": of_trunk}], protocol.lr, weight_decay=protocol.weight_decay
    )


def learning_rates(protocol: ProtocolConfig, epoch: int) -> list[float]:
    """The epoch's learning rates of the transformer with its heads, and of the trunk."""
    factor = protocol.lr_factor if epoch >= protocol.lr_drop_epoch else 1
    return [lr * factor for lr in (protocol.lr, protocol.lr_backbone)]


def loss(net: nn.Module, batch: Batch, weights: Weights, drawn_from: tuple[int, int]) -> Tensor:
    """The sum of all decoder layers' losses on a batch of images, padding and targets.

    Dropout is drawn anew from `drawn_from`, seed, step and rank: a run resumed by as many processes draws
    the same.
    """
    torch.manual_seed(int(np.random.SeedSequence([*drawn_from, rank()]).generate_state(1, np.uint64)[0]))
    images, padding, targets = batch
    logits, boxes = net(images, padding)
    with torch.autocast(images.device.type, enabled=False):
        logits, boxes = (tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in (logits, boxes))
        return losses(logits, boxes, targets, weights).sum()


@torch.no_grad()
def score(net: Detr, val: CocoSplit, views: Views, context: EvalContext) -> dict[str, float]:
    """Average precision on a split, which the ranks share. A collective; leaves `net` in eval mode."""
    net.eval()
    share = range(rank(), len(val.images), world_size())
    num_queries = net.query_embed.num_embeddings
    found = torch.zeros(len(val.images), num_queries, 6, dtype=torch.float64, device=device())
    seen = torch.zeros(len(val.images), device=device())
    pictures = test_pictures(
        [val.images[number] for number in share],
        views,
        context.normalize,
        num_workers=context.cfg.cluster.num_workers,
        device=device(),
        on_unreadable=context.run.handle_unreadable_images,
    )
    for number, image, padding in pictures:
        with autocast(context.cfg.precision):
            logits, boxes = net(image, padding)
        about = val.images[share[number]]
        found[share[number]] = detected(logits[-1, 0], boxes[-1, 0], about.width, about.height)
        seen[share[number]] = 1
    all_reduce_sum(found)
    all_reduce_sum(seen)
    known = seen.bool().tolist()
    ids = np.array([picture.id for picture in val.images])[known]
    if not len(ids):
        raise UserError(
            f"none of the {len(val.images)} pictures of {context.root / context.dataset.val} can be decoded"
        )
    context.run.counts["num_test_images"] = len(ids)
    rows = found[seen.bool()].flatten(0, 1).cpu().numpy()
    detections = np.column_stack([np.repeat(ids, num_queries), rows])
    if is_main():
        write_examples(context.run.folder, shown(val, ids.tolist(), detections))
    return average_precision(val.ground_truth, detections, ids.tolist())


def detected(logits: Tensor, boxes: Tensor, width: int, height: int) -> Tensor:
    """What the queries of one picture found: `(Q, 6)` float64, left, top, width, height in pixels, score, class.

    The class is the likeliest that is an object, the score its probability.
    """
    scores, labels = logits.double().softmax(-1)[:, :-1].max(-1)
    x = corners(boxes.double()) * boxes.new_tensor([width, height, width, height]).double()
    return torch.cat([x[:, :2], x[:, 2:] - x[:, :2], scores[:, None], labels[:, None].double()], dim=1)
