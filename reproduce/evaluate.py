"""One evaluation: `python -m reproduce.evaluate eval=knn checkpoint=RUN_ID_OR_FILE scale=smoke paths.data=DIR`.

`checkpoint=released:swav_800ep` takes public weights (models/released.yaml), fetched where they aren't there yet.
On several GPUs: `python -m reproduce.engine.launch --processes 8 reproduce.evaluate eval=linear_imagenet ...`.
"""

import hashlib
import importlib
import pkgutil
import sys
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

import evals
from evals.setting import Setting
from models.resnet import ResNet
from models.weights import load_trunk
from reproduce.config import CONF, Dataset, Normalize, compose, typed
from reproduce.data import released
from reproduce.engine.distributed import device, is_main, process_group
from reproduce.engine.features import FeatureStore
from reproduce.engine.precision import autocast
from reproduce.engine.preemption import Preempted, Preemption
from reproduce.engine.run import Run, running
from reproduce.errors import REQUEUE, UserError, exit_status, nearest


def evaluate(cfg: DictConfig, run: Run, preemption: Preemption) -> dict[str, float]:
    """Load the checkpoint's trunk and measure it by the protocol's file in `evals/`."""
    autocast(cfg.precision)  # refuses one that there is not, before any data is read
    protocols = [module.name for module in pkgutil.iter_modules(evals.__path__)]
    if cfg.protocol.name not in protocols:
        raise UserError(
            f"there is no protocol.name {cfg.protocol.name!r} in evals/: {nearest(cfg.protocol.name, protocols)}"
        )
    module = importlib.import_module(f"evals.{cfg.protocol.name}")
    protocol = typed(cfg.protocol, module.Protocol, "protocol")
    root = run.dataset_root
    path, trunk = checkpoint_trunk(cfg)
    trunk = trunk.to(device()).to(memory_format=torch.channels_last)
    with open(path, "rb") as file:
        run.provenance["checkpoint_sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    setting = Setting(
        root=root,
        dataset=typed(cfg.dataset, Dataset, "dataset"),
        normalize=typed(cfg.normalize, Normalize, "normalize"),
        seed=cfg.seed,
        precision=cfg.precision,
        num_workers=cfg.cluster.num_workers,
        num_threads=cfg.cluster.num_threads,
        on_bad=run.skip_or_stop,
        on_broken=run.drop_or_stop,
        tell=run.tell,
        forget_after=run.forget_after,
        counts=run.counts,
        provenance=run.provenance,
        checkpoint_sha256=run.provenance["checkpoint_sha256"],
        lr_batch_size=cfg.scale.linear.batch_size,
        store=FeatureStore(run.folder.parent / ".features", run.run_id),
        checkpoint=run.checkpoint,
        save_every_seconds=cfg.logging.checkpoint_every_seconds,
        agree_every_steps=cfg.logging.every_steps,
        preemption=preemption,
        quote=run.quote,
    )
    metrics: dict[str, float] = module.evaluate(trunk, protocol, setting)
    return metrics


def checkpoint_trunk(cfg: DictConfig) -> tuple[Path, ResNet]:
    """The file that `checkpoint` means - an entry of the zoo, a file, or a run of the same scale - and its trunk."""
    if is_released(cfg):
        return _released_trunk(cfg)
    given = Path(cfg.checkpoint)
    path = given if is_file(cfg) else Path(cfg.paths.results) / cfg.scale.name / cfg.checkpoint / "checkpoint.pt"
    return path, load_trunk(path)


def _released_trunk(cfg: DictConfig) -> tuple[Path, ResNet]:
    """Refuses pixels that the network was not trained to see, before anything is downloaded."""
    entry = released.entry(cfg.checkpoint.removeprefix(released.PREFIX))
    if cfg.normalize != OmegaConf.load(CONF / "normalize" / f"{entry.normalize}.yaml"):
        raise UserError(f"{cfg.checkpoint} was trained on other pixels: give it normalize={entry.normalize}")
    path = released.fetch(entry)
    trunk = load_trunk(path, entry.layout)
    if trunk.num_features != 2048 * entry.width:
        raise UserError(f"{path} is {trunk.num_features / 2048:g} times as wide as a ResNet-50, not {entry.width:g}")
    return path, trunk


def is_released(cfg: DictConfig) -> bool:
    """Whether `checkpoint` names an entry of the checkpoint zoo."""
    return str(cfg.checkpoint).startswith(released.PREFIX)


def is_file(cfg: DictConfig) -> bool:
    """Whether `checkpoint` names a file, rather than a run: it is one, or looks like one."""
    given = Path(cfg.checkpoint)
    return given.is_file() or bool(given.suffix)


def main() -> int:
    """Entry point: overrides on the command line, `result.json` in the run's folder.

    Ends with status 75 where it was preempted: the same command goes on.
    """
    cfg = compose("evaluate", sys.argv[1:])
    torch.set_num_threads(cfg.cluster.num_threads)
    with process_group():
        try:
            with running(cfg) as run, Preemption(cfg.logging.every_steps) as preemption:
                parent = [] if is_file(cfg) or is_released(cfg) else [cfg.checkpoint]
                run.finish(evaluate(cfg, run, preemption), parent)
        except Preempted as stop:
            if is_main():
                print(stop, file=sys.stderr)
            return REQUEUE
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
