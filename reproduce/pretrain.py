"""One pretraining run: `python -m reproduce.pretrain experiment=swav_800ep scale=smoke seed=0 paths.data_root=DIR`."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from models.methods import registry
from models.methods.base import Method, PretrainTask
from models.networks.trunk import Trunk
from reproduce.config.schema import Crops, Normalize, Optimizer
from reproduce.config.validate import to_dataclass
from reproduce.data.datasets.image_folder import read_image_list
from reproduce.data.pipeline import nvjpeg
from reproduce.data.pipeline.dataloader import center_crop_batches, multicrop_batches
from reproduce.data.pipeline.sampler import StepSampler, epoch_order_for
from reproduce.engine import checkpoint
from reproduce.engine.batchnorm import BatchNormGroups, batchnorm_groups, convert_batchnorm, wrap_for_distributed
from reproduce.engine.checkpoint import Stateful
from reproduce.engine.collapse import CollapseDetector
from reproduce.engine.crops_picture import with_crops_picture
from reproduce.engine.distributed.collectives import device, is_main, rank, world_size
from reproduce.engine.loop import StepLogger, Trainer, build_nan_guard, resume
from reproduce.engine.optimizer import build_optimizer
from reproduce.engine.precision import autocast, loss_scaler
from reproduce.engine.preemption import Preemption
from reproduce.engine.runs.run import Run, run_entry_point
from reproduce.engine.schedule import learning_rate
from reproduce.errors import run_cli
from reproduce.network import build_network, validate_runtime_options

LR_KEYS = "optimizer.lr"
CENTER_CROP_BATCH_SIZE = 128
"""Images per forward pass without gradients; changes speed and memory, not features."""


class PretrainData:
    """The training images of a config, and the batches of crops that every rank gets."""

    def __init__(self, cfg: DictConfig, run: Run) -> None:
        self.cfg, self.run = cfg, run
        self.images = read_image_list(run.dataset_root, run.dataset, run.dataset.train)
        self.order = epoch_order_for(self.images, cfg.batch_size)
        self.crops = self._with_usable_decoder(to_dataclass(cfg.crops, Crops, "crops"))
        self.normalize = to_dataclass(cfg.normalize, Normalize, "normalize")
        run.record_split(run.dataset.train, self.images)

    def _with_usable_decoder(self, crops: Crops) -> Crops:
        """Return `crops` with the JPEG decoder that runs here; log it if another one was requested."""
        nvjpeg.require_known_decoder(crops.jpeg_decoder)
        if crops.jpeg_decoder is None:
            return crops
        reason = nvjpeg.why_unusable(device())
        self.run.provenance["jpeg_decoder"] = f"CPU: {reason}" if reason else crops.jpeg_decoder
        if not reason:
            return crops
        print(f"crops.jpeg_decoder={crops.jpeg_decoder}: {reason}; JPEG files are decoded on the CPU", file=sys.stderr)
        return replace(crops, jpeg_decoder=None)

    def sampler(self, epochs: int, first_step: int) -> StepSampler:
        """Return the sampler of the steps from `first_step` to the end of the last epoch."""
        num_images, batch_size, seed = len(self.images), self.cfg.batch_size, self.cfg.seed
        return StepSampler(num_images, batch_size, epochs, seed, first_step, rank(), world_size(), order=self.order)

    def center_crops(self, resize_px: int, size_px: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield indices and normalized center crops of this rank's share of all images, in reading order."""
        start, end = (len(self.images) * number // world_size() for number in (rank(), rank() + 1))
        share = self.images.reading_order()[start:end]
        found = center_crop_batches(
            self.images.subset(share.tolist()),
            resize_px,
            size_px,
            "bilinear",
            self.normalize,
            batch_size=CENTER_CROP_BATCH_SIZE,
            num_workers=self.cfg.cluster.num_workers,
            device=device(),
            on_unreadable=self.run.handle_unreadable_images,
        )
        for indices, pixels in found:
            yield torch.from_numpy(share)[indices], pixels

    def batches(self, sampler: StepSampler) -> Iterator[tuple[list[Tensor], Tensor]]:
        """Yield this rank's crops and labels of each of the sampler's steps, on the device."""
        return multicrop_batches(
            self.images,
            self.crops,
            self.normalize,
            sampler,
            num_workers=self.cfg.cluster.num_workers,
            device=device(),
            on_unreadable=self.run.handle_unreadable_images,
        )


@dataclass(frozen=True)
class Training:
    """What a pretraining trains."""

    net: Trunk
    net_on_all_ranks: nn.Module
    """`net` itself, or wrapped in DDP."""
    method: Method
    optimizer: torch.optim.Optimizer


def build_training(
    cfg: DictConfig, crops: Crops, num_classes: int, num_images: int, batch_size: int, groups: BatchNormGroups
) -> Training:
    """Build the config's network, method and optimizer for these images and this global batch size.

    All networks' BatchNorm statistics cover `groups`. Raises `UserError` if the method can't learn from `crops`.
    """
    method_config, build_method = registry.parse_config(cfg.method)
    net = build_network(cfg, method_config, num_classes)
    method = build_method(method_config, net, num_images, batch_size)
    method.crops_needed.require(crops)
    # Before the optimizer is built: apex's conversion replaces the weights of BatchNorm.
    net_on_all_ranks = wrap_for_distributed(net, groups, cfg.cluster.sync_batchnorm)
    for extra_network in method.extra_networks:
        convert_batchnorm(extra_network, groups, cfg.cluster.sync_batchnorm)
    optimizer = build_optimizer(net.parameters(), to_dataclass(cfg.optimizer, Optimizer, "optimizer"))
    return Training(net, net_on_all_ranks, method, optimizer)


def pretrain(cfg: DictConfig, run: Run, preemption: Preemption) -> None:
    """Train the config's network to the end of its last epoch, from the run's last checkpoint if there is one."""
    validate_runtime_options(cfg)
    optimizer_config = to_dataclass(cfg.optimizer, Optimizer, "optimizer")
    registry.parse_config(cfg.method)  # a wrong key ends the run before its images are listed
    groups = batchnorm_groups(cfg.batch_size, cfg.network.batchnorm_group_size)

    data = PretrainData(cfg, run)
    training = build_training(cfg, data.crops, len(data.images.classes), len(data.images), cfg.batch_size, groups)
    net, method, optimizer = training.net, training.method, training.optimizer
    scaler = loss_scaler(cfg.precision, cfg.initial_loss_scale)
    steps_per_epoch = data.sampler(cfg.epochs, first_step=0).steps_per_epoch
    collapse_detector = CollapseDetector.for_method(method, cfg.collapse, steps_per_epoch)
    states: dict[str, Stateful] = {"model": net, "method": method, "optimizer": optimizer, "scaler": scaler}
    checkpoints, first_step = resume(run, LR_KEYS, **states, collapse_detector=collapse_detector)
    collapse_detector.resumed_at(first_step)
    run.record_thresholds(collapse_detector.thresholds())
    sampler = data.sampler(cfg.epochs, first_step)
    num_steps = cfg.epochs * steps_per_epoch

    method.center_crops = data.center_crops
    method.reset_optimizer = optimizer.state.clear  # of the state after the resume, which replaces it
    extra_epoch = data.batches(data.sampler(cfg.epochs + 1, first_step=num_steps))
    with autocast(cfg.precision):
        method.on_train_start(training.net_on_all_ranks, sampler, (crops for crops, _ in extra_epoch))
    run.first_steps.watch(net, first_step, sampler.batch_at, method.extra_networks, method.state_dict)
    if method.note:
        run.provenance["note"] = method.note

    def log(step: int, num_steps: int, **values: float) -> None:
        run.metrics.log(step, num_steps, **values)
        collapse_detector.update(step, values)

    trainer = Trainer(
        task=PretrainTask(training.net_on_all_ranks, method, cfg.precision),
        optimizer=optimizer,
        learning_rates=lambda step: (
            [learning_rate(step, num_steps, cfg.epochs, optimizer_config)] * len(optimizer.param_groups)
        ),
        scaler=scaler,
        guard=build_nan_guard(run, LR_KEYS),
        recorder=run.first_steps,
        logger=StepLogger(log, min(cfg.logging.every_steps, max_log_interval(steps_per_epoch)), cfg.batch_size),
        checkpoints=checkpoints,
        preemption=preemption,
    )
    batches = with_crops_picture(data.batches(sampler), run, data.normalize, first_step)
    trainer.train(batches, first_step, num_steps)


def max_log_interval(steps_per_epoch: int) -> int:
    """Return a fifth of an epoch, so that the collapse detector sees five logged steps of each, but at least 10.

    10 is the default of `logging.every_steps`, which stays as it is in short epochs.
    """
    return max(10, steps_per_epoch // 5)


def save_initial_weights(cfg: DictConfig, run: Run) -> None:
    """Save the untrained network as the run's checkpoint (method `none`: the random trunk)."""
    run.resumed_from(0)
    weights = {name: tensor.cpu() for name, tensor in build_network(cfg).state_dict().items()}
    if is_main():  # the file of another rank, with its GPU's name in it, would have another hash
        checkpoint.save(run.checkpoint, {"model": weights, "step": 0})


def run_pretraining(cfg: DictConfig, run: Run, preemption: Preemption) -> None:
    """Pretrain, or save the initial weights, and write the result: the metrics of the last logged step."""
    if cfg.method.name == "none":
        save_initial_weights(cfg, run)
    else:
        pretrain(cfg, run, preemption)
    if is_main():
        run.provenance["checkpoint_sha256"] = checkpoint.sha256_of(run.checkpoint)
    run.finish(run.metrics.last)


def main() -> int:
    """Run the pretraining of the command line; it leaves `result.json` and `checkpoint.pt` in the run's folder."""
    return run_entry_point("pretrain", run_pretraining)


if __name__ == "__main__":
    sys.exit(run_cli(main))
