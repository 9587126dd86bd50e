"""The protocol of Faster R-CNN's finetuning on VOC07+12: its config, training and test."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evals.context import EvalContext
from evals.voc_detection import memory
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
from evals.voc_detection.dataset import AspectRatioGroupedSampler, DatasetDict, TestDataset, TrainDataset, collate
from evals.voc_detection.detector import build_config, build_detector
from evals.voc_detection.trainer import CheckpointHook, DetectorTrainer, GuardHook, LogHook, RecordHook, proposal_seed
from evals.voc_detection.voc_metrics import voc_evaluator
from models.networks.resnet import ResNet
from reproduce.data.datasets.image_folder import ImageList
from reproduce.data.datasets.voc import VOC_CLASSES, VocImage, read_voc_boxes
from reproduce.data.pipeline.dataloader import build_dataloader
from reproduce.engine.batchnorm import wrap_for_distributed
from reproduce.engine.distributed.collectives import all_reduce_mean, all_reduce_sum, device, is_main, rank, world_size
from reproduce.engine.loop import StepLogger, build_nan_guard, resume
from reproduce.engine.memory import MemoryEstimate, require_gpu_memory
from reproduce.engine.precision import autocast, loss_scaler
from reproduce.engine.runs.detection_examples import DetectionExample, ExampleBox, example_indices, write_examples
from reproduce.errors import UserError

LR_KEYS = "protocol.detectron2.SOLVER.BASE_LR"


@dataclass
class ProtocolConfig:
    """The keys of conf/eval/voc_detection*.yaml. `detectron2` overrides Detectron2's default config.

    The learning rate is for a batch of `base_batch_size`; another `batch_size` scales it in proportion.
    """

    name: str
    batch_size: int
    base_batch_size: int
    detectron2: dict[str, Any]


def evaluate(trunk: ResNet, protocol: ProtocolConfig, context: EvalContext) -> dict[str, float]:
    """Return `ap`, `ap50` and `ap75` in percent on the test split, by Detectron2's evaluator; {} on ranks other than 0.

    Unless the protocol freezes it, BatchNorm trains too, synchronized over ranks, and its statistics are recomputed
    before the test (`TEST.PRECISE_BN`). All draws are seeded from seed, step and rank, so that a run that resumes with
    as many processes equals an uninterrupted one. Raises `UserError` before any data is read if the GPU is too small.
    """
    if context.cfg.precision == "fp64":
        raise UserError("precision=fp64 is not possible here: Detectron2's boxes are fp32; use precision=fp32")
    cfg = build_config(protocol.detectron2, trunk)
    cfg.SOLVER.IMS_PER_BATCH = protocol.batch_size
    cfg.SOLVER.BASE_LR *= context.lr_scale(protocol.batch_size, protocol.base_batch_size)
    context.run.provenance["detectron2"] = BUILD
    require_gpu_memory(lambda: memory.estimate_memory(cfg, protocol.batch_size // world_size(), context.cfg.precision))
    train, test = read_images(context)
    torch.manual_seed(context.cfg.seed)
    detector = build_detector(cfg, trunk)
    fit(detector, train, cfg, context)
    return validate(detector, test, cfg, context)


def estimate_memory(protocol: ProtocolConfig, num_processes: int, precision: str) -> MemoryEstimate:
    """Estimate the memory of a step in each process, from a ResNet-50."""
    cfg = build_config(protocol.detectron2, ResNet())
    return memory.estimate_memory(cfg, protocol.batch_size // num_processes, precision)


def read_images(context: EvalContext) -> tuple[list[VocImage], list[VocImage]]:
    """Read the training images that have a box, and the test images; record both splits, report bad annotations."""
    data = context.dataset
    roots = [context.root]
    if data.extra_train_root:
        roots.append(Path(context.cfg.paths.data_root) / data.extra_train_root)
    train_parts = [read_voc_boxes(root, data.train) for root in roots]
    test, errors = read_voc_boxes(context.root, data.val)
    context.run.handle_bad_annotations([error for _, train_errors in train_parts for error in train_errors] + errors)
    train = [image for images, _ in train_parts for image in images if image.boxes]
    if not test:
        raise UserError(f"no image of {data.val} in {context.root} can be used: there is nothing to test on")
    for split, images in ((data.train, train), (data.val, test)):
        context.run.record_split(split, ImageList([image.path for image in images], [0] * len(images), []))
    context.run.counts["num_train_images"] = len(train)
    return train, test


def fit(detector: nn.Module, train: list[VocImage], cfg: CfgNode, context: EvalContext) -> None:
    """Train to the end of the schedule, from the run's last checkpoint if there is one."""
    run, logging, num_steps = context.run, context.cfg.logging, cfg.SOLVER.MAX_ITER
    optimizer, scaler = build_optimizer(cfg, detector), loss_scaler(context.cfg.precision)
    scheduler = build_lr_scheduler(cfg, optimizer)
    checkpoints, first_step = resume(
        run, LR_KEYS, model=detector, optimizer=optimizer, scheduler=scheduler, scaler=scaler
    )
    net_on_all_ranks = wrap_for_distributed(detector)
    logger = StepLogger(run.metrics.log, logging.every_steps, cfg.SOLVER.IMS_PER_BATCH)
    steps = logger.timed(batches(train, cfg, context, context.cfg.seed, first_step, num_steps), first_step)
    trainer = DetectorTrainer(net_on_all_ranks, steps, optimizer, scaler, context.cfg.precision, context.cfg.seed)
    guard = build_nan_guard(run, LR_KEYS)
    run.first_steps.watch(detector, first_step)
    trainer.register_hooks(
        [
            GuardHook(guard),
            RecordHook(run.first_steps),
            LogHook(logger, guard),
            LRScheduler(optimizer, scheduler),
            CheckpointHook(checkpoints, context.preemption),
        ]
    )
    trainer.train(first_step, num_steps)
    checkpoints.finish(num_steps)
    if cfg.TEST.PRECISE_BN.ENABLED:
        recompute_bn_stats(net_on_all_ranks, train, cfg, context)


@torch.no_grad()
def recompute_bn_stats(net: nn.Module, train: list[VocImage], cfg: CfgNode, context: EvalContext) -> None:
    """Recompute BatchNorm's statistics with the trained weights, over training batches in a new order. A collective."""
    num_steps = cfg.TEST.PRECISE_BN.NUM_ITER
    torch.manual_seed(proposal_seed(context.cfg.seed, cfg.SOLVER.MAX_ITER))
    with EventStorage(), autocast(context.cfg.precision):
        precise_bn.update_bn_stats(net, batches(train, cfg, context, context.cfg.seed + 1, 0, num_steps), num_steps)
    for buffer in net.buffers():
        if buffer.is_floating_point():  # each rank weights its batches by its own number of boxes
            buffer.copy_(all_reduce_mean(buffer.clone()))


def batches(
    train: list[VocImage], cfg: CfgNode, context: EvalContext, seed: int, first_step: int, num_steps: int
) -> Iterator[list[DatasetDict]]:
    """Yield this rank's augmented images of each step, in Detectron2's format."""
    wide = [image.width > image.height for image in train]
    steps = AspectRatioGroupedSampler(wide, cfg.SOLVER.IMS_PER_BATCH, seed, first_step, num_steps, rank(), world_size())
    data = build_dataloader(
        TrainDataset(train, cfg, seed), context.cfg.cluster.num_workers, batch_sampler=steps, collate_fn=collate
    )
    for inputs, unreadable in data:
        context.run.handle_unreadable_images(unreadable)
        yield inputs


@torch.no_grad()
def validate(
    detector: nn.Module, test: list[VocImage], detectron2_cfg: CfgNode, context: EvalContext
) -> dict[str, float]:
    """Detect in every test image, which the ranks share, and return Detectron2's metrics. A collective."""
    detector.eval()
    run, cfg = context.run, context.cfg
    share = test[rank() :: world_size()]
    indices_of_examples = example_indices(len(share))
    examples: list[DetectionExample] = []
    num_unreadable = 0
    data = build_dataloader(TestDataset(share, detectron2_cfg), cfg.cluster.num_workers, batch_size=None)
    with voc_evaluator(test) as evaluator:
        for index, (inputs, unreadable) in enumerate(data):
            run.handle_unreadable_images([unreadable] if unreadable else [])
            if inputs is None:
                num_unreadable += 1
                continue
            with autocast(cfg.precision):
                outputs = detector([inputs])
            evaluator.process([inputs], outputs)
            if index in indices_of_examples:
                examples.append(_to_example(share[index], outputs[0]["instances"]))
            if world_size() == 1:  # shares differ in length: ranks agree on a stop afterwards
                context.preemption.stop_if_requested("the trained detector is kept")
        context.preemption.stop_if_requested("the trained detector is kept")
        metrics = evaluator.metrics()
        run.counts["num_classes_scored"] = evaluator.num_classes_scored
    num_unreadable = int(all_reduce_sum(torch.tensor(num_unreadable, device=device())).item())
    run.counts["num_test_images"] = len(test) - num_unreadable
    if is_main():
        write_examples(run.folder, examples)
    return metrics


def _to_example(image: VocImage, detected: Instances) -> DetectionExample:
    detected = detected.to("cpu")
    rows = zip(
        detected.pred_classes.tolist(), detected.pred_boxes.tensor.tolist(), detected.scores.tolist(), strict=True
    )
    predicted = [ExampleBox(VOC_CLASSES[label], tuple(corners), score) for label, corners, score in rows]
    truth = [ExampleBox(VOC_CLASSES[box.label], box.corners) for box in image.boxes]
    return DetectionExample(image.path, predicted, truth)
