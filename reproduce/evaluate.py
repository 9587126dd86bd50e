"""One evaluation: `python -m reproduce.evaluate eval=knn checkpoint=RUN_ID_OR_FILE scale=smoke paths.data=DIR`.

`checkpoint=released:swav_800ep` takes public weights (models/zoo/released.yaml), fetched where they aren't there yet.
On several GPUs: `python -m reproduce.engine.distributed.launch --processes 8 reproduce.evaluate eval=knn ...`.
"""

import importlib
import pkgutil
import sys

import torch
from omegaconf import DictConfig

import evals
from evals.setting import Setting
from reproduce.checkpoint_source import checkpoint_trunk, parents
from reproduce.config.schema import Dataset, Normalize
from reproduce.config.validate import to_dataclass
from reproduce.engine.checkpoint import sha256_of
from reproduce.engine.distributed.collectives import device
from reproduce.engine.distributed.preemption import Preemption
from reproduce.engine.features import FeatureStore
from reproduce.engine.precision import autocast
from reproduce.engine.runs.run import Run, run_entry_point
from reproduce.errors import UserError, did_you_mean, run_cli


def evaluate(cfg: DictConfig, run: Run, preemption: Preemption) -> dict[str, float]:
    """Load the checkpoint's trunk and measure it by the protocol's file in `evals/`."""
    autocast(cfg.precision)  # refuses one that there is not, before any data is read
    protocols = [module.name for module in pkgutil.iter_modules(evals.__path__) if module.name != "setting"]
    if cfg.protocol.name not in protocols:
        raise UserError(
            f"there is no protocol.name {cfg.protocol.name!r} in evals/: {did_you_mean(cfg.protocol.name, protocols)}"
        )
    module = importlib.import_module(f"evals.{cfg.protocol.name}")
    protocol = to_dataclass(cfg.protocol, module.Protocol, "protocol")
    root = run.dataset_root
    path, trunk = checkpoint_trunk(cfg)
    trunk = trunk.to(device()).to(memory_format=torch.channels_last)
    run.discard_checkpoints_of_other_trunk(sha256_of(path))
    setting = Setting(
        root=root,
        dataset=to_dataclass(cfg.dataset, Dataset, "dataset"),
        normalize=to_dataclass(cfg.normalize, Normalize, "normalize"),
        seed=cfg.seed,
        precision=cfg.precision,
        num_workers=cfg.cluster.num_workers,
        num_threads=cfg.cluster.num_threads,
        on_unreadable=run.handle_unreadable_images,
        on_broken=run.handle_bad_annotations,
        tell=run.metrics.log,
        forget_after=run.metrics.truncate,
        counts=run.counts,
        provenance=run.provenance,
        checkpoint_sha256=run.provenance["checkpoint_sha256"],
        lr_batch_size=cfg.scale.linear.batch_size,
        store=FeatureStore(run.folder.parent / ".features", run.run_id),
        checkpoint=run.checkpoint,
        save_every_seconds=cfg.logging.checkpoint_every_seconds,
        sync_every_steps=cfg.logging.every_steps,
        preemption=preemption,
        quote=run.record_split,
    )
    metrics: dict[str, float] = module.evaluate(trunk, protocol, setting)
    return metrics


def main() -> int:
    """Entry point; what it leaves is `result.json` in the run's folder."""

    def work(cfg: DictConfig, run: Run, preemption: Preemption) -> None:
        run.finish(evaluate(cfg, run, preemption), parents(cfg))

    return run_entry_point("evaluate", work)


if __name__ == "__main__":
    sys.exit(run_cli(main))
