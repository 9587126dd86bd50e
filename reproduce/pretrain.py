"""One pretraining run: `python -m reproduce.pretrain experiment=swav_800ep scale=smoke seed=0 paths.data=DIR`."""

import sys
from collections.abc import Iterator
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from models import methods
from models.heads import MultiCropNet
from models.supervised import ClassifierNet
from reproduce.config import Crops, Dataset, Network, Optimizer, typed
from reproduce.data.batches import crop_batches
from reproduce.data.loader import StepSampler, order_of
from reproduce.data.pictures import read_pictures
from reproduce.engine import checkpoint
from reproduce.engine.batchnorm import batchnorm_groups, check_sync_batchnorm, shared, synchronized
from reproduce.engine.distributed import device, rank, world_size
from reproduce.engine.loop import train
from reproduce.engine.optimizer import sgd
from reproduce.engine.precision import autocast, loss_scaler
from reproduce.engine.preemption import Preemption
from reproduce.engine.run import Run, main_of
from reproduce.engine.schedule import learning_rate
from reproduce.engine.sentinel import Sentinel
from reproduce.errors import UserError, exit_status, nearest


def pretrain(cfg: DictConfig, run: Run, preemption: Preemption) -> None:
    """Train `cfg`'s network to the end of its last epoch, from its last checkpoint where there is one."""
    _check_machine(cfg)
    crops, optim = typed(cfg.crops, Crops, "crops"), typed(cfg.optimizer, Optimizer, "optimizer")
    method_config, build_method = methods.find(cfg.method)
    groups = batchnorm_groups(cfg.batch_size, cfg.network.batchnorm_images)
    pictures = read_pictures(run.dataset_root, typed(cfg.dataset, Dataset, "dataset"), cfg.dataset.train)
    run.quote(cfg.dataset.train, pictures)
    net = build_network(cfg, method_config, len(pictures.classes))
    net.activation_checkpointing = cfg.cluster.activation_checkpointing
    if cfg.cluster.compile_backend:
        net.compile(backend=cfg.cluster.compile_backend)

    method = build_method(method_config, net, len(pictures), cfg.batch_size)
    optimizer = sgd(net.parameters(), optim)
    scaler = loss_scaler(cfg.precision)
    checkpoints = checkpoint.Checkpoints(
        run.checkpoint,
        {"model": net, "method": method, "optimizer": optimizer, "scaler": scaler},
        cfg.logging.checkpoint_every_seconds,
        agree_every_steps=cfg.logging.every_steps,
    )
    first_step = checkpoints.resume()
    run.forget_after(first_step)

    def steps(epochs: int, first_step: int) -> StepSampler:
        order = order_of(pictures, cfg.batch_size)
        return StepSampler(
            len(pictures), cfg.batch_size, epochs, cfg.seed, first_step, rank(), world_size(), order=order
        )

    sampler = steps(cfg.epochs, first_step)
    num_steps = cfg.epochs * sampler.steps_per_epoch

    def batches(sampler: StepSampler) -> Iterator[tuple[list[Tensor], Tensor]]:
        return crop_batches(
            pictures,
            crops.views,
            crops.augment,
            crops.normalize,
            sampler,
            num_workers=cfg.cluster.num_workers,
            device=device(),
            on_bad=run.skip_or_stop,
        )

    sentinel = Sentinel(
        method.uniform_loss,
        sampler.steps_per_epoch,
        cfg.sentinel.patience_epochs + method.settling_epochs,
        cfg.sentinel.on_collapse,
        method.remedies,
    )
    sentinel.be_patient(first_step, epochs=1)
    if method.disturbed_at_step is not None:
        sentinel.be_patient(method.disturbed_at_step, epochs=2)

    def tell(done: int, num_steps: int, **values: float) -> None:
        run.tell(done, num_steps, **values)
        sentinel.watch(done, values)

    def after_step(done: int) -> None:
        preemption.save_and_stop_if_asked(checkpoints, done, num_steps)
        checkpoints.save_if_due(done)

    trained = shared(net, groups, cfg.cluster.sync_batchnorm)
    for own in method.networks:
        synchronized(own, groups, cfg.cluster.sync_batchnorm)
    extra = steps(cfg.epochs + 1, num_steps)
    with autocast(cfg.precision):
        method.begin(trained, sampler, (crops for crops, _ in batches(extra)))
    if method.note:
        run.provenance["note"] = method.note
    train(
        trained,
        method,
        optimizer,
        batches(sampler),
        lambda step: learning_rate(step, num_steps, cfg.epochs, optim),
        first_step=first_step,
        num_steps=num_steps,
        batch_size=cfg.batch_size,
        precision=cfg.precision,
        scaler=scaler,
        tell=tell,
        tell_every_steps=cfg.logging.every_steps,
        after_step=after_step,
        keep_not_finite=lambda made: checkpoint.save(run.folder / f"not-finite-rank{rank()}.pt", made),
    )
    checkpoints.finish(num_steps)


def _check_machine(cfg: DictConfig) -> None:
    """Refuse what this machine can't do, before any data is read."""
    autocast(cfg.precision)
    check_sync_batchnorm(cfg.cluster.sync_batchnorm)
    backend, valid = cfg.cluster.compile_backend, torch.compiler.list_backends(exclude_tags=())
    if backend and backend not in valid:
        raise UserError(f"there is no cluster.compile_backend {backend!r}: {nearest(backend, valid)}")
    if cfg.cluster.activation_checkpointing and cfg.cluster.sync_batchnorm == "apex":
        raise UserError(
            "cluster.activation_checkpointing runs each block's forward pass twice, and apex's SyncBatchNorm would "
            "count its batch twice: take cluster.sync_batchnorm=torch"
        )
    if cfg.cluster.activation_checkpointing and backend:
        raise UserError("cluster.activation_checkpointing and cluster.compile_backend do not go together: take one")


def build_network(cfg: DictConfig, method_config: Any = None, num_classes: int = 0) -> MultiCropNet | ClassifierNet:
    """The network at its seeded initial weights, on the device."""
    torch.manual_seed(cfg.seed)
    net = methods.network(typed(cfg.network, Network, "network"), method_config, num_classes)
    return net.to(device()).to(memory_format=torch.channels_last)


def keep_initial_weights(cfg: DictConfig, run: Run, _: Preemption) -> None:
    """The random trunk (method `none`): the checkpoint of a network that nothing trained."""
    checkpoint.save(run.checkpoint, {"model": build_network(cfg).state_dict(), "step": 0})


def main() -> int:
    """Entry point; what it leaves is `result.json` and `checkpoint.pt` in the run's folder."""

    def work(cfg: DictConfig, run: Run, preemption: Preemption) -> None:
        (keep_initial_weights if cfg.method.name == "none" else pretrain)(cfg, run, preemption)
        run.finish(run.last)

    return main_of("pretrain", work)


if __name__ == "__main__":
    sys.exit(exit_status(main))
