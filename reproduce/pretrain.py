"""One pretraining run: `python -m reproduce.pretrain experiment=swav_800ep scale=smoke seed=0 paths.data_root=DIR`."""

import sys
from functools import partial

from omegaconf import DictConfig

from models.methods import registry
from models.methods.base import PretrainTask
from reproduce.config.schema import Crops, Dataset, Normalize, Optimizer
from reproduce.config.validate import to_dataclass
from reproduce.data.datasets.image_folder import read_image_list
from reproduce.data.pipeline.dataloader import multicrop_batches
from reproduce.data.pipeline.sampler import StepSampler, epoch_order_for
from reproduce.engine import checkpoint
from reproduce.engine.batchnorm import batchnorm_groups, convert_batchnorm, wrap_for_distributed
from reproduce.engine.collapse import CollapseDetector
from reproduce.engine.distributed.collectives import device, is_main, rank, world_size
from reproduce.engine.distributed.preemption import Preemption
from reproduce.engine.loop import StepLogger, Trainer, nan_guard, resume
from reproduce.engine.optimizer import build_optimizer
from reproduce.engine.precision import autocast, loss_scaler
from reproduce.engine.runs.run import Run, run_entry_point
from reproduce.engine.schedule import learning_rate
from reproduce.errors import run_cli
from reproduce.network import build_network, check_machine


def pretrain(cfg: DictConfig, run: Run, preemption: Preemption) -> None:
    """Train `cfg`'s network to the end of its last epoch, from its last checkpoint where there is one."""
    check_machine(cfg)
    optim = to_dataclass(cfg.optimizer, Optimizer, "optimizer")
    method_config, build_method = registry.find(cfg.method)
    groups = batchnorm_groups(cfg.batch_size, cfg.network.batchnorm_group_size)
    pictures = read_image_list(run.dataset_root, to_dataclass(cfg.dataset, Dataset, "dataset"), cfg.dataset.train)
    run.record_split(cfg.dataset.train, pictures)

    net = build_network(cfg, method_config, len(pictures.classes))
    method = build_method(method_config, net, len(pictures), cfg.batch_size)
    optimizer, scaler = build_optimizer(net.parameters(), optim), loss_scaler(cfg.precision)
    checkpoints, first_step = resume(run, model=net, method=method, optimizer=optimizer, scaler=scaler)

    crops, order = to_dataclass(cfg.crops, Crops, "crops"), epoch_order_for(pictures, cfg.batch_size)
    num_workers = cfg.cluster.num_workers
    normalize = to_dataclass(cfg.normalize, Normalize, "normalize")
    batches = partial(
        multicrop_batches,
        pictures,
        crops,
        normalize,
        num_workers=num_workers,
        device=device(),
        on_unreadable=run.handle_unreadable_images,
    )
    steps = partial(
        StepSampler, len(pictures), cfg.batch_size, seed=cfg.seed, rank=rank(), world_size=world_size(), order=order
    )
    sampler = steps(epochs=cfg.epochs, first_step=first_step)
    num_steps = cfg.epochs * sampler.steps_per_epoch
    sentinel = CollapseDetector.for_method(method, cfg.collapse, sampler.steps_per_epoch, first_step)

    def log(step: int, num_steps: int, **values: float) -> None:
        run.metrics.log(step, num_steps, **values)
        sentinel.update(step, values)

    net_on_all_ranks = wrap_for_distributed(net, groups, cfg.cluster.sync_batchnorm)
    for extra_network in method.extra_networks:
        convert_batchnorm(extra_network, groups, cfg.cluster.sync_batchnorm)
    extra_epoch = batches(steps(epochs=cfg.epochs + 1, first_step=num_steps))
    with autocast(cfg.precision):
        method.on_train_start(net_on_all_ranks, sampler, (crops for crops, _ in extra_epoch))
    if method.note:
        run.provenance["note"] = method.note

    trainer = Trainer(
        task=PretrainTask(net_on_all_ranks, method, cfg.precision),
        optimizer=optimizer,
        learning_rates=lambda step: [learning_rate(step, num_steps, cfg.epochs, optim)],
        scaler=scaler,
        guard=nan_guard(run, "optimizer.lr"),
        logger=StepLogger(log, cfg.logging.every_steps, cfg.batch_size),
        checkpoints=checkpoints,
        preemption=preemption,
    )
    trainer.train(batches(sampler), first_step, num_steps)


def keep_initial_weights(cfg: DictConfig, run: Run, _: Preemption) -> None:
    """The random trunk (method `none`): the checkpoint of a network that nothing trained."""
    checkpoint.save(run.checkpoint, {"model": build_network(cfg).state_dict(), "step": 0})


def main() -> int:
    """Entry point; what it leaves is `result.json` and `checkpoint.pt` in the run's folder."""

    def work(cfg: DictConfig, run: Run, preemption: Preemption) -> None:
        (keep_initial_weights if cfg.method.name == "none" else pretrain)(cfg, run, preemption)
        if is_main():
            run.provenance["checkpoint_sha256"] = checkpoint.sha256_of(run.checkpoint)
        run.finish(run.metrics.last)

    return run_entry_point("pretrain", work)


if __name__ == "__main__":
    sys.exit(run_cli(main))
