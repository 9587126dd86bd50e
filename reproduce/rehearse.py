"""Rehearse recipes: take the first steps of each on a few generated images, and write what they computed.

`python -m reproduce.rehearse FOLDER` reads `FOLDER/rehearsals.json`, written by `python -m reproduce preflight`: names,
kinds and configs. Several such processes share the work; the ranks of one launcher do each rehearsal together. A
rehearsal's numbers, or the error that ended it, go to `FOLDER/NAME.json`. `tables/golden/` has numbers of correct ones.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from reproduce.config.identity import run_dir
from reproduce.config.schema import Optimizer
from reproduce.config.validate import to_dataclass
from reproduce.engine import arithmetic
from reproduce.engine.distributed.collectives import is_main, process_group, world_size
from reproduce.engine.first_steps import NUM_FIRST_STEPS, FirstStepsDone
from reproduce.engine.preemption import Preemption
from reproduce.engine.runs import provenance
from reproduce.engine.runs.run import run_context
from reproduce.engine.schedule import learning_rate
from reproduce.errors import UserError, describe_error, run_cli
from reproduce.evaluate import run_evaluation
from reproduce.files import read_json, write_json
from reproduce.pretrain import run_pretraining

REHEARSALS_FILE = "rehearsals.json"
RANDOM_TRUNK = "random trunk"
"""Stands for the checkpoint of an evaluation: the first rehearsal of the file makes it."""
NUM_SCHEDULE_POINTS = 64
MAX_SCHEDULE_STEPS = 100_000
"""Longer schedules are summed over every n-th step."""


@dataclass(frozen=True)
class Rehearsal:
    """One entry of rehearsals.json."""

    name: str
    kind: str
    """`pretrain`, `evaluate`, or `schedule`: the learning rates of a whole pretraining, without taking its steps."""
    config: dict[str, Any]
    num_images: int = 0
    """Of a schedule's training set."""
    num_steps: int = NUM_FIRST_STEPS
    """Steps to record."""
    ends_early: bool = False
    """Whether a training ends after its last recorded step: a whole run of a table would take too long."""


def rehearse(rehearsal: Rehearsal, results: Path) -> dict[str, list[float]]:
    """Take a recipe's first steps in a folder of its own below `results`; return their numbers by quantity."""
    cfg = OmegaConf.create(rehearsal.config)
    if rehearsal.kind == "schedule":
        return schedule(cfg, rehearsal.num_images)
    cfg.paths.results = str(results)
    arithmetic.configure_torch(cfg)
    body = run_pretraining if rehearsal.kind == "pretrain" else run_evaluation
    with run_context(cfg) as run, Preemption(cfg.checkpointing.sync_every_steps) as preemption:
        run.first_steps.num_steps, run.first_steps.stop_after_last = rehearsal.num_steps, rehearsal.ends_early
        try:
            body(cfg, run, preemption)
        except FirstStepsDone:
            return run.first_steps.values()
    values = run.first_steps.values()
    if rehearsal.kind == "evaluate" and is_main():
        metrics = read_json(run.folder / "result.json")["metrics"]
        values |= {f"metric {name}": [value] for name, value in metrics.items()}
    return values


def schedule(cfg: DictConfig, num_images: int) -> dict[str, list[float]]:
    """Return the rates of a whole pretraining: at 64 steps from first to last, and their mean over all steps."""
    optimizer = to_dataclass(cfg.optimizer, Optimizer, "optimizer")
    num_steps = cfg.epochs * (num_images // cfg.batch_size)
    steps = range(0, num_steps, max(1, num_steps // MAX_SCHEDULE_STEPS))
    rates = [learning_rate(step, num_steps, cfg.epochs, optimizer) for step in steps]
    last = len(rates) - 1
    points = [rates[round(last * number / (NUM_SCHEDULE_POINTS - 1))] for number in range(NUM_SCHEDULE_POINTS)]
    return {"number of steps": [num_steps], "learning rate": points, "mean learning rate": [sum(rates) / len(rates)]}


def rehearse_all(folder: Path) -> None:
    """Do the rehearsals of a folder that no other process has begun."""
    rehearsals = [Rehearsal(**each) for each in read_json(folder / REHEARSALS_FILE)]
    results = folder / f"results-{time.time_ns()}" if world_size() == 1 else folder / "results"
    trunk, *others = rehearsals
    trunk.config["paths"]["results"] = str(results)
    rehearse(trunk, results)
    checkpoint = run_dir(OmegaConf.create(trunk.config)) / "checkpoint.pt"
    for rehearsal in _claimed(others, folder):
        if rehearsal.config.get("checkpoint") == RANDOM_TRUNK:
            rehearsal.config["checkpoint"] = str(checkpoint)
        started = time.monotonic()
        content: dict[str, Any]
        try:
            content = {"values": rehearse(rehearsal, results)}
        except Exception as error:
            if world_size() > 1:
                raise  # the other ranks wait for this one
            described = describe_error(error)
            content = {"error": described[0] if described else f"{type(error).__name__}: {error}"}
        if is_main():
            content |= {
                "seconds": time.monotonic() - started,
                "arithmetic": arithmetic.describe(),
                "hardware": provenance.hardware_name(),
                "packages": provenance.package_versions(),
                "world_size": world_size(),
            }
            write_json(folder / f"{rehearsal.name}.json", content)


def _claimed(rehearsals: list[Rehearsal], folder: Path) -> Iterator[Rehearsal]:
    """Yield what this process is the first to begin; the ranks of one launcher begin everything together."""
    for rehearsal in rehearsals:
        try:
            if world_size() == 1:
                (folder / f"{rehearsal.name}.begun").touch(exist_ok=False)
        except FileExistsError:
            continue
        yield rehearsal


def main() -> int:
    """Rehearse what the command line's folder asks for."""
    if len(sys.argv) != 2:
        raise UserError("usage: python -m reproduce.rehearse FOLDER")
    folder = Path(sys.argv[1])
    first = read_json(folder / REHEARSALS_FILE)[0]["config"]["cluster"]
    with process_group(first["gpus_per_process"], first["collective_timeout_minutes"]):
        rehearse_all(folder)
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
