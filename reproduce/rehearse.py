"""Rehearse recipes: take the first steps of each on a few generated images, and write what they computed.

`python -m reproduce.rehearse FOLDER` reads the folder's list, written by `python -m reproduce preflight`. Several such
processes share the work; the ranks of one launcher do each rehearsal together. A rehearsal's numbers, or the error that
ended it, go to `FOLDER/NAME.json`. `tables/golden/` has the numbers of correct recipes.
"""

import gc
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from models.methods import registry
from reproduce.config.identity import run_dir
from reproduce.config.schema import Network, Optimizer
from reproduce.config.validate import to_dataclass
from reproduce.engine import arithmetic
from reproduce.engine.distributed.collectives import is_main, process_group, world_size
from reproduce.engine.distributed.processes import prepare_process
from reproduce.engine.first_steps import FirstStepsDone
from reproduce.engine.preemption import Preempted, Preemption
from reproduce.engine.runs import provenance
from reproduce.engine.runs.run import run_context
from reproduce.engine.schedule import learning_rate
from reproduce.errors import REQUEUE, UserError, describe_error, run_cli
from reproduce.evaluate import run_evaluation
from reproduce.files import NOT_FINITE, read_json, write_json
from reproduce.pretrain import run_pretraining
from reproduce.rehearsal import (
    LEARNING_RATE,
    MEAN_LEARNING_RATE,
    NUM_STEPS,
    PROTOTYPES_FROZEN,
    QUEUE_STARTS,
    RANDOM_TRUNK,
    REHEARSALS_FILE,
    Request,
)

NUM_SCHEDULE_POINTS = 64
TRANSITIONS = {"freeze_prototypes_steps": PROTOTYPES_FROZEN, "queue_start_step": QUEUE_STARTS}
"""Attributes of methods, and what they are called among a schedule's numbers."""


def rehearse(request: Request, results: Path) -> dict[str, list[float]]:
    """Take a recipe's first steps in a folder of its own below `results`; return their numbers by quantity."""
    cfg = OmegaConf.create(request.config)
    if request.kind == "schedule":
        return schedule(cfg, request.num_images)
    cfg.paths.results = str(results)
    arithmetic.configure_torch(cfg)
    body = run_pretraining if request.kind == "pretrain" else run_evaluation
    with run_context(cfg) as run, Preemption(cfg.checkpointing.sync_every_steps) as preemption:
        run.first_steps.num_steps, run.first_steps.stop_after_last = request.num_steps, request.ends_early
        try:
            body(cfg, run, preemption)
        except FirstStepsDone:
            return run.first_steps.values()
    values = run.first_steps.values()
    if request.kind == "evaluate" and is_main():
        metrics = read_json(run.folder / "result.json")["metrics"]
        values |= {f"metric {name}": [value] for name, value in metrics.items()}
    return values


def schedule(cfg: DictConfig, num_images: int) -> dict[str, list[float]]:
    """Return the rates of a whole pretraining: at 64 steps from first to last, and their mean over all steps.

    Also the steps of its transitions.
    """
    optimizer = to_dataclass(cfg.optimizer, Optimizer, "optimizer")
    num_steps = cfg.epochs * (num_images // cfg.batch_size)
    rates = [learning_rate(step, num_steps, cfg.epochs, optimizer) for step in range(num_steps)]
    last = num_steps - 1
    points = [rates[round(last * number / (NUM_SCHEDULE_POINTS - 1))] for number in range(NUM_SCHEDULE_POINTS)]
    method_config, build_method = registry.parse_config(cfg.method)
    with torch.device("meta"):
        net = registry.build_network(to_dataclass(cfg.network, Network, "network"), method_config, num_classes=1)
        method = build_method(method_config, net, num_images, cfg.batch_size)
    transitions = {name: getattr(method, key) for key, name in TRANSITIONS.items() if hasattr(method, key)}
    return {
        NUM_STEPS: [num_steps],
        LEARNING_RATE: points,
        MEAN_LEARNING_RATE: [math.fsum(rates) / num_steps],
        **{name: [step if math.isfinite(step) else NOT_FINITE] for name, step in transitions.items()},
    }


def rehearse_all(folder: Path) -> None:
    """Do the rehearsals of a folder that no other process has begun."""
    requests = [Request(**each) for each in read_json(folder / REHEARSALS_FILE)]
    results = folder / f"results-{time.time_ns()}" if world_size() == 1 else folder / "results"
    trunk, *others = requests
    trunk.config["paths"]["results"] = str(results)
    rehearse(trunk, results)
    checkpoint = run_dir(OmegaConf.create(trunk.config)) / "checkpoint.pt"
    for request in _claimed(others, folder):
        if request.config.get("checkpoint") == RANDOM_TRUNK:
            request.config["checkpoint"] = str(checkpoint)
        started = time.monotonic()
        content: dict[str, Any]
        try:
            content = {"values": rehearse(request, results)}
        except Preempted:
            raise
        except Exception as error:
            if world_size() > 1:
                raise  # the other ranks wait for this one
            described = describe_error(error)
            content = {"error": described[0] if described else f"{type(error).__name__}: {error}"}
        _free_memory()
        if is_main():
            content |= {
                "seconds": time.monotonic() - started,
                "arithmetic": arithmetic.describe(),
                "hardware": provenance.hardware_name(),
                "packages": provenance.package_versions(),
                "world_size": world_size(),
            }
            write_json(folder / f"{request.name}.json", content)


def _claimed(requests: list[Request], folder: Path) -> Iterator[Request]:
    """Yield what this process is the first to begin; the ranks of one launcher begin everything together.

    Ranks that start again after a crash leave out what is done.
    """
    if world_size() > 1:
        yield from [each for each in requests if not (folder / f"{each.name}.json").exists()]
        return
    for request in requests:
        try:
            (folder / f"{request.name}.begun").touch(exist_ok=False)
        except FileExistsError:
            continue
        yield request


def _free_memory() -> None:
    """Free what the last rehearsal left in reference cycles, before the next network needs the memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main() -> int:
    """Rehearse what the command line's folder asks for."""
    if len(sys.argv) != 2:
        raise UserError("usage: python -m reproduce.rehearse FOLDER")
    prepare_process()
    folder = Path(sys.argv[1])
    first = read_json(folder / REHEARSALS_FILE)[0]["config"]["cluster"]
    with process_group(first["gpus_per_process"], first["collective_timeout_minutes"]):
        try:
            rehearse_all(folder)
        except Preempted as stop:
            print(stop, file=sys.stderr)
            return REQUEUE
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
