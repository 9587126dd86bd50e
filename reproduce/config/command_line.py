"""The command line of a run, as a Hydra user expects it: overrides, `--help`, `--cfg job` with `--resolve`."""

import argparse
import json

from omegaconf import DictConfig, OmegaConf

from reproduce.config import RunKind
from reproduce.config.compose import NO_MULTIRUN, compose, compose_unresolved, group_options
from reproduce.errors import ArgumentParser, UserError, did_you_mean
from reproduce.system import CONF_DIR

EXAMPLES = {
    "pretrain": "experiment=swav_800ep scale=smoke seed=0 paths.data_root=DIR",
    "evaluate": "eval=knn checkpoint=RUN_ID_OR_FILE scale=smoke paths.data_root=DIR",
    "measure": "experiment=swav_800ep measurement=cost name=cost scale=paper",
}
NOT_THERE = object()
"""Stands for a key that a config does not have: its value may be null."""
GROUPS_BELOW = {"pretrain": (), "evaluate": ("eval",), "measure": ("measurement",)}
"""Config groups that only one kind of run has."""


def config_from_command_line(kind: RunKind, arguments: list[str]) -> DictConfig:
    """Return the checked config that `arguments` ask for.

    `--help` and `--cfg job` print instead, and end the process with status 0. `--cfg job` shows where each value comes
    from; with `--resolve` it shows the values that the run uses. Raises `UserError` for an invalid request.
    """
    parser = _parser(kind)
    options = parser.parse_intermixed_args(arguments)
    if options.multirun:
        raise UserError(NO_MULTIRUN)
    if options.cfg is None:
        if options.resolve or options.package:
            raise UserError("--resolve and --package belong to --cfg job")
        return compose(kind, options.overrides)
    cfg = (compose if options.resolve else compose_unresolved)(kind, options.overrides)
    section = OmegaConf.select(cfg, options.package, default=NOT_THERE) if options.package else cfg
    if section is NOT_THERE:
        raise UserError(
            f"there is no config section {options.package!r}: {did_you_mean(options.package, map(str, cfg))}"
        )
    print(OmegaConf.to_yaml(section).rstrip() if OmegaConf.is_config(section) else json.dumps(section))
    raise SystemExit(0)


def _parser(kind: RunKind) -> argparse.ArgumentParser:
    shared = [path.name for path in CONF_DIR.iterdir() if path.is_dir() and path.name not in ("eval", "measurement")]
    of_pretraining = ("experiment", "crops", "method")
    groups = sorted({*shared, *GROUPS_BELOW[kind]} - set(of_pretraining if kind == "evaluate" else ()))
    lines = "\n".join(f"  {group}: {', '.join(group_options(group))}" for group in groups)
    parser = ArgumentParser(
        prog=f"python -m reproduce.{kind}",
        description=f"Make one run: python -m reproduce.{kind} {EXAMPLES[kind]}",
        epilog=f"config groups (GROUP=OPTION):\n{lines}\n\nreproduce/config/schema.py describes every key.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="OVERRIDE", help="KEY=VALUE sets a key, +KEY=VALUE adds one, ~KEY deletes one"
    )
    parser.add_argument("--cfg", "-c", choices=("job",), help="print the config instead of running")
    parser.add_argument("--resolve", action="store_true", help="with --cfg: print the values that the run uses")
    parser.add_argument("--package", "-p", metavar="SECTION", help="with --cfg: print one section, e.g. optimizer")
    parser.add_argument("--multirun", "-m", action="store_true", help="not supported: use SEEDS= or a table")
    return parser
