"""Checks of a config beyond the types of its schema: overrides, bounds, and sections whose schema lies elsewhere."""

import dataclasses
import itertools
import re
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from reproduce.errors import UserError, did_you_mean

MIN_VALUES: dict[float, tuple[str, ...]] = {
    0: (
        *("seed", "cluster.num_workers", "collapse.patience_epochs", "method.queue_length"),
        *("optimizer.lr", "optimizer.final_lr", "optimizer.momentum", "optimizer.weight_decay"),
        *("optimizer.warmup_epochs", "optimizer.warmup_start_lr"),
        *("protocol.lr", "protocol.lr_trunk", "protocol.lr_head", "protocol.lr_backbone"),
        *("protocol.momentum", "protocol.weight_decay"),
    ),
    1 / 64: ("network.width",),  # one channel
    1: (
        *("batch_size", "protocol.epochs", "protocol.batch_size", "protocol.base_batch_size"),
        *("protocol.center_crop.resize_px", "protocol.center_crop.crop_px", "network.batchnorm_group_size"),
        *("method.num_prototypes", "method.num_sinkhorn_iterations"),
        *("measurement.images_per_step", "measurement.num_steps"),
        *("cluster.num_processes", "cluster.detector_processes", "cluster.num_threads", "cluster.cores_per_gpu"),
        *("cluster.collective_timeout_minutes", "logging.every_steps", "checkpointing.sync_every_steps"),
    ),
    2: ("protocol.num_folds", "protocol.grid"),
}
"""Keys by the smallest value that they may have."""
MAX_SEED = 2**32 - 1
"""The largest number that all generators of random numbers take as a seed (NumPy's takes no more)."""
POSITIVE = ("method.temperature", "method.epsilon", "protocol.temperature", "initial_loss_scale")
"""Values that cosines are divided by, or a loss is multiplied with."""
PROBABILITIES = (
    *("crops.augment.flip_probability", "crops.augment.color_jitter_probability"),
    *("crops.augment.grayscale_probability", "crops.augment.blur_probability", "protocol.transforms.crop_probability"),
)
MILESTONES = ("optimizer.milestones", "protocol.milestones")
"""Fractions of the epochs. The detectors' own keys (steps, lr_drop_epoch) count iterations and epochs."""
NAMED_SECTIONS = ("method", "protocol", "measurement")
"""Sections whose `name` says which code reads them."""
LENGTHS = {"crops.augment.color_jitter": 4, "crops.augment.blur_sigma_px": 2, "normalize.mean": 3, "normalize.std": 3}
ON_BAD_IMAGE = ("stop", "skip")
RUN_NAME = re.compile(r"\w[\w.+-]*")
"""Valid names of runs: a folder, a Snakemake rule and a cluster job are named after the run."""
T = TypeVar("T")


def check_values(cfg: DictConfig) -> None:
    """Refuse values that would end later in a traceback, or in a run that finishes without having trained.

    Raises `UserError` naming the key.
    """
    if not RUN_NAME.fullmatch(cfg.name):
        raise UserError(f"config name={cfg.name!r}: use letters, digits and any of _ . + - only")
    for section in (section for section in NAMED_SECTIONS if section in cfg):
        if not isinstance(name := OmegaConf.select(cfg, f"{section}.name"), str):
            raise UserError(f"config {section}.name={name}: it must be a name, as the options of {section} have it")
    _check_bounds(cfg)
    if "epochs" in cfg and cfg.epochs < (trains := cfg.method.name != "none"):
        raise UserError(f"config epochs={cfg.epochs}: it must be {trains:d} or more")
    for key, length in LENGTHS.items():
        value = OmegaConf.select(cfg, key)
        if value is not None and len(value) != length:
            raise UserError(f"config {key}={value}: it must have {length} values")
    if not all(value > 0 for value in cfg.normalize.std):
        raise UserError(f"config normalize.std={cfg.normalize.std}: pixels are divided by it, it must be more than 0")
    _check_milestones(cfg)
    _check_crops(cfg)
    if cfg.get("on_bad_image", "stop") not in ON_BAD_IMAGE:
        raise UserError(
            f"there is no on_bad_image {cfg.on_bad_image!r}: {did_you_mean(cfg.on_bad_image, ON_BAD_IMAGE)}"
        )


def _check_bounds(cfg: DictConfig) -> None:
    for minimum, key in ((minimum, key) for minimum, keys in MIN_VALUES.items() for key in keys):
        value = OmegaConf.select(cfg, key)
        if isinstance(value, int | float) and not value >= minimum:  # NaN neither
            raise UserError(f"config {key}={value}: it must be {minimum:g} or more")
    if cfg.seed > MAX_SEED:
        raise UserError(f"config seed={cfg.seed}: it must be {MAX_SEED} or less")
    for key in POSITIVE:
        value = OmegaConf.select(cfg, key)
        if isinstance(value, int | float) and not value > 0:
            raise UserError(f"config {key}={value}: it must be more than 0")
    for key in PROBABILITIES:
        value = OmegaConf.select(cfg, key)
        if isinstance(value, int | float) and not 0 <= value <= 1:
            raise UserError(f"config {key}={value}: it must be from 0 to 1")


def _check_milestones(cfg: DictConfig) -> None:
    """Raise `UserError` for milestones that are no fractions: at epochs beyond the last one, the rate never falls.

    Also for a schedule by steps without milestones, a constant rate, and for milestones that a cosine would ignore.
    """
    for key in MILESTONES:
        found = OmegaConf.select(cfg, key)
        if not OmegaConf.is_list(found) or not all(isinstance(value, int | float) for value in found):
            continue  # None, or of a type that the section's schema refuses
        if not all(low < high for low, high in itertools.pairwise([0, *found, 1])):
            raise UserError(
                f"config {key}={found}: they must ascend between 0 and 1, as fractions of the epochs: write .6 for "
                "epoch 60 of 100"
            )
    schedule, milestones = (OmegaConf.select(cfg, f"protocol.{key}") for key in ("schedule", "milestones"))
    if schedule in ("steps", "cosine") and (schedule == "steps") != bool(milestones):
        raise UserError(
            f"config protocol.schedule={schedule} with protocol.milestones={milestones}: schedule=steps has milestones "
            "(such as [.6,.8]), and schedule=cosine has none"
        )


def _check_crops(cfg: DictConfig) -> None:
    for number, view in enumerate(OmegaConf.select(cfg, "crops.views") or []):
        if len(view.scale) != 2 or min(view.num, view.size_px) < 1:
            raise UserError(f"config crops.views[{number}]={view}: num and size_px must be 1 or more, scale two values")
        low, high = view.scale
        if not 0 < low <= high <= 1:
            raise UserError(
                f"config crops.views[{number}].scale={view.scale}: it must ascend within 0 and 1, as the share of the "
                "image's area: write [.14, 1]"
            )
    if "crops" in cfg and not cfg.crops.views:
        raise UserError("config crops.views=[]: there must be at least one view")


def to_dataclass(section: Any, schema: type[T], where: str) -> T:
    """Convert a config section to an instance of its dataclass `schema`; `where` is the section's name in errors.

    Raises `UserError` for an unknown key or a value of the wrong type.
    """
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), section))  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or ""
        valid = [item.name for item in dataclasses.fields(schema)]  # type: ignore[arg-type]
        hint = "" if key in valid else f": {did_you_mean(key, valid)}"
        raise UserError(f"config {where}.{key}: {str(error).splitlines()[0]}{hint}") from error
