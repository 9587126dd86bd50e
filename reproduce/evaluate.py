"""One evaluation: `python -m reproduce.evaluate eval=knn checkpoint=RUN_ID_OR_FILE scale=smoke paths.data_root=DIR`.

`checkpoint=released:swav_800ep` evaluates public weights (models/zoo/released.yaml) and downloads them first if needed.
On several GPUs: `python -m reproduce.engine.distributed.launch --nproc-per-node 8 reproduce.evaluate eval=knn ...`.
"""

import importlib
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from evals.context import EvalContext
from models.networks.resnet import ResNet
from reproduce.checkpoint_source import load_checkpoint_head, load_checkpoint_trunk, parent_run_ids
from reproduce.config import DETECTORS
from reproduce.config.validate import to_dataclass
from reproduce.engine.checkpoint import sha256_of
from reproduce.engine.distributed.collectives import device, is_main
from reproduce.engine.precision import autocast
from reproduce.engine.preemption import Preemption
from reproduce.engine.runs.run import Run, run_entry_point
from reproduce.errors import UserError, did_you_mean, run_cli
from reproduce.system import CONF_DIR


def evaluate(cfg: DictConfig, run: Run, preemption: Preemption) -> dict[str, float]:
    """Load the checkpoint's trunk and return the metrics of the config's protocol."""
    autocast(cfg.precision)  # raises on an unknown precision, before any data is read
    protocol = protocol_module(cfg.protocol.name)
    config = to_dataclass(cfg.protocol, protocol.ProtocolConfig, "protocol")
    context = EvalContext(run, preemption, partial(load_checkpoint_head, cfg))
    path, trunk = load_checkpoint_trunk(cfg)
    if cfg.protocol.name in DETECTORS and not isinstance(trunk, ResNet):  # they are built on its stages
        raise UserError(f"protocol.name={cfg.protocol.name} needs a ResNet, and checkpoint={cfg.checkpoint} has none")
    _warn_of_other_images(cfg, path)
    trunk = trunk.to(device()).to(memory_format=torch.channels_last)
    run.discard_checkpoints_of_other_trunk(sha256_of(path))
    metrics: dict[str, float] = protocol.evaluate(trunk, config, context)
    return metrics


def _warn_of_other_images(cfg: DictConfig, checkpoint: Path) -> None:
    """Warn if a run of ours was trained with another data catalog: who forgets `IMAGES=` evaluates generated images."""
    config = checkpoint.with_name("config.yaml")
    if not is_main() or not config.is_file():
        return
    ours = OmegaConf.select(cfg, "data.imagenet.source")
    try:
        theirs = OmegaConf.select(OmegaConf.create(OmegaConf.load(config)), "data.imagenet.source")
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, OSError):
        return  # another code base's file beside its weights
    if theirs and theirs != ours:
        print(
            f"warning: {cfg.checkpoint} was trained with {theirs} in place of ImageNet, and is evaluated with {ours}; "
            "if that is not meant, repeat the IMAGES= or DATA_CONFIG= of its training",
            file=sys.stderr,
            flush=True,
        )


def protocol_module(name: str) -> ModuleType:
    """Import `evals.<name>`, if a config of conf/eval has it as `protocol.name`; raise `UserError` otherwise."""
    names = sorted({OmegaConf.load(path).protocol.name for path in (CONF_DIR / "eval").glob("*.yaml")})
    if name not in names:
        raise UserError(f"unknown protocol.name {name!r}: {did_you_mean(name, names)}")
    return importlib.import_module(f"evals.{name}")


def run_evaluation(cfg: DictConfig, run: Run, preemption: Preemption) -> None:
    """Evaluate and write the result."""
    run.finish(evaluate(cfg, run, preemption), parent_run_ids(cfg))


def main() -> int:
    """Run the evaluation of the command line; it leaves `result.json` in the run's folder."""
    return run_entry_point("evaluate", run_evaluation)


if __name__ == "__main__":
    sys.exit(run_cli(main))
