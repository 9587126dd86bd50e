"""From a request ("experiment=swav_800ep scale=smoke") to one resolved, checked config, and to the run's name.

Nothing here imports torch: the planner composes every config of a table in about a second.
"""

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal, TypeVar

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from reproduce.config.schema import Catalogue  # and its schemas, registered with Hydra
from reproduce.errors import UserError, did_you_mean

CONF = Path(__file__).parents[1] / "conf"
GLOBAL = "# @package _global_"
"""How a file of conf/ begins whose keys are the whole config's: Hydra reads that line, it is more than a comment."""
AT_LEAST: dict[str, float] = {
    **dict.fromkeys(("seed", "cluster.num_workers", "method.queue_length", "optimizer.lr", "optimizer.momentum"), 0),
    **dict.fromkeys(("batch_size", "protocol.epochs", "protocol.batch_size", "method.num_prototypes"), 1),
    **dict.fromkeys(("cluster.num_processes", "cluster.num_threads", "logging.every_steps"), 1),
    "network.batchnorm_images": 1,
    "network.width": 1 / 64,  # one channel
}
LENGTHS = {"crops.augment.jitter": 4, "crops.augment.blur_radius_px": 2, "normalize.mean": 3, "normalize.std": 3}
ON_BAD_IMAGE = ("stop", "skip")
NAME = re.compile(r"\w[\w.+-]*")
"""What a run may be called: its folder, a rule of Snakemake's and a job are named so."""
NOT_HASHED = ("paths", "cluster", "logging", "sentinel", "data")
"""Sections that say where and how a run runs, not what it computes. (`data` is the whole catalogue; the one dataset
that a run reads is under `dataset`.)"""

NO_ACCUMULATION = (
    "gradient accumulation is not offered, for it is no large batch: BatchNorm, and Sinkhorn's even spread of the "
    "batch over the prototypes, would still see the small one. Take the small-batch recipe with its queue "
    "(experiment=swav_400ep_bs256), or cluster.activation_checkpointing=true to fit more images on a GPU"
)

Kind = Literal["pretrain", "evaluate", "measure"]
T = TypeVar("T")


def options(group: str) -> list[str]:
    """The names that a config group offers, e.g. `options("experiment")`."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def compose(kind: Kind, overrides: list[str]) -> DictConfig:
    """Resolve a request to a complete config; nothing in it is left to look up.

    `data=<file>.yaml` takes a catalogue of one's own. Raises `UserError` for an unknown option, key or type.
    """
    own_catalogue = [item for item in overrides if re.fullmatch(r"data=.*\.ya?ml", item)]
    rest = [item for item in overrides if item not in own_catalogue]
    _check_options(rest)
    try:
        with _hydra():
            cfg = hydra.compose(config_name=kind, overrides=rest)
        for item in own_catalogue:
            _replace_catalogue(cfg, Path(item.removeprefix("data=")))
        OmegaConf.resolve(cfg)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_sentence(kind, overrides, error)) from error
    if not OmegaConf.is_dict(cfg.dataset):
        raise UserError(
            f"config dataset: {cfg.dataset!r} is no data set: write ${{data.imagenet}}, or another of data's"
        )
    missing = sorted(key for key in OmegaConf.missing_keys(cfg) if not key.startswith("data."))
    if missing:
        raise UserError(f"config of {' '.join(overrides)}: no value for {', '.join(missing)}; give it as KEY=VALUE")
    _check_values(cfg)
    return cfg


def _hydra() -> Any:
    GlobalHydra.instance().clear()
    return hydra.initialize_config_dir(str(CONF), version_base="1.3")


def _check_options(overrides: list[str]) -> None:
    for item in overrides:
        if "accumulat" in item.partition("=")[0]:
            raise UserError(NO_ACCUMULATION)
        if item.startswith(("+", "~")):
            raise UserError(f"{item}: a config's keys can be set, as KEY=VALUE, but none can be added or taken away")
        group, given, choice = item.partition("=")
        if not group or not given:
            raise UserError(f"{item!r} sets no key: write KEY=VALUE, and special characters as KEY=\"'VALUE'\"")
        valid = options(group)
        if valid and choice not in valid:
            raise UserError(f"there is no {group} {choice!r}: {did_you_mean(choice, valid)}")


def _check_values(cfg: DictConfig) -> None:
    """Refuse what would end later in a traceback, or in a run that is done without having trained."""
    if not NAME.fullmatch(cfg.name):
        raise UserError(f"config name={cfg.name!r}: it must be of letters, digits and any of _ . + -")
    for key, least in AT_LEAST.items():
        value = OmegaConf.select(cfg, key)
        if isinstance(value, int | float) and not value >= least:  # NaN neither
            raise UserError(f"config {key}={value}: it must be {least:g} or more")
    if "epochs" in cfg and cfg.epochs < (trained := cfg.method.name != "none"):
        raise UserError(f"config epochs={cfg.epochs}: it must be {trained:d} or more")
    for key, length in LENGTHS.items():
        value = OmegaConf.select(cfg, key)
        if value is not None and len(value) != length:
            raise UserError(f"config {key}={value}: it must have {length} values")
    for number, view in enumerate(OmegaConf.select(cfg, "crops.views") or []):
        if len(view.area) != 2 or min(view.num, view.size_px) < 1:
            raise UserError(f"config crops.views[{number}]={view}: num and size_px must be 1 or more, area two shares")
    if "crops" in cfg and not cfg.crops.views:
        raise UserError("config crops.views=[]: there must be a view")
    if cfg.get("on_bad_image", "stop") not in ON_BAD_IMAGE:
        raise UserError(
            f"there is no on_bad_image {cfg.on_bad_image!r}: {did_you_mean(cfg.on_bad_image, ON_BAD_IMAGE)}"
        )


def _replace_catalogue(cfg: DictConfig, path: Path) -> None:
    if not path.is_file():
        raise UserError(f"data config {path} is not there: give a YAML file, or one of {', '.join(options('data'))}")
    try:
        own = OmegaConf.load(path)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"data config {path} is no YAML file: {' '.join(str(error).split())}") from error
    cfg.data = OmegaConf.merge(OmegaConf.structured(Catalogue), {"name": path.stem}, own)
    for name in dataclasses.fields(Catalogue):
        if name.name != "name" and OmegaConf.is_missing(cfg.data[name.name], "name"):
            cfg.data[name.name].name = name.name


def _sentence(kind: Kind, overrides: list[str], error: Exception) -> str:
    """Say what is wrong with a request; for an unknown key, name the nearest valid ones."""
    cause = str(error.__cause__ or error)
    full_key = re.search(r"full_key: ([\w.]+)", cause)
    if full_key and re.search(r"Key '\w+' (not in|is not in struct)", cause):
        for file in (CONF / full_key[1] / f"{item.partition('=')[2]}.yaml" for item in overrides):
            if file.is_file() and not file.read_text().startswith(GLOBAL):
                return f"{file} has to begin with the line {GLOBAL!r}: its keys are the whole config's"
        return f"there is no config key {full_key[1]!r}: {did_you_mean(full_key[1], _keys(kind))}"
    reason = next(line for line in cause.splitlines() if line and not line.endswith("raised while composing config:"))
    where = f" (at {full_key[1]})" if full_key else ""
    return f"config of {' '.join(overrides)!r}: {reason.strip().rstrip('.')}{where}"


def _keys(kind: Kind) -> list[str]:
    """Every key of a kind's config, dotted."""
    defaults = {"pretrain": [], "evaluate": ["eval=knn", "checkpoint=x"], "measure": ["measurement=cost"]}[kind]
    with _hydra():
        cfg = hydra.compose(config_name=kind, overrides=defaults)

    def walk(node: Any, prefix: str) -> list[str]:
        if not OmegaConf.is_dict(node):
            return [prefix]
        below = [walk(node._get_node(key), f"{prefix}.{key}" if prefix else str(key)) for key in node]
        return [name for names in below for name in names]

    return [key for key in walk(cfg, "") if not key.startswith("scale.")]


def identity(cfg: DictConfig) -> dict[str, Any]:
    """The part of a config that decides what a run computes, as plain data. A checkpoint file counts by its content."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    kept = {str(key): _without_nulls(value) for key, value in plain.items() if key not in NOT_HASHED}
    kept["scale"] = kept["scale"]["name"]
    checkpoint = Path(str(kept.get("checkpoint", "")))
    if checkpoint.is_file():
        kept["checkpoint"] = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    return kept


def _without_nulls(value: Any) -> Any:
    """What is left at null says nothing: an option that is added later leaves the names of earlier runs alone."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def config_hash(cfg: DictConfig) -> str:
    """SHA-256 of a config's identity."""
    text = json.dumps(identity(cfg), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def run_id(cfg: DictConfig) -> str:
    """Readable name + hash: equal configs are one run."""
    return f"{cfg.name}-s{cfg.seed}-{config_hash(cfg)[:10]}"


def run_dir(cfg: DictConfig) -> Path:
    """Where a run keeps its files."""
    return Path(cfg.paths.results) / cfg.scale.name / run_id(cfg)


def typed(section: Any, schema: type[T], where: str) -> T:
    """A config section as an instance of its dataclass; `UserError` for an unknown key or a value of the wrong type."""
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), section))  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or ""
        valid = [item.name for item in dataclasses.fields(schema)]  # type: ignore[arg-type]
        hint = "" if key in valid else f": {did_you_mean(key, valid)}"
        raise UserError(f"config {where}.{key}: {str(error).splitlines()[0]}{hint}") from error
