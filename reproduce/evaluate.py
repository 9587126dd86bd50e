"""One evaluation: `python -m reproduce.evaluate eval=knn checkpoint=RUN_ID_OR_FILE scale=smoke paths.data_root=DIR`.

`checkpoint=released:swav_800ep` takes public weights (models/zoo/released.yaml), fetched where they aren't there yet.
On several GPUs: `python -m reproduce.engine.distributed.launch --nproc-per-node 8 reproduce.evaluate eval=knn ...`.
"""

import importlib
import sys
from types import ModuleType

import torch
from omegaconf import DictConfig, OmegaConf

from evals.context import EvalContext
from reproduce.checkpoint_source import checkpoint_trunk, parents
from reproduce.config.compose import CONF_DIR
from reproduce.config.validate import to_dataclass
from reproduce.engine.checkpoint import sha256_of
from reproduce.engine.distributed.collectives import device
from reproduce.engine.distributed.preemption import Preemption
from reproduce.engine.precision import autocast
from reproduce.engine.runs.run import Run, run_entry_point
from reproduce.errors import UserError, did_you_mean, run_cli


def evaluate(cfg: DictConfig, run: Run, preemption: Preemption) -> dict[str, float]:
    """Load the checkpoint's trunk and return the metrics of the config's protocol."""
    autocast(cfg.precision)  # raises on an unknown precision, before any data is read
    protocol = protocol_module(cfg.protocol.name)
    config = to_dataclass(cfg.protocol, protocol.ProtocolConfig, "protocol")
    context = EvalContext(run, preemption)
    path, trunk = checkpoint_trunk(cfg)
    run.discard_checkpoints_of_other_trunk(sha256_of(path))
    metrics: dict[str, float] = protocol.evaluate(
        trunk.to(device()).to(memory_format=torch.channels_last), config, context
    )
    return metrics


def protocol_module(name: str) -> ModuleType:
    """Import `evals.<name>`, if a config of conf/eval has it as `protocol.name`; raise `UserError` otherwise."""
    names = sorted({OmegaConf.load(path).protocol.name for path in (CONF_DIR / "eval").glob("*.yaml")})
    if name not in names:
        raise UserError(f"there is no protocol.name {name!r} in evals/: {did_you_mean(name, names)}")
    return importlib.import_module(f"evals.{name}")


def main() -> int:
    """Run the evaluation that the command line's overrides describe, and write `result.json` to the run's folder."""

    def run_evaluation(cfg: DictConfig, run: Run, preemption: Preemption) -> None:
        run.finish(evaluate(cfg, run, preemption), parents(cfg))

    return run_entry_point("evaluate", run_evaluation)


if __name__ == "__main__":
    sys.exit(run_cli(main))
