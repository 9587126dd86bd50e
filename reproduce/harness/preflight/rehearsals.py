"""Which rehearsals prove the recipes of a scale, and what they change: epochs and sets so small that every transition
(end of the warm-up, unfreezing, start of the queue, new clusters, a fall of the rate) happens within the first steps.
"""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from reproduce.config.compose import compose, group_options
from reproduce.config.identity import identity
from reproduce.harness import data_check
from reproduce.harness.plan import cost_facts
from reproduce.harness.plan.build import build_plan
from reproduce.harness.plan.model import Request
from reproduce.harness.spec import tables

TRUNK = "random"
"""The experiment whose trunk the evaluations' rehearsals evaluate."""
RANDOM_TRUNK = "random trunk"
"""The checkpoint of an evaluation's rehearsal, which `reproduce.rehearse` replaces."""
NUM_STEPS = {"smoke": 12, "paper": 3}
"""Steps of a rehearsal by scale."""
NUM_FEW_STEPS = 4
"""Steps of other rehearsals at scale smoke: in fp32 or less rounding has changed a percent by then, and recipes that
are not in `NUM_FP64_STEPS` share their transitions with one that is."""
NUM_FP64_STEPS = {
    "deepcluster_v2_800ep": 12,
    "moco_v2_200ep": 12,
    "sela_v2_400ep_2x160_4x96": 12,
    "simclr_1000ep": 12,
    "supervised": 12,
    "swav_100ep": 12,
    "swav_200ep_bs256": 12,
    "swav_400ep_fixed_prototypes": 12,
    # Their prototypes train from steps 4 and 3 on.
    "swav_w4_400ep": 6,
    "swav_w5_400ep": 5,
}
"""Steps in fp64 of the experiments whose transitions are rehearsed."""
PRECISIONS = {"smoke": ("fp64", "fp32"), "paper": ("fp32",)}
"""Precisions of the rehearsals by scale. In fp64, a dozen steps show any change of a recipe; in fp32, the first ones
show what is wrong with a machine's kernels. Trunks of full size are too slow in fp64."""
MIXED_PRECISION = ("swav", "simclr")
"""Methods whose recipes have mixed precision, in which bf16 may take fp16's place."""
BATCH_SIZE = 16
"""Images of a step of a pretraining at scale smoke: six steps make an epoch of 100 images, and four are left over."""
MICRO_BATCH = 8
"""Images of a step at scale paper."""
W5_MICRO_BATCH = 2
"""Images of a step of w5 at scale paper, so that it fits 24 GB."""
IMAGENET = "ILSVRC2012"
"""The source of ImageNet in tables/costs.yaml."""
NUM_GENERATED = 2000
"""Training images of the generated ImageNet."""
NOT_REQUESTED = ("recipes", "overrides", "trained_trunk")
"""Fields of a rehearsal that concern the harness only."""
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
    num_steps: int = 12
    ends_early: bool = False
    trained_trunk: bool = False
    """Whether it evaluates a trunk that a table's run trains, for which the random one stands here."""

    def request(self) -> dict[str, Any]:
        """Return what `reproduce.rehearse` reads."""
        return {key: value for key, value in asdict(self).items() if key not in NOT_REQUESTED}


def rehearsals(
    scale: str,
    data_root: str,
    precisions: Sequence[str] = (),
    overrides: Iterable[str] = (),
    only: Collection[str] = (),
) -> list[Rehearsal]:
    """Return the rehearsals of a scale, the random trunk's first. Equal ones are one; `overrides` are added to all.

    `precisions` default to those of the scale. `only` names the recipes to rehearse, if not all.
    """
    shared = [f"scale={scale}", "data=generated", f"paths.data_root={data_root}", *RUNTIME, *overrides]
    precisions = precisions or PRECISIONS[scale]
    found: dict[str, Rehearsal] = {}
    schedules = []
    for name in (TRUNK, *(name for name in group_options("experiment") if name != TRUNK)):
        if only and name not in {TRUNK, *only}:
            continue
        cfg = compose("pretrain", [f"experiment={name}", *shared])
        if name != TRUNK:
            schedules.append(_schedule(name, cfg))
        if name == TRUNK:
            _add(found, name, "pretrain", cfg, "", [])
        else:
            changes = pretraining_changes(cfg, scale, name)
            for precision in precisions:
                if precision != "bf16" or cfg.method.name in MIXED_PRECISION:
                    _add(found, name, "pretrain", cfg, precision, changes)
    for name in group_options("eval"):
        if only and name not in only:
            continue
        cfg = compose("evaluate", [f"eval={name}", f"checkpoint='{RANDOM_TRUNK}'", *shared])
        changes = evaluation_changes(cfg, scale)
        for precision in precisions:
            # No released evaluation has mixed precision, and Detectron2's boxes are fp32.
            if precision == "bf16" or (precision == "fp64" and cfg.protocol.name == "voc_detection"):
                continue
            _add(found, name, "evaluate", cfg, precision, changes)
    return [*found.values(), *schedules]


def same_for_any_number_of_processes(planned: Iterable[Rehearsal]) -> list[Rehearsal]:
    """Return the rehearsals whose numbers do not depend on the number of processes: detectors draw on each rank."""
    detectors = ("coco_detr", "voc_detection")
    return [each for each in planned if each.config.get("protocol", {}).get("name") not in detectors]


def runs_of_tables(scale: str) -> list[Rehearsal]:
    """Return the runs of a scale's tables, seed 0, as rehearsals that end after the first steps; names are run_ids.

    An evaluation evaluates the random trunk in place of a trained one, whose weights differ from machine to machine.
    """
    found = []
    plan = build_plan(Request(tuple(tables.names(scale)), scale))
    data_check.generate_images(plan)
    for run in plan.runs.values():
        cfg = compose(run.kind, [*run.overrides, *RUNTIME])
        is_evaluation = run.kind == "evaluate"
        if is_evaluation:
            cfg.checkpoint = RANDOM_TRUNK
        if run.kind != "measure" and run.name != TRUNK:
            trained = is_evaluation and run.parent_name != TRUNK
            label = [run.label]
            found.append(
                Rehearsal(
                    run.run_id,
                    run.kind,
                    _plain(cfg),
                    label,
                    ends_early=True,
                    trained_trunk=trained,
                    num_steps=NUM_FEW_STEPS,
                )
            )
    return found


def pretraining_changes(cfg: DictConfig, scale: str, name: str) -> list[str]:
    """Return the overrides that bring a pretraining's transitions into its first steps."""
    method, warmup = cfg.method, cfg.optimizer.warmup_epochs
    changes = ["collapse.on_collapse=warn"]
    if scale == "paper":
        batch, epochs = W5_MICRO_BATCH if name == "swav_w5_400ep" else MICRO_BATCH, NUM_STEPS[scale]
        changes += [f"network.batchnorm_group_size={batch // 2}"] * bool(cfg.network.batchnorm_group_size)
        changes += ["method.num_prototypes=4"] * (method.name in ("deepcluster_v2", "sela_v2"))
        num_batches = 1
    else:
        batch, epochs = BATCH_SIZE, 2
        num_batches = method.get("queue_length", 0) // cfg.batch_size
    changes += [f"batch_size={batch}", f"epochs={epochs}"]
    changes += ["optimizer.warmup_epochs=1"] * bool(warmup)
    if method.name == "swav" and method.queue_length:
        changes += [f"method.queue_length={num_batches * batch}"]
        changes += ["method.queue_start_epochs=1"] * bool(method.queue_start_epochs)
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


def _add(
    found: dict[str, Rehearsal], name: str, kind: str, base: DictConfig, precision: str, changes: list[str]
) -> None:
    """Add a rehearsal, or its recipe to the rehearsal that computes the same."""
    cfg = base.copy()
    cfg.precision = precision or cfg.precision
    for change in changes:
        key, _, value = change.partition("=")
        OmegaConf.update(cfg, key, yaml.safe_load(value))
    cfg.name = ""
    same = f"{kind} {json.dumps(identity(cfg), sort_keys=True)}"
    cfg.name = name
    if same not in found:
        num_steps = NUM_STEPS[cfg.scale]
        if cfg.scale == "smoke" and (precision != "fp64" or kind == "pretrain"):
            num_steps = NUM_FP64_STEPS.get(name, NUM_FEW_STEPS) if precision == "fp64" else NUM_FEW_STEPS
        whole_name = f"{name}.{precision}" if precision else name
        # In fp64, DETR trains to its end and validates: its first detections are compared, too.
        ends_early = bool(precision) and (name, precision) != ("coco_detr", "fp64")
        found[same] = Rehearsal(
            whole_name, kind, _plain(cfg), overrides=changes, num_steps=num_steps, ends_early=ends_early
        )
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
