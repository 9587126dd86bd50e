"""Which rehearsals prove the recipes of a scale, and what they change: epochs and sets so small that every transition
(end of the warm-up, unfreezing, start of the queue, new clusters, a fall of the rate) happens within the first steps.
"""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from reproduce.config import DETECTORS, RunKind
from reproduce.config.compose import compose, group_options
from reproduce.config.identity import identity
from reproduce.data.prepare import synthetic
from reproduce.harness import data_check
from reproduce.harness.plan import cost_facts
from reproduce.harness.plan.build import build_plan
from reproduce.harness.plan.model import Request as TableRequest
from reproduce.harness.spec import tables
from reproduce.rehearsal import NUM_FIRST_STEPS, RANDOM_TRUNK, Request

TRUNK = "random"
"""The experiment whose trunk the evaluations' rehearsals evaluate."""
NUM_STEPS = {"smoke": NUM_FIRST_STEPS, "paper": 3}
"""Steps of a rehearsal by scale."""
NUM_FEW_STEPS = 4
"""Steps of other rehearsals at scale smoke: in fp32 or less rounding has changed a percent by then, and recipes that
are not in `NUM_FP64_STEPS` share the code of their transitions with one that is. When theirs happen is compared
exactly, with the learning rates of all steps."""
NUM_FP64_STEPS = {
    "bownet_305ep": NUM_FIRST_STEPS,
    "deepcluster_v2_800ep": NUM_FIRST_STEPS,
    "local_aggregation_200ep": NUM_FIRST_STEPS,
    "moco_v2_200ep": NUM_FIRST_STEPS,
    "pcl_v1_200ep": NUM_FIRST_STEPS,
    "rotnet_105ep": NUM_FIRST_STEPS,
    "sela_v2_400ep_2x160_4x96": NUM_FIRST_STEPS,
    "simclr_1000ep": NUM_FIRST_STEPS,
    "supervised": NUM_FIRST_STEPS,
    "swav_100ep": NUM_FIRST_STEPS,
    "swav_200ep_bs256": NUM_FIRST_STEPS,
    "swav_400ep_fixed_prototypes": NUM_FIRST_STEPS,
    # Their prototypes train from steps 4 and 3 on.
    "swav_w4_400ep": 6,
    "swav_w5_400ep": 5,
}
"""Steps in fp64 of the experiments whose transitions are rehearsed."""
PRECISIONS = {"smoke": ("fp64", "fp32"), "paper": ("fp32",)}
"""Precisions of the rehearsals by scale. In fp64, a dozen steps show any change of a recipe; in fp32, the first ones
show what is wrong with a machine's kernels. Trunks of full size are too slow in fp64."""
HALF_PRECISIONS = ("bf16", "fp16")
"""Precisions of the methods in `MIXED_PRECISION` only."""
REHEARSED_LOSS_SCALE = 1024
"""Where fp16's scaler starts in a rehearsal. At torch's 65,536 the first steps of a small network overflow and are
skipped, one or three by chance."""
RECORDED_PRECISIONS = {"smoke": ("fp64", "fp32", *HALF_PRECISIONS), "paper": ("fp32",)}
"""What is recorded for each scale: what a preflight rehearses by default, and what PRECISION= may ask for."""
NOT_REHEARSED = ("own_classifier",)
"""Evaluations of networks that come with a classifier, which no run trains: there is none to rehearse with."""
MIXED_PRECISION = ("swav", "simclr")
"""Methods whose recipes have mixed precision: fp16, or bf16 in its place."""
NARROW = ("swav_w4_400ep", "swav_w5_400ep")
"""Experiments whose trunks are narrow in fp64, to save minutes; in fp32 they have their width."""
BATCH_SIZE = 16
"""Images of a step of a pretraining at scale smoke: six steps make an epoch of 100 images, and four are left over."""
MICRO_BATCH = 4
"""Images of a step at scale paper: few, so that two cores take minutes for all recipes."""
W5_MICRO_BATCH = 2
"""Images of a step of w5 at scale paper, so that it needs no more memory than a detector."""
FULL_SIZE = ("paper",)
"""Scales whose networks have their full size: one process does all rehearsals, because w5 or a detector needs 10 to 13
GB, and few arithmetics are measured."""
IMAGENET = "ILSVRC2012"
"""The source of ImageNet in tables/costs.yaml."""
PROCESSES = (1, 2, 4)
"""Numbers of processes whose shares of every batch are even."""
RUNTIME = ("logging.wandb=false", "cluster.num_workers=0", "cluster.detector_processes=1")
"""Overrides of every rehearsal."""


@dataclass
class Rehearsal(Request):
    """One rehearsal, and the experiments or evaluations that it proves."""

    recipes: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    of_table: bool = False
    """Whether it stands for a run of a table; its name is the run_id."""
    trained_trunk: bool = False
    """Whether it evaluates a trunk that a table's run trains, for which the random one stands here."""

    @property
    def protocol(self) -> str:
        """The evaluation's protocol; "" of a pretraining."""
        return str(self.config.get("protocol", {}).get("name", ""))

    @property
    def batch_size(self) -> int:
        """Images of a training step; 0 of an evaluation that trains nothing by steps."""
        return int(self.config.get("protocol", self.config).get("batch_size", 0))

    def request(self) -> dict[str, Any]:
        """Return what `reproduce.rehearse` reads."""
        asked = {each.name for each in fields(Request)}
        return {key: value for key, value in asdict(self).items() if key in asked}


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
    trunk = compose("pretrain", [f"experiment={TRUNK}", *shared])
    found = {"": Rehearsal(TRUNK, "pretrain", _plain(trunk), recipes=[TRUNK])}
    schedules = []
    for name in group_options("experiment"):
        if name == TRUNK or (only and name not in only):
            continue
        cfg = compose("pretrain", [f"experiment={name}", *shared])
        schedules.append(_schedule(name, cfg))
        for precision in precisions:
            if precision not in HALF_PRECISIONS or cfg.method.name in MIXED_PRECISION:
                _add(found, name, "pretrain", cfg, precision, pretraining_changes(cfg, scale, name, precision))
    for name in group_options("eval"):
        if (only and name not in only) or name in NOT_REHEARSED:
            continue
        cfg = compose("evaluate", [f"eval={name}", f"checkpoint='{RANDOM_TRUNK}'", *shared])
        for precision in precisions:
            # No released evaluation has mixed precision, and Detectron2's boxes are fp32.
            if precision not in HALF_PRECISIONS and (precision, cfg.protocol.name) != ("fp64", "voc_detection"):
                _add(found, name, "evaluate", cfg, precision, evaluation_changes(cfg, scale))
    return [*found.values(), *schedules]


def same_for_any_number_of_processes(planned: Iterable[Rehearsal]) -> list[Rehearsal]:
    """Return the rehearsals whose numbers do not depend on the number of processes; runs with an odd batch have one."""
    # What a detector draws depends on the number of ranks.
    return [each for each in planned if each.protocol not in DETECTORS and not (each.of_table and each.batch_size % 2)]


def runs_of_tables(scale: str) -> list[Rehearsal]:
    """Return the runs of a scale's tables, seed 0, as rehearsals that end after the first steps; names are run_ids.

    An evaluation evaluates the random trunk in place of a trained one, whose weights differ from machine to machine.
    Left out are runs without numbers of that kind (features of a trained trunk), and those of the clustering methods,
    which label all images first, for minutes.
    """
    found = []
    plan = build_plan(TableRequest(tuple(tables.names(scale)), scale))
    data_check.generate_images(plan)
    for run in plan.runs.values():
        cfg = compose(run.kind, [*run.overrides, *RUNTIME])
        is_evaluation = run.kind == "evaluate"
        trained = is_evaluation and run.parent_name != TRUNK
        if is_evaluation:
            cfg.checkpoint = RANDOM_TRUNK
        if run.kind == "measure" or run.name == TRUNK or (trained and cfg.protocol.name in ("knn", "voc07_svm")):
            continue
        if not is_evaluation and "num_banks" in cfg.method:
            continue
        found.append(
            Rehearsal(
                run.run_id,
                run.kind,
                _plain(cfg),
                num_steps=NUM_FEW_STEPS,
                ends_early=True,
                recipes=[run.label],
                of_table=True,
                trained_trunk=trained,
            )
        )
    return found


def pretraining_changes(cfg: DictConfig, scale: str, name: str, precision: str) -> list[str]:
    """Return the overrides that bring a pretraining's transitions into its first steps."""
    method, warmup = cfg.method, cfg.optimizer.warmup_epochs
    changes = ["collapse.on_collapse=warn"]
    changes += [f"initial_loss_scale={REHEARSED_LOSS_SCALE}"] * (precision == "fp16")
    if scale == "paper":
        batch, epochs = W5_MICRO_BATCH if name == "swav_w5_400ep" else MICRO_BATCH, NUM_STEPS[scale]
        changes += [f"network.batchnorm_group_size={batch // 2}"] * bool(cfg.network.batchnorm_group_size)
        changes += ["method.num_prototypes=4"] * (method.name in ("deepcluster_v2", "sela_v2"))
        num_batches = 1
    else:
        batch, epochs = BATCH_SIZE, 2
        num_batches = method.get("queue_length", 0) // cfg.batch_size
        changes += ["network.width=0.25", "network.head_hidden_dim=256"] * (precision == "fp64" and name in NARROW)
    changes += [f"batch_size={batch}", f"epochs={epochs}"]
    changes += ["optimizer.warmup_epochs=1"] * bool(warmup)
    if method.name == "swav" and method.queue_length:
        changes += [f"method.queue_length={num_batches * batch}"]
        changes += ["method.queue_start_epochs=1"] * bool(method.queue_start_epochs)
    # At .999 the key encoder would stay where it is for 12 steps.
    changes += ["method.momentum=0.9"] * (method.name in ("moco", "pcl"))
    sizes: dict[str, dict[str, tuple[Any, Any]]] = {
        "bownet": {"num_words": (20, 5)},
        "local_aggregation": {"num_clusters": (20, 5), "num_neighbors": (16, 5)},
        "pcl": {"num_clusters": ("[60,80]", "[9,10]"), "num_negative_prototypes": (32, 1)},
    }
    changes += [f"method.{key}={values[scale == 'paper']}" for key, values in sizes.get(method.name, {}).items()]
    changes += ["method.warmup_epochs=1"] * ("warmup_epochs" in method)
    changes += ["method.rotation_epochs=1", "optimizer.restart_epoch=1"] * ("rotation_epochs" in method)
    return changes


def evaluation_changes(cfg: DictConfig, scale: str) -> list[str]:
    """Return the overrides that bring an evaluation's transitions into its first steps."""
    protocol, paper = cfg.protocol, scale == "paper"
    small_batch = [f"protocol.{key}={MICRO_BATCH}" for key in ("batch_size", "base_batch_size")] * paper
    if protocol.name in ("linear", "finetune"):
        # Smoke finetunes with an odd batch, which several processes can't share.
        even_batch = [f"protocol.{key}=64" for key in ("batch_size", "base_batch_size")] * (protocol.batch_size % 2)
        changes = [*(small_batch or even_batch), f"protocol.epochs={3 if paper else 4}"]
        few = protocol.name == "finetune" and "images_per_class" in protocol.subset
        return changes + [f"protocol.subset.images_per_class={1 if paper else 8}"] * few
    if protocol.name == "coco_detr":
        epochs = 3 if paper else 2
        batch = [f"protocol.{key}=4" for key in ("batch_size", "base_batch_size")] * paper
        ends = [f"protocol.{key}={epochs}" for key in ("epochs", "validate_every_epochs")]
        # GPUs and CPUs draw different dropout.
        return [*batch, *ends, f"protocol.lr_drop_epoch={epochs - 1}", "protocol.transformer.dropout=0"]
    if protocol.name == "voc_detection":
        batch = [f"protocol.{key}=2" for key in ("batch_size", "base_batch_size")] * paper
        num_steps = NUM_STEPS[scale] if paper else NUM_FEW_STEPS
        solved = {"MAX_ITER": num_steps, "STEPS": list(range(2, num_steps)), "WARMUP_ITERS": 1}
        settings = [f"protocol.detectron2.SOLVER.{key}={value}" for key, value in solved.items()]
        return [*batch, *settings, "protocol.detectron2.TEST.PRECISE_BN.NUM_ITER=2"]
    return []


def _add(
    found: dict[str, Rehearsal], name: str, kind: RunKind, base: DictConfig, precision: str, changes: list[str]
) -> None:
    """Add a rehearsal, or its recipe to the rehearsal that computes the same."""
    cfg = base.copy()
    cfg.precision = precision
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
        # In fp64, DETR trains to its end and validates: its first detections are compared, too.
        ends_early = (name, precision) != ("coco_detr", "fp64")
        found[same] = Rehearsal(
            f"{name}.{precision}", kind, _plain(cfg), num_steps=num_steps, ends_early=ends_early, overrides=changes
        )
    found[same].recipes.append(name)


def _schedule(name: str, cfg: DictConfig) -> Rehearsal:
    """Return a rehearsal of a pretraining's learning rates over all of its steps."""
    if cfg.scale == "paper":
        num_images = cost_facts.load().data[IMAGENET].num_train
    else:
        (imagenet,) = [each for each in synthetic.CLASS_SETS if each.name == "imagenet"]
        num_images = imagenet.num_train * len(imagenet.textures)
    config = {key: _plain(cfg)[key] for key in ("optimizer", "method", "network", "epochs", "batch_size")}
    return Rehearsal(f"schedule_{name}", "schedule", config, num_images, recipes=[name])


def _plain(cfg: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
