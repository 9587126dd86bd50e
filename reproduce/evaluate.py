"""One evaluation: `python -m reproduce.evaluate eval=knn checkpoint=RUN_ID_OR_FILE scale=smoke paths.data=DIR`."""

import hashlib
import importlib
import sys
from pathlib import Path

import torch
from omegaconf import DictConfig

from evals.setting import Setting
from models.weights import load_trunk
from reproduce.config import Dataset, Normalize, compose, typed
from reproduce.engine.distributed import device, process_group
from reproduce.engine.precision import autocast
from reproduce.engine.run import Run, running
from reproduce.errors import exit_status


def evaluate(cfg: DictConfig, run: Run) -> dict[str, float]:
    """Load the checkpoint's trunk and measure it by the protocol's file in `evals/`."""
    module = importlib.import_module(f"evals.{cfg.protocol.name}")
    protocol = typed(cfg.protocol, module.Protocol, "protocol")
    setting = Setting(
        root=run.dataset_root,
        dataset=typed(cfg.dataset, Dataset, "dataset"),
        normalize=typed(cfg.normalize, Normalize, "normalize"),
        seed=cfg.seed,
        num_workers=cfg.cluster.num_workers,
        on_bad=run.skip_or_stop,
        tell=run.tell,
        counts=run.counts,
        provenance=run.provenance,
    )
    path = checkpoint_path(cfg)
    trunk = load_trunk(path).to(device()).to(memory_format=torch.channels_last)
    run.provenance["checkpoint_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    with autocast(cfg.precision):
        return module.evaluate(trunk, protocol, setting)


def checkpoint_path(cfg: DictConfig) -> Path:
    """The file that `checkpoint` means: itself, or that of a pretraining of the same scale by its run_id."""
    given = Path(cfg.checkpoint)
    return given if is_file(cfg) else Path(cfg.paths.results) / cfg.scale.name / cfg.checkpoint / "checkpoint.pt"


def is_file(cfg: DictConfig) -> bool:
    """Whether `checkpoint` names a file, rather than a run: it is one, or looks like one."""
    given = Path(cfg.checkpoint)
    return given.is_file() or bool(given.suffix)


def main() -> int:
    """Entry point: overrides on the command line, `result.json` in the run's folder."""
    cfg = compose("evaluate", sys.argv[1:])
    torch.set_num_threads(cfg.cluster.num_threads)
    with process_group(), running(cfg) as run:
        run.forget_after(0)
        parent = [] if is_file(cfg) else [cfg.checkpoint]
        run.finish(evaluate(cfg, run), parent)
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
