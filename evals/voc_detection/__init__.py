"""Faster R-CNN finetuned on VOC07+12, in Detectron2 (B.4, Tables 3 and 4)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evals.context import EvalContext
from evals.voc_detection.batches import GroupedSteps, Record, Testing, Training, together
from evals.voc_detection.compatibility import (
    BUILD,
    CfgNode,
    EventStorage,
    Instances,
    LRScheduler,
    build_lr_scheduler,
    build_optimizer,
    precise_bn,
)
from evals.voc_detection.detector import build, configuration
from evals.voc_detection.trainer import CheckpointHook, DetectorTrainer, GuardHook, LogHook, step_seed
from evals.voc_detection.voc import evaluator
from models.networks.resnet import ResNet
from reproduce.data.datasets.image_folder import ImageList
from reproduce.data.datasets.voc import VOC_CLASSES, VocImage, read_voc_boxes
from reproduce.data.pipeline.dataloader import build_dataloader
from reproduce.engine.batchnorm import wrap_for_distributed
from reproduce.engine.distributed.collectives import all_reduce_mean, all_reduce_sum, device, is_main, rank, world_size
from reproduce.engine.loop import StepLogger, nan_guard, resume
from reproduce.engine.precision import autocast, loss_scaler
from reproduce.engine.runs import detection_examples
from reproduce.engine.runs.detection_examples import DetectionExample, ExampleBox
from reproduce.errors import UserError


@dataclass
class ProtocolConfig:
    """conf/eval/voc_detection.yaml. `detectron2` are keys of Detectron2's config, over its defaults.

    Its learning rate is for a batch of `base_batch_size`; another `batch_size` scales it in proportion.
    """

    name: str
    batch_size: int
    base_batch_size: int
    detectron2: dict[str, Any]


def evaluate(trunk: ResNet, protocol: ProtocolConfig, context: EvalContext) -> dict[str, float]:
    """`ap`, `ap50` and `ap75` in percent on the test split, by Detectron2's evaluator; {} on ranks other than 0.

    The whole network trains, BatchNorm synced over ranks; before the test, BatchNorm's statistics are taken anew
    (`TEST.PRECISE_BN`). Randomness comes from seed, step and rank alone, so a run resumed by as many processes is the
    uninterrupted one.
    """
    cfg = configuration(protocol.detectron2, trunk)
    cfg.SOLVER.IMS_PER_BATCH = protocol.batch_size
    cfg.SOLVER.BASE_LR *= context.lr_scale(protocol.batch_size, protocol.base_batch_size)
    context.run.provenance["detectron2"] = BUILD
    train, test = read(context)
    torch.manual_seed(context.cfg.seed)
    detector = build(cfg, trunk)
    fit(detector, train, cfg, context)
    return judge(detector, test, context, cfg)


def read(context: EvalContext) -> tuple[list[VocImage], list[VocImage]]:
    """The training pictures that have a box, and the test pictures; what is broken is told."""
    data = context.dataset
    roots = [context.root]
    if data.extra_train_root:  # below the same DATA: `context.root` is DATA / data.root
        roots.append(context.root.parents[len(Path(data.root).parts) - 1] / data.extra_train_root)
    found = [read_voc_boxes(root, data.train) for root in roots]
    test, broken = read_voc_boxes(context.root, data.val)
    context.run.handle_bad_annotations([sentence for _, sentences in found for sentence in sentences] + broken)
    train = [picture for pictures, _ in found for picture in pictures if picture.boxes]
    if not test:
        raise UserError(f"no picture of {data.val} in {context.root} can be used: there is nothing to test on")
    for split, pictures in ((data.train, train), (data.val, test)):
        context.run.record_split(split, ImageList([each.path for each in pictures], [0] * len(pictures), []))
    context.run.counts["num_train_images"] = len(train)
    return train, test


def fit(detector: nn.Module, train: list[VocImage], cfg: CfgNode, context: EvalContext) -> None:
    """Train to the schedule's end, from the run's last checkpoint if there is one."""
    run, logging, num_steps = context.run, context.cfg.logging, cfg.SOLVER.MAX_ITER
    optimizer, scaler = build_optimizer(cfg, detector), loss_scaler(context.cfg.precision)
    scheduler = build_lr_scheduler(cfg, optimizer)
    checkpoints, first_step = resume(run, model=detector, optimizer=optimizer, scheduler=scheduler, scaler=scaler)
    net_on_all_ranks = wrap_for_distributed(detector)
    logger = StepLogger(run.metrics.log, logging.every_steps, cfg.SOLVER.IMS_PER_BATCH)
    steps = logger.timed(batches(train, cfg, context, context.cfg.seed, first_step, num_steps), first_step)
    trainer = DetectorTrainer(net_on_all_ranks, steps, optimizer, scaler, context.cfg.precision, context.cfg.seed)
    guard = nan_guard(run, "protocol.detectron2.SOLVER.BASE_LR")
    trainer.register_hooks(
        [
            GuardHook(guard),
            LogHook(logger, guard),
            LRScheduler(optimizer, scheduler),
            CheckpointHook(checkpoints, context.preemption),
        ]
    )
    trainer.train(first_step, num_steps)
    checkpoints.finish(num_steps)
    if cfg.TEST.PRECISE_BN.ENABLED:
        take_statistics(net_on_all_ranks, train, cfg, context)


@torch.no_grad()
def take_statistics(trained: nn.Module, train: list[VocImage], cfg: CfgNode, context: EvalContext) -> None:
    """BatchNorm's statistics of the trained weights, over training batches of another order than they trained on."""
    num_steps = cfg.TEST.PRECISE_BN.NUM_ITER
    torch.manual_seed(step_seed(context.cfg.seed, cfg.SOLVER.MAX_ITER))
    with EventStorage(), autocast(context.cfg.precision):
        precise_bn.update_bn_stats(trained, batches(train, cfg, context, context.cfg.seed + 1, 0, num_steps), num_steps)
    for buffer in trained.buffers():
        if buffer.is_floating_point():  # ranks weigh their batches by their own numbers of boxes
            buffer.copy_(all_reduce_mean(buffer.clone()))


def batches(
    train: list[VocImage], cfg: CfgNode, context: EvalContext, seed: int, first_step: int, num_steps: int
) -> Iterator[list[Record]]:
    """Each step's pictures of this rank, augmented, as Detectron2 takes them."""
    wide = [picture.width > picture.height for picture in train]
    steps = GroupedSteps(wide, cfg.SOLVER.IMS_PER_BATCH, seed, first_step, num_steps, rank(), world_size())
    data = build_dataloader(
        Training(train, cfg, seed), context.cfg.cluster.num_workers, batch_sampler=steps, collate_fn=together
    )
    for inputs, bad in data:
        context.run.handle_unreadable_images(bad)
        yield inputs


@torch.no_grad()
def judge(detector: nn.Module, test: list[VocImage], context: EvalContext, cfg: CfgNode) -> dict[str, float]:
    """Detect in every test picture, which the ranks share, and let Detectron2 judge. A collective."""
    detector.eval()
    mine = test[rank() :: world_size()]
    shown = detection_examples.example_indices(len(mine))
    drawn: list[DetectionExample] = []
    data = build_dataloader(Testing(mine, cfg), context.cfg.cluster.num_workers, batch_size=None)
    undecodable = 0
    with evaluator(test) as ours:
        for index, (inputs, bad) in enumerate(data):
            context.run.handle_unreadable_images([bad] if bad else [])
            if inputs is None:
                undecodable += 1
                continue
            with autocast(context.cfg.precision):
                outputs = detector([inputs])
            ours.process([inputs], outputs)
            if index in shown:
                drawn.append(_drawn(mine[index], outputs[0]["instances"]))
            if world_size() == 1:  # shares differ in length: ranks ask each other afterwards
                context.preemption.stop_if_requested(index, "the trained detector is kept")
        context.preemption.stop_if_requested(0, "the trained detector is kept")
        metrics = ours.metrics()
        context.run.counts["num_classes_judged"] = ours.num_classes_judged
    lost = all_reduce_sum(torch.tensor(undecodable, device=device())).item()
    context.run.counts["num_test_images"] = len(test) - int(lost)
    if is_main():
        detection_examples.write_examples(context.run.folder, drawn)
    return metrics


def _drawn(picture: VocImage, found: Instances) -> DetectionExample:
    found = found.to("cpu")
    rows = zip(found.pred_classes.tolist(), found.pred_boxes.tensor.tolist(), found.scores.tolist(), strict=True)
    predicted = [ExampleBox(VOC_CLASSES[label], tuple(corners), score) for label, corners, score in rows]
    return DetectionExample(
        picture.path, predicted, [ExampleBox(VOC_CLASSES[box.label], box.corners) for box in picture.boxes]
    )
