"""Compose a request ("experiment=swav_800ep scale=smoke") to one resolved, checked config.

Nothing here imports torch: the planner composes all configs of a table in about a second.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from reproduce.config import RunKind
from reproduce.config.quoting import quote_paths
from reproduce.config.schema import ABSENT, SCHEMAS, DataCatalog  # importing it registers the schemas with Hydra
from reproduce.config.validate import check_values
from reproduce.errors import UserError, did_you_mean
from reproduce.parsing import parse_yaml
from reproduce.system import CONF_DIR

GLOBAL_PACKAGE = "# @package _global_"
"""First line of a file of conf/ that sets keys of the whole config: Hydra reads it, it is more than a comment."""
MANY_KEYS = 12
"""So many keys, and more, are not all named in an error."""
LEFT_OUT = {"source": ABSENT, "layout": ABSENT, "root": "", "train": "", "val": ""}
"""A dataset that an own data config leaves out: only its name is known."""
NO_ACCUMULATION = (
    "gradient accumulation is not offered, because it is not equal to a large batch: BatchNorm, and Sinkhorn's even "
    "spread of the batch over the prototypes, would still see the small one. Use the small-batch recipe with its queue "
    "(experiment=swav_400ep_bs256), or cluster.activation_checkpointing=true to fit more images on a GPU"
)
NO_MULTIRUN = (
    "multirun is not supported, because one process makes one run: for several seeds use SEEDS=3 "
    "(python -m reproduce: --seeds 3), for several configs a table, e.g. make reproduce-table8"
)


def group_options(group: str) -> list[str]:
    """Return the options of a config group, sorted, e.g. `group_options("experiment")`."""
    return sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))


def compose(kind: RunKind, overrides: list[str]) -> DictConfig:
    """Compose and check the config of a run; every interpolation is resolved, and `scale` is only a name.

    `data=<file>.yaml` takes a data catalog of your own. Raises `UserError` for an unknown option, key or type.
    """
    cfg = compose_unresolved(kind, overrides)
    try:
        OmegaConf.resolve(cfg)
        cfg.scale = OmegaConf.select(cfg, "scale.name")  # its table has been resolved into the sections that runs read
    except InterpolationKeyError as error:
        raise UserError(f"{_format_error(kind, overrides, error)}{_keys_beside(cfg, error)}") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_format_error(kind, overrides, error)) from error
    _check_top_level(kind, cfg)
    if not OmegaConf.is_dict(cfg.dataset):
        raise UserError(
            f"config dataset: {cfg.dataset!r} is no data set: write ${{data.imagenet}}, or another of data's"
        )
    if all(OmegaConf.is_missing(cfg.dataset, key) for key in LEFT_OUT):
        cfg.dataset.update(LEFT_OUT)
    missing = sorted(key for key in OmegaConf.missing_keys(cfg) if not key.startswith("data."))
    if missing:
        raise UserError(f"config of {' '.join(overrides)}: no value for {', '.join(missing)}; give it as KEY=VALUE")
    check_values(cfg)
    return cfg


def _check_top_level(kind: RunKind, cfg: DictConfig) -> None:
    """Raise `UserError` for a key that no run reads (+KEY), and for one that every run needs (~KEY)."""
    known = [field.name for field in dataclasses.fields(SCHEMAS[kind])]
    if unknown := [str(key) for key in cfg if key not in known]:
        raise UserError(f"there is no config key {unknown[0]!r}: {did_you_mean(unknown[0], known)}")
    if gone := [key for key in known if key not in cfg.keys()]:  # noqa: SIM118 - `in` overlooks values yet to be given
        raise UserError(f"every run needs the config key {gone[0]!r}: leave out ~{gone[0]}")


def compose_unresolved(kind: RunKind, overrides: list[str]) -> DictConfig:
    """Compose a config in which interpolations still say where a value comes from, and values may be missing."""
    overrides = [quote_paths(item) for item in overrides]
    own_catalog = [item for item in overrides if re.fullmatch(r"data=.*\.ya?ml", item)]
    rest = [item for item in overrides if item not in own_catalog]
    _check_overrides(rest)
    try:
        with _hydra():
            cfg = hydra.compose(config_name=kind, overrides=rest)
        for item in own_catalog:
            _replace_catalog(cfg, Path(item.removeprefix("data=")))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_format_error(kind, overrides, error)) from error
    return cfg


def _hydra() -> Any:
    GlobalHydra.instance().clear()
    return hydra.initialize_config_dir(str(CONF_DIR), version_base="1.3")


def _check_overrides(overrides: list[str]) -> None:
    for item in overrides:
        if "accumulat" in item.partition("=")[0]:
            raise UserError(NO_ACCUMULATION)
        group, given, choice = item.lstrip("+~").partition("=")
        if not group or not (given or item.startswith("~")):
            raise UserError(f"{item!r} sets no key: write KEY=VALUE, and special characters as KEY=\"'VALUE'\"")
        valid = group_options(group)
        if valid and given and choice not in valid:
            raise UserError(f"there is no {group} {choice!r}: {did_you_mean(choice, valid)}")


def _replace_catalog(cfg: DictConfig, path: Path) -> None:
    if not path.is_file():
        raise UserError(
            f"data config {path} is not there: give a YAML file, or one of {', '.join(group_options('data'))}"
        )
    try:
        parse_yaml(text := path.read_text())  # refuses what OmegaConf would take in silence, or never end to read
        own = OmegaConf.load(path)
        texts = yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506 - builds texts, lists and dicts only
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"data config {path} is no YAML file: {' '.join(str(error).split())}") from error
    except OSError as error:  # OmegaConf's, for a file that is one number or text
        raise UserError(f"data config {path} can't be used: {error}") from error
    if not OmegaConf.is_dict(own):
        raise UserError(f"data config {path} has no datasets: write NAME: {{root: FOLDER, ...}}, as conf/data has them")
    _keep_texts(own, texts)
    cfg.data = OmegaConf.merge(OmegaConf.structured(DataCatalog), {"name": path.stem}, own)
    for name in dataclasses.fields(DataCatalog):
        if name.name != "name" and OmegaConf.is_missing(cfg.data[name.name], "name"):
            cfg.data[name.name].name = name.name


def _keep_texts(own: Any, texts: Any) -> None:
    """Replace numbers in a catalog by the texts that they are: all values are, and `root: 2012_07` is a folder."""
    for key in own if isinstance(texts, dict) else ():
        value = own[key]
        if OmegaConf.is_dict(value):
            _keep_texts(value, texts.get(str(key)))
        elif isinstance(value, int | float) and isinstance(texts.get(str(key)), str):
            own[key] = texts[str(key)]


def _format_error(kind: RunKind, overrides: list[str], error: Exception) -> str:
    """Return one sentence on what is wrong with a request; for an unknown key, it names the closest valid ones."""
    cause = str(error.__cause__ or error)
    if "--multirun" in cause:  # a comma outside quotes and brackets is a sweep
        return f"{cause.splitlines()[0]}: {NO_MULTIRUN}. A list is KEY=[A,B]"
    full_key = re.search(r"full_key: ([\w.]+)", cause)
    if full_key and re.search(r"Key '\w+' (not in|is not in struct)", cause):
        for file in (CONF_DIR / full_key[1] / f"{item.partition('=')[2]}.yaml" for item in overrides):
            if file.is_file() and not file.read_text().startswith(GLOBAL_PACKAGE):
                return f"{file} has to begin with the line {GLOBAL_PACKAGE!r}: its keys are the whole config's"
        return f"there is no config key {full_key[1]!r}: {did_you_mean(full_key[1], _keys(kind))}"
    reason = next(line for line in cause.splitlines() if line and not line.endswith("raised while composing config:"))
    where = f" (at {full_key[1]})" if full_key else ""
    return f"config of {' '.join(overrides)!r}: {reason.strip().rstrip('.')}{where}"


def _keys_beside(cfg: DictConfig, error: InterpolationKeyError) -> str:
    """Return which keys there are in the place of one that an interpolation names; "" if there is no such place."""
    named = re.search(r"Interpolation key '([\w.]+)\.(\w+)' not found", str(error))
    section: Any = OmegaConf.select(cfg, named[1]) if named else None
    if not named or not OmegaConf.is_dict(section):
        return ""
    keys = [str(key) for key in section]
    hint = f"{named[1]} has {', '.join(keys)}" if len(keys) < MANY_KEYS else did_you_mean(named[2], keys)
    return f": {hint}{' (reproduce/conf/scale)' if named[1].partition('.')[0] == 'scale' else ''}"


def _keys(kind: RunKind) -> list[str]:
    """Return all keys of a kind's config, dotted."""
    defaults = {"pretrain": [], "evaluate": ["eval=knn", "checkpoint=x"], "measure": ["measurement=cost"]}[kind]
    with _hydra():
        cfg = hydra.compose(config_name=kind, overrides=defaults)

    def walk(node: Any, prefix: str) -> list[str]:
        if not OmegaConf.is_dict(node):
            return [prefix]
        below = [walk(node._get_node(key), f"{prefix}.{key}" if prefix else str(key)) for key in node]
        return [name for names in below for name in names]

    return [key for key in walk(cfg, "") if not key.startswith("scale.")]
