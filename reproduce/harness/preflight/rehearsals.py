"""Which rehearsals prove the recipes of a scale, and what they change: epochs and sets so small that every transition
(end of the warm-up, unfreezing, start of the queue, new clusters, a fall of the rate) happens within the first steps.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from reproduce.config.compose import compose, group_options
from reproduce.config.identity import identity
from reproduce.harness.plan import cost_facts

TRUNK = "random"
"""The experiment whose trunk the evaluations' rehearsals evaluate."""
RANDOM_TRUNK = "random trunk"
"""The checkpoint of an evaluation's rehearsal, which `reproduce.rehearse` replaces."""
NUM_STEPS = {"smoke": 12, "paper": 3}
"""Steps of a rehearsal by scale."""
NUM_IMAGES = 96
"""Images of smoke's rehearsals that fill batches: of 100, four are left over."""
MICRO_BATCH = 8
"""Images of a step at scale paper."""
BIG_TRUNKS = {"swav_w5_400ep": 4}
"""Experiments whose steps need a smaller micro-batch to fit 24 GB."""
IMAGENET = "ILSVRC2012"
"""The source of ImageNet in tables/costs.yaml."""
NUM_GENERATED = 2000
"""Training images of the generated ImageNet."""
RUNTIME = ("logging.wandb=false", "cluster.num_workers=0", "cluster.detector_processes=1")
"""Overrides of every rehearsal."""


@dataclass
class Rehearsal:
    """One rehearsal, and the experiments or evaluations that it proves."""

    name: str
    kind: str
    config: dict[str, Any]
    recipes: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    num_images: int = 0

    def request(self) -> dict[str, Any]:
        """Return what `reproduce.rehearse` reads."""
        return {key: value for key, value in asdict(self).items() if key not in ("recipes", "overrides")}


def rehearsals(scale: str, data_root: str, overrides: Iterable[str] = ()) -> list[Rehearsal]:
    """Return the rehearsals of a scale, the random trunk's first. Equal ones are one; `overrides` are added to all."""
    shared = [f"scale={scale}", "data=generated", f"paths.data_root={data_root}", *RUNTIME, *overrides]
    found: dict[str, Rehearsal] = {}
    schedules = []
    for name in (TRUNK, *(name for name in group_options("experiment") if name != TRUNK)):
        cfg = compose("pretrain", [f"experiment={name}", *shared])
        if name != TRUNK:
            schedules.append(_schedule(name, cfg))
        _add(found, name, "pretrain", cfg, [] if name == TRUNK else pretraining_changes(cfg, scale, name))
    for name in group_options("eval"):
        cfg = compose("evaluate", [f"eval={name}", f"checkpoint='{RANDOM_TRUNK}'", *shared])
        _add(found, name, "evaluate", cfg, evaluation_changes(cfg, scale))
    return [*found.values(), *schedules]


def pretraining_changes(cfg: DictConfig, scale: str, name: str) -> list[str]:
    """Return the overrides that bring a pretraining's transitions into its first steps."""
    batch, method, optimizer = cfg.batch_size, cfg.method, cfg.optimizer
    changes = ["collapse.on_collapse=warn"]
    if scale == "paper":
        batch = BIG_TRUNKS.get(name, MICRO_BATCH)
        changes += [f"batch_size={batch}", f"epochs={NUM_STEPS[scale]}"]
        changes += [f"network.batchnorm_group_size={batch // 2}"] * bool(cfg.network.batchnorm_group_size)
        changes += [f"method.queue_length={batch}"] * bool(method.name == "swav" and method.queue_length)
        changes += ["method.num_prototypes=4"] * (method.name in ("deepcluster_v2", "sela_v2"))
        changes += ["optimizer.warmup_epochs=1"] * bool(optimizer.warmup_epochs)
    else:
        changes.append(f"epochs={NUM_STEPS[scale] * batch // NUM_IMAGES}")
    changes += ["method.queue_start_epochs=1"] * bool(method.get("queue_start_epochs"))
    # At .999 the key encoder would stay where it is for 12 steps.
    changes += ["method.momentum=0.9"] * (method.name == "moco")
    return changes


def evaluation_changes(cfg: DictConfig, scale: str) -> list[str]:
    """Return the overrides that bring an evaluation's transitions into its first steps."""
    protocol, paper = cfg.protocol, scale == "paper"
    small_batch = [f"protocol.{key}={MICRO_BATCH}" for key in ("batch_size", "base_batch_size")] * paper
    if protocol.name in ("linear", "finetune"):
        changes = [*small_batch, f"protocol.epochs={3 if paper else 4}"]
        num_per_class = 1 if paper else 8
        return changes + [f"protocol.subset.images_per_class={num_per_class}"] * (
            protocol.name == "finetune" and "images_per_class" in protocol.subset
        )
    if protocol.name == "coco_detr":
        epochs = 3 if paper else 2
        few = [f"protocol.{key}=4" for key in ("batch_size", "base_batch_size")] * paper
        ends = [f"protocol.{key}={epochs}" for key in ("epochs", "validate_every_epochs")]
        return [*few, *ends, f"protocol.lr_drop_epoch={epochs - 1}"]
    if protocol.name == "voc_detection":
        few = [f"protocol.{key}=2" for key in ("batch_size", "base_batch_size")] * paper
        solver, num_steps = protocol.detectron2.SOLVER, NUM_STEPS[scale]
        warmup = min(solver.WARMUP_ITERS, 1 if paper else 4)
        solved = {"MAX_ITER": num_steps, "STEPS": [2] if paper else [8, 10], "WARMUP_ITERS": warmup}
        settings = [f"protocol.detectron2.SOLVER.{key}={value}" for key, value in solved.items()]
        return [*few, *settings, "protocol.detectron2.TEST.PRECISE_BN.NUM_ITER=2"]
    return []


def _add(found: dict[str, Rehearsal], name: str, kind: str, cfg: DictConfig, changes: list[str]) -> None:
    """Add a rehearsal, or its recipe to the rehearsal that computes the same."""
    for change in changes:
        key, _, value = change.partition("=")
        OmegaConf.update(cfg, key, yaml.safe_load(value))
    cfg.name = ""
    same = f"{kind} {json.dumps(identity(cfg), sort_keys=True)}"
    cfg.name = name
    if same not in found:
        found[same] = Rehearsal(name, kind, _plain(cfg), overrides=changes)
    found[same].recipes.append(name)


def _schedule(name: str, cfg: DictConfig) -> Rehearsal:
    """Return a rehearsal of a pretraining's learning rates over all of its steps."""
    known = cost_facts.load().data.get(IMAGENET)
    num_images = known.num_train if cfg.scale == "paper" and known else NUM_GENERATED
    config = {key: _plain(cfg)[key] for key in ("optimizer", "epochs", "batch_size")}
    return Rehearsal(f"schedule_{name}", "schedule", config, [name], num_images=num_images)


def _plain(cfg: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
