"""The argument parser of `python -m reproduce`. Each command's function is in a module beside it."""

import argparse
import re
from typing import NoReturn

from reproduce.cli import (
    data_commands,
    export_command,
    pictures_command,
    recording_commands,
    run_commands,
    table_commands,
)
from reproduce.errors import ArgumentParser
from reproduce.harness.spec.preflight_file import SCALES
from reproduce.system import usable_cores

RECORD_SEEDS = 20
SEVERAL = ("overrides", "tables", "datasets", "names")
"""Arguments without an option of which a command takes any number."""
DESCRIPTION = """Reproduce tables: python -m reproduce reproduce table3 --scale smoke

`plan` shows the runs that a table needs, `run` does them, `check` compares their numbers with the expected ones,
`report` makes the page; `reproduce` does all four.
Exit status: 0 if every cell that ran agrees, 1 if some cell or the mean of a checkpoint's cells does not or is
inconclusive, or if a run took other first steps than recorded, 2 if the request is wrong, 3 if a needed run failed or
is missing, 4 if no number could be compared with another, 130 if interrupted. With --strict, 1 also if a cell rests
on one seed, is unavailable, has no baseline or no canary, if a claim is inconclusive or lacks a run, if a result lacks
first steps that are recorded, or if results were made by other code than the checkout's, or by code that is in no
commit.
"""


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise `UserError`; name make's variable of a missing option."""
        missing = re.findall(r"--([a-z-]+)", message.partition("are required:")[2])
        for_make = [f"{name.replace('-', '_').upper()}=" for name in missing]
        hint = f" (for make: {' '.join(for_make)})" if for_make else ""
        super().error(message + hint)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line; names and overrides may stand before and after options.

    Raises `UserError` for an invalid one.
    """
    parser = build_parser()
    options, left = parser.parse_known_args(arguments)
    several = next((name for name in SEVERAL if isinstance(getattr(options, name, None), list)), None)
    if several and not any(item.startswith("-") for item in left):  # argparse takes them from one place only
        setattr(options, several, [*getattr(options, several), *left])
    elif left:
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    return options


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; the parsed options hold the command's function as `command`."""
    parser = _Parser(
        prog="python -m reproduce", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    shared = _shared_options()
    _add_table_commands(subparsers, shared)
    _add_preflight_commands(subparsers)
    _add_run_commands(subparsers, shared)
    _add_data_commands(subparsers)
    text = "list tables, claims, experiments and evaluations"
    subparsers.add_parser("list", help=text, description=text).set_defaults(command=table_commands.list_names)
    return parser


def _shared_options() -> argparse.ArgumentParser:
    shared = _Parser(add_help=False)
    shared.add_argument("--scale", default="smoke", help="smoke (default), lite or paper")
    shared.add_argument("--data", metavar="DIR", help="folder with the images; generated ones need none")
    shared.add_argument("--data-config", metavar="NAME", help="layout of DATA: a name in conf/data, or a YAML file")
    shared.add_argument("--images", metavar="PATH", help="your own pictures, however they are stored (docs/data.md)")
    shared.add_argument("--skip-bad-images", action="store_true", help="skip and count unreadable images")
    _add_cluster_options(shared)
    return shared


def _add_cluster_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cluster", help="where to run: local (default), slurm or kubernetes")
    parser.add_argument(
        "--cluster-options",
        metavar="KEY=VALUE",
        help="your site's options, e.g. 'slurm.partition=gpu num_processes=64'",
    )


def _add_table_commands(subparsers: "argparse._SubParsersAction[_Parser]", shared: argparse.ArgumentParser) -> None:
    many = _Parser(add_help=False, parents=[shared])
    many.add_argument(
        "--from",
        dest="source",
        choices=["scratch", "released"],
        help="train (default), or evaluate public weights",
    )
    many.add_argument(
        "--budget", metavar="GPU-HOURS", help="only the cells that prove most in so many, e.g. 24 or '24 H100'"
    )
    many.add_argument("--cores", type=int, default=usable_cores(), help="cores to use at once (default: all)")
    for name, command, text in (
        ("reproduce", table_commands.reproduce_tables, "plan, run, check and report"),
        ("plan", table_commands.plan_tables, "show the runs that tables need"),
        ("render", table_commands.render_manifests, "write the runs' Kubernetes manifests"),
        ("run", table_commands.run_tables, "do the runs that are not done"),
        ("check", table_commands.check_tables, "compare the runs' numbers with the expected ones"),
        ("report", table_commands.report_tables, "make the page of what was checked"),
    ):
        sub = subparsers.add_parser(name, parents=[many], help=text, description=text)
        sub.add_argument("tables", nargs="+", metavar="TABLE", help="table3, figure2, ..., claims, or all")
        sub.add_argument("--seeds", type=int, help="number of seeds; 3 means seeds 0, 1, 2 (default: 1)")
        if name in ("reproduce", "run"):
            sub.add_argument("--skip-missing-data", action="store_true", help="make the cells whose data exists")
        if name in ("reproduce", "check"):
            sub.add_argument("--strict", action="store_true", help="for CI: exit with 1 if any doubt is left")
        sub.set_defaults(command=command)
    text = "run tables of a scale over several seeds and record their numbers as the expected ones"
    record = subparsers.add_parser("record-baseline", parents=[many], help=text, description=text)
    record.add_argument("tables", nargs="*", metavar="TABLE", help="tables to record (default: all of the scale)")
    record.add_argument("--seeds", type=int, default=RECORD_SEEDS, help=f"number of seeds (default: {RECORD_SEEDS})")
    record.add_argument(
        "--same-seed",
        action="store_true",
        help="only add the first seed's untrained trunks under all arithmetic here",
    )
    record.add_argument("--allow-dirty", action="store_true", help="record from uncommitted code, and mark the record")
    record.set_defaults(command=recording_commands.record_baseline_numbers)
    text = "judge the paper's claims by the recorded numbers of a scale, without any result"
    recorded = subparsers.add_parser("recorded-claims", help=text, description=text)
    recorded.add_argument("--scale", default="smoke", help="smoke (default) or lite")
    recorded.set_defaults(command=recording_commands.judge_recorded_claims)


def _add_preflight_commands(subparsers: "argparse._SubParsersAction[_Parser]") -> None:
    for name, command, text in (
        (
            "preflight",
            recording_commands.preflight_recipes,
            "compare every recipe's first steps with the recorded ones; no data",
        ),
        (
            "record-golden",
            recording_commands.record_golden_steps,
            "record every recipe's first steps, and measure tolerances",
        ),
    ):
        sub = subparsers.add_parser(name, help=text, description=text)
        sub.add_argument("--scale", choices=SCALES, default=SCALES[0], help="smoke (default) or paper")
        default = None if name == "preflight" else usable_cores()
        sub.add_argument("--cores", type=int, default=default, help="cores to use at once (default: all; of a job, 1)")
        if name == "preflight":
            _add_cluster_options(sub)
            sub.set_defaults(data=None, data_config=None, images=None, skip_bad_images=False, source=None)
            sub.add_argument(
                "--precision",
                nargs="+",
                choices=("fp64", "fp32", "bf16", "fp16"),
                default=(),
                help="precisions to rehearse in (default: fp64 and fp32; at scale paper fp32)",
            )
        else:
            sub.add_argument("--allow-dirty", action="store_true", help="record from uncommitted code, and mark it")
            sub.add_argument("--only-new", action="store_true", help="leave what is recorded as it is, unrepeated")
        sub.set_defaults(command=command)


def _add_run_commands(subparsers: "argparse._SubParsersAction[_Parser]", shared: argparse.ArgumentParser) -> None:
    single = _Parser(add_help=False, parents=[shared])
    single.add_argument("--seed", type=int, default=0)
    single.set_defaults(source=None, cores=usable_cores())
    for name, group, text in (
        ("pretrain", "experiment", "do one pretraining, the same as a table would"),
        ("evaluate", "eval", "do one evaluation, the same as a table would"),
    ):
        sub = subparsers.add_parser(name, parents=[single], help=text, description=text)
        sub.add_argument("choice", metavar=group.upper())
        sub.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="overrides of its config")
        if group == "eval":
            sub.add_argument("--checkpoint", required=True, help="run_id of a pretraining, a file, or released:NAME")
        sub.set_defaults(command=run_commands.run_single, group=group)
    text = "write a trunk as safetensors and for torchvision, with a card that says what it is"
    export = subparsers.add_parser("export", help=text, description=text)
    export.add_argument("--scale", default="smoke", help="smoke (default), lite or paper")
    export.add_argument("--checkpoint", required=True, help="run_id of a pretraining, a file, or released:NAME")
    export.set_defaults(command=export_command.export_weights)
    text = "draw what a pretraining has learned: nearest neighbors, prototypes, a map of features"
    pictures = subparsers.add_parser("pictures", help=text, description=text)
    pictures.add_argument("--scale", default="smoke", help="smoke (default), lite or paper")
    pictures.add_argument("--checkpoint", required=True, help="run_id of a pretraining, or its checkpoint")
    pictures.add_argument("--data", metavar="DIR", help="folder with the images (default: where the run found them)")
    pictures.set_defaults(command=pictures_command.draw_pictures)


def _add_data_commands(subparsers: "argparse._SubParsersAction[_Parser]") -> None:
    text = "download public weights, which evaluate takes as released:NAME; without NAME, list them"
    fetch = subparsers.add_parser("fetch-weights", help=text, description=text)
    fetch.add_argument("names", nargs="*", metavar="NAME", help="as in models/zoo/released.yaml")
    fetch.set_defaults(command=data_commands.fetch_weights)

    text = "report missing, unexpected and broken files of datasets; exit status 2 if there are any"
    verify = subparsers.add_parser("data-verify", help=text, description=text)
    verify.add_argument("--decode", choices=("sample", "all"), default="sample", help="which images to decode")
    verify.set_defaults(command=data_commands.verify_datasets)

    text = "unpack official archives into the layout that runs read; the same command resumes"
    prepare = subparsers.add_parser("data-prepare", help=text, description=text)
    prepare.add_argument("--archives", metavar="DIR", required=True, help="folder of the archives; some are downloaded")
    prepare.set_defaults(command=data_commands.prepare_datasets)

    text = "write datasets as WebDataset shards, which runs read with --data-config shards; the same command resumes"
    shard = subparsers.add_parser("data-shard", help=text, description=text)
    shard.add_argument("--shards", metavar="DIR", required=True, help="folder to write the shards into")
    shard.set_defaults(command=data_commands.shard_datasets)

    for sub in (verify, prepare, shard):
        sub.add_argument("datasets", nargs="*", metavar="DATASET", help="imagenet, voc07, ... (default: all)")
        sub.add_argument("--data", metavar="DIR", required=True, help="folder with the images")
        sub.add_argument("--data-config", metavar="NAME", default="standard", help="layout of DATA, as for a run")
