"""The protocol of DETR's finetuning on COCO: its config, training and validation."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from evals.coco_detr import memory
from evals.coco_detr.detector import Detr, TransformerConfig
from evals.coco_detr.losses import LossWeights, Target, class_loss_groups, corners, losses
from evals.coco_detr.metrics import average_precision, detection_examples
from evals.coco_detr.transforms import TransformConfig, test_images, train_batches
from evals.context import EvalContext
from models.networks.resnet import ResNet
from reproduce.data.datasets.coco import CocoSplit, annotation_path, read_coco_split
from reproduce.data.datasets.image_folder import ImageList
from reproduce.data.pipeline.sampler import StepSampler
from reproduce.engine.batchnorm import wrap_for_distributed
from reproduce.engine.distributed.collectives import all_reduce_sum, device, is_main, rank, world_size
from reproduce.engine.first_steps import describe_rows
from reproduce.engine.loop import StepLogger, StepOutput, Trainer, TrainTask, build_nan_guard, resume
from reproduce.engine.memory import MemoryEstimate, require_gpu_memory
from reproduce.engine.precision import at_least_fp32, autocast, loss_scaler
from reproduce.engine.runs.detection_examples import write_examples
from reproduce.errors import UserError

Batch = tuple[Tensor, Tensor, list[Target]]
"""Images `(B, 3, H, W)`, their padding `(B, H, W)` and a target each."""
LR_KEYS = "protocol.lr and protocol.lr_backbone"


@dataclass
class ProtocolConfig:
    """The keys of conf/eval/coco_detr.yaml.

    Learning rates (`lr_backbone` is the trunk's) are for a batch of `base_batch_size`; another `batch_size` scales them
    in proportion. After `lr_drop_epoch` epochs they are multiplied by `lr_factor`. Average precision is computed every
    `validate_every_epochs` and after the last epoch. The class loss is a mean over the queries of
    `class_loss_group_size` images (None: of the whole batch), averaged over these groups.
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
    transformer: TransformerConfig
    loss_weights: LossWeights
    class_loss_group_size: int | None
    transforms: TransformConfig


def evaluate(trunk: ResNet, protocol: ProtocolConfig, context: EvalContext) -> dict[str, float]:
    """Finetune the detector; return COCO's average precision in percent after the last epoch (`metrics.METRICS`).

    Raises `UserError` before any data is read if the GPU is too small, or if the processes can't form the groups of the
    class loss.
    """
    run, cfg = context.run, context.cfg
    class_loss_groups(protocol.batch_size // world_size(), protocol.class_loss_group_size)
    require_gpu_memory(partial(estimate_memory, protocol, world_size(), cfg.precision, trunk.num_features / 2048))
    train, val = _read_splits(context)
    torch.manual_seed(cfg.seed)
    net = Detr(trunk, protocol.transformer, train.num_classes).to(device())
    lr_scale = context.lr_scale(protocol.batch_size, protocol.base_batch_size)
    optimizer, scaler = build_optimizer(net, protocol), loss_scaler(cfg.precision)
    checkpoints, first_step = resume(run, LR_KEYS, model=net, optimizer=optimizer, scaler=scaler)
    sampler = StepSampler(
        len(train.images), protocol.batch_size, protocol.epochs, cfg.seed, first_step, rank(), world_size()
    )
    steps_per_epoch = sampler.steps_per_epoch
    batches = train_batches(
        train.images,
        protocol.transforms,
        context.normalize,
        sampler,
        num_workers=cfg.cluster.num_workers,
        device=device(),
        on_unreadable=run.handle_unreadable_images,
    )
    task = DetrTask(net, wrap_for_distributed(net), val, protocol, context, steps_per_epoch)
    run.first_steps.watch(net, first_step, sampler.batch_at)
    trainer = Trainer(
        task=task,
        optimizer=optimizer,
        learning_rates=lambda step: [lr * lr_scale for lr in learning_rates(protocol, step // steps_per_epoch)],
        scaler=scaler,
        clip_norm=protocol.clip_norm,
        guard=build_nan_guard(run, LR_KEYS),
        recorder=run.first_steps,
        logger=StepLogger(run.metrics.log, cfg.logging.every_steps, protocol.batch_size),
        checkpoints=checkpoints,
        preemption=context.preemption,
    )
    trainer.train(batches, first_step, protocol.epochs * steps_per_epoch)
    # A run that was killed between its last checkpoint and its result has trained, but not validated.
    return task.metrics or validate(net, val, protocol.transforms, context)


def estimate_memory(
    protocol: ProtocolConfig, num_processes: int, precision: str, trunk_width: float = 1
) -> MemoryEstimate:
    """Estimate the memory of a step in each process, on a batch of images of the largest training size."""
    height, width = max(protocol.transforms.train_sizes_px), protocol.transforms.max_size_px
    share = protocol.batch_size // num_processes
    return memory.estimate_memory(protocol.transformer, share, height, width, precision, trunk_width)


def _read_splits(context: EvalContext) -> tuple[CocoSplit, CocoSplit]:
    """Read the training and validation split, and record them in the result."""
    run, names = context.run, (context.dataset.train, context.dataset.val)
    train, val = (
        read_coco_split(context.root, name, context.dataset.source, run.handle_bad_annotations) for name in names
    )
    if train.category_names != val.category_names:
        files = [annotation_path(context.root, name) for name in names]
        raise UserError(f"{files[0]} and {files[1]} name different categories: one number would mean two classes")
    for name, split in zip(names, (train, val), strict=True):
        if not any(len(image.boxes) for image in split.images):
            path = annotation_path(context.root, name)
            raise UserError(f"{path} has no box, crowds aside: there is nothing to train on and nothing to score")
        run.record_split(name, ImageList([image.path for image in split.images], [0] * len(split.images), []))
    run.provenance["annotations_sha256"] = {"train": train.sha256, "val": val.sha256}
    run.counts["num_train_images"] = len(train.images)
    return train, val


class DetrTask(TrainTask[Batch]):
    """DETR's loss on augmented images; average precision on the validation set every few epochs."""

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
        """The average precisions of the last validation."""
        net_on_all_ranks.train()

    def forward(self, batch: Batch, step: int) -> StepOutput:
        """Compute the loss of this rank's images; see `detr_loss`."""
        with autocast(self.context.cfg.precision):
            seed_and_step, group_size = (self.context.cfg.seed, step), self.protocol.class_loss_group_size
            return StepOutput(
                detr_loss(self.net_on_all_ranks, batch, self.protocol.loss_weights, seed_and_step, group_size)
            )

    def validate(self, num_steps_done: int) -> dict[str, float]:
        """Return the average precision every `validate_every_epochs` and after the last epoch, else {}."""
        epoch = num_steps_done // self.steps_per_epoch
        if epoch % self.protocol.validate_every_epochs and epoch < self.protocol.epochs:
            return {}
        self.metrics = validate(self.net, self.val, self.protocol.transforms, self.context)
        self.net_on_all_ranks.train()
        return self.metrics


def build_optimizer(net: Detr, protocol: ProtocolConfig) -> torch.optim.Optimizer:
    """Return AdamW with two parameter groups: the transformer and heads, and the trunk's trainable parameters."""
    trunk = [value for value in net.backbone.parameters() if value.requires_grad]
    others = [value for name, value in net.named_parameters() if not name.startswith("backbone.")]
    return torch.optim.AdamW([{"params": others}, {"params": trunk}], protocol.lr, weight_decay=protocol.weight_decay)


def learning_rates(protocol: ProtocolConfig, epoch: int) -> list[float]:
    """Return the learning rates of both parameter groups in an epoch, for a batch of `base_batch_size`."""
    factor = protocol.lr_factor if epoch >= protocol.lr_drop_epoch else 1
    return [lr * factor for lr in (protocol.lr, protocol.lr_backbone)]


def detr_loss(
    net: nn.Module,
    batch: Batch,
    weights: LossWeights,
    seed_and_step: tuple[int, int],
    class_loss_group_size: int | None = None,
) -> Tensor:
    """Return the sum of all decoder layers' losses on a batch; `losses` explains `class_loss_group_size`.

    Dropout is seeded from seed, step and rank, so that a run that resumes with as many processes draws the same.
    """
    torch.manual_seed(int(np.random.SeedSequence([*seed_and_step, rank()]).generate_state(1, np.uint64)[0]))
    images, padding, targets = batch
    logits, boxes = net(images, padding)
    with torch.autocast(images.device.type, enabled=False):
        logits, boxes = map(at_least_fp32, (logits, boxes))
        return losses(logits, boxes, targets, weights, class_loss_group_size).sum()


@torch.no_grad()
def validate(net: Detr, val: CocoSplit, transforms: TransformConfig, context: EvalContext) -> dict[str, float]:
    """Return the average precision on a split, which the ranks share. A collective; leaves `net` in eval mode."""
    net.eval()
    run, share = context.run, range(rank(), len(val.images), world_size())
    num_queries = net.query_embed.num_embeddings
    detections_of = torch.zeros(len(val.images), num_queries, 6, dtype=torch.float64, device=device())
    is_readable = torch.zeros(len(val.images), device=device())
    images = test_images(
        [val.images[index] for index in share],
        transforms,
        context.normalize,
        num_workers=context.cfg.cluster.num_workers,
        device=device(),
        on_unreadable=run.handle_unreadable_images,
    )
    for number, pixels, padding in images:
        with autocast(context.cfg.precision):
            logits, boxes = net(pixels, padding)
        index = share[number]
        image = val.images[index]
        detections_of[index] = to_detections(logits[-1, 0], boxes[-1, 0], image.width, image.height)
        is_readable[index] = 1
    all_reduce_sum(detections_of)
    all_reduce_sum(is_readable)
    readable = is_readable.bool()
    ids = np.array([image.id for image in val.images])[readable.tolist()]
    if not len(ids):
        folder = context.root / context.dataset.val
        raise UserError(f"none of the {len(val.images)} validation images of {folder} can be decoded")
    run.counts["num_test_images"] = len(ids)
    rows = detections_of[readable].flatten(0, 1).cpu().numpy()
    detections = np.column_stack([np.repeat(ids, num_queries), rows])
    run.first_steps.note_once(describe_rows("first detections", detections_of[0].cpu().numpy()))
    if is_main():
        write_examples(run.folder, detection_examples(val, ids.tolist(), detections))
    return average_precision(val.ground_truth, detections, ids.tolist())


def to_detections(logits: Tensor, boxes: Tensor, width: int, height: int) -> Tensor:
    """Convert one image's logits `(Q, classes + 1)` and boxes `(Q, 4)` to detections `(Q, 6)` float64.

    A detection is left, top, width and height in pixels, score and class. The class is the most likely one other than
    'no object', the score its probability.
    """
    scores, labels = logits.double().softmax(-1)[:, :-1].max(-1)
    x = corners(boxes.double()) * boxes.new_tensor([width, height, width, height]).double()
    return torch.cat([x[:, :2], x[:, 2:] - x[:, :2], scores[:, None], labels[:, None].double()], dim=1)
