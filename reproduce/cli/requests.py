"""From the options of a command line to a request and its plan."""

import argparse
import shlex
from pathlib import Path
from typing import Any

from reproduce.config.quoting import hydra_quote
from reproduce.errors import UserError, did_you_mean
from reproduce.files import read_json
from reproduce.harness.plan import plan_file
from reproduce.harness.plan.model import CACHE, Plan, Request
from reproduce.harness.spec import claims, tables

OWN_IMAGES = CACHE / "images"
"""Links to own pictures, as class folders of two splits."""

EVERY_TABLE = "all"
MAX_SEEDS = 1000
"""More seeds than anybody trains: a mistyped number must not fill the memory with runs."""


def plan_of(options: argparse.Namespace) -> Plan:
    """Link own pictures and build the plan of a command's tables. Raises `UserError` for what no plan can have."""
    _check_numbers(options)
    options = link_own_images(options)
    return plan_file.planned(Request(table_names(options), options.scale, **request_flags(options)))


def plan_to_judge(options: argparse.Namespace) -> Plan:
    """Link own pictures; return the plan that was written last, and print how the request differs from it."""
    _check_numbers(options)
    options = link_own_images(options)
    plan, difference = plan_file.plan_to_judge(table_names(options), options.scale, request_flags(options))
    if difference:
        print(f"note: {difference}")
    return plan


def table_names(options: argparse.Namespace) -> tuple[str, ...]:
    """Return the tables that are asked for; `all` stands for every table of the scale, and the claims."""
    every = (*tables.names(options.scale), claims.TARGET) if EVERY_TABLE in options.tables else ()
    return tuple(dict.fromkeys([*every, *(name for name in options.tables if name != EVERY_TABLE)]))


def _check_numbers(options: argparse.Namespace) -> None:
    if options.source == "released" and options.scale != "paper":
        raise UserError("--from released evaluates full-size public weights: give it --scale paper")
    if options.budget and options.scale != "paper":
        raise UserError("--budget counts the GPU-hours of full-size runs: give it --scale paper")
    if (options.seeds is not None and options.seeds < 1) or options.cores < 1:
        raise UserError("--seeds and --cores count from 1")
    if options.seeds is not None and options.seeds > MAX_SEEDS:
        raise UserError(f"--seeds {options.seeds}: a plan has {MAX_SEEDS:,} seeds at most")


def request_flags(options: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of a `Request` that the command line sets, without its tables and scale.

    `options` come from `link_own_images`, where the command takes --images.
    """
    seeds, cluster_options = getattr(options, "seeds", None), options.cluster_options
    flags = {
        "seeds": (options.seed,) if "seed" in options else seeds and tuple(range(seeds)),
        "data": options.data,
        "data_config": options.data_config,
        "skip_bad_images": options.skip_bad_images or None,
        "source": options.source,
        "budget": getattr(options, "budget", None),
        "cluster": options.cluster,
        "cluster_options": None if cluster_options is None else _cluster_options(cluster_options),
    }
    return {name: value for name, value in flags.items() if value is not None}


def link_own_images(options: argparse.Namespace) -> argparse.Namespace:
    """Link the pictures of --images, if it is given, as class folders, and print what they are.

    Return the options with what reads the links in the place of --data and --data-config.
    """
    if not options.images:
        return options
    from reproduce.data.prepare.own_images import arrange

    if options.data or options.data_config:
        raise UserError("--images finds the layout of your pictures: give it without --data and --data-config")
    own = arrange(Path(options.images), OWN_IMAGES)
    if not own.labeled and getattr(options, "group", "") != "experiment":
        raise UserError(
            f"{own.summary}: they can train a network (make pretrain-swav_800ep IMAGES={options.images}), and only an "
            "evaluation needs labels"
        )
    print(own.summary)
    return argparse.Namespace(**{**vars(options), "data": str(own.data), "data_config": str(own.config)})


def _cluster_options(given: str) -> tuple[str, ...]:
    """Convert `KEY=VALUE "KEY=A VALUE"` to Hydra overrides below `cluster`."""
    try:
        pairs = [item.partition("=") for item in shlex.split(given)]
    except ValueError as error:
        raise UserError(f"--cluster-options {given}: {error}") from error
    if wrong := [key for key, equals, _ in pairs if not key or not equals]:
        raise UserError(
            f"--cluster-options takes KEY=VALUE KEY=VALUE, e.g. slurm.partition=gpu; {wrong[0]!r} is not one"
        )
    return tuple(f"{key}={hydra_quote(value)}" for key, _, value in pairs)


def pretraining_folder(checkpoint: str, scale: str) -> Path | None:
    """Return the folder of the finished pretraining that is named by its run_id or its checkpoint, or None."""
    path = Path(checkpoint)
    found = [Path("results", scale, checkpoint), *([path.parent] if path.name == "checkpoint.pt" else [])]
    return next((folder for folder in found if _is_finished_pretraining(folder)), None)


def no_finished_pretraining(checkpoint: str, scale: str) -> str:
    """Return a phrase on a name that no finished pretraining has, with those that there are."""
    home = Path("results", scale)
    names = [folder.name for folder in home.glob("*/") if _is_finished_pretraining(folder)]
    hint = did_you_mean(checkpoint, names) if names else "make pretrain-... makes one"
    return f"{home} has no finished pretraining {checkpoint!r}: {hint}"


def _is_finished_pretraining(folder: Path) -> bool:
    """Whether a folder has a pretraining's result and checkpoint; classifiers have checkpoints, too."""
    has_all = all((folder / name).is_file() for name in ("checkpoint.pt", "config.yaml", "result.json"))
    return has_all and read_json(folder / "result.json").get("kind") == "pretrain"
