"""The harness on the command line: python -m reproduce reproduce table3 --scale smoke

`plan` shows what a table needs, `run` does it, `check` judges it, `report` makes the page; `reproduce` is all four.
Exit status: 0 every cell that ran agrees, 1 some cell does not, 2 the request is wrong, 3 a needed run failed or is
missing, 130 stopped from outside. With --strict, 1 also where a cell is inconclusive, has no baseline or no canary,
where a claim is inconclusive or lacks a run, or where results were made by other code than the checkout's, or by code
that is in no commit.
"""

import argparse
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any, NoReturn

from reproduce.errors import EXIT_USAGE, UserError, did_you_mean, run_cli
from reproduce.harness.plan import build, plan_file
from reproduce.harness.plan.model import Kind, Plan, Request
from reproduce.harness.plan.run_state import valid_result
from reproduce.harness.spec import tables

INTERRUPTED = 130
RECORD_SEEDS = 8


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.command(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the flush at the end fails again
        return INTERRUPTED
    return status


def _reproduce(options: argparse.Namespace) -> int:
    plan = _plan(options)
    _print_plan(plan, options.cores)
    _carry_out(plan, options.cores, options.skip_missing_data)
    status = _check(plan, options.strict)
    print(f"report: {_report(plan)}")
    return status


def _plan_only(options: argparse.Namespace) -> int:
    plan = _plan(options)
    _print_plan(plan, options.cores)
    print(f"plan: {plan_file.write(plan)}")
    return 0


def _render(options: argparse.Namespace) -> int:
    from reproduce.files import read_json
    from reproduce.harness.execute import kubernetes

    plan = _plan(options)
    if plan.cluster["executor"] != "kubernetes":
        raise UserError(
            "render writes manifests of Kubernetes: give it --cluster kubernetes (make: CLUSTER=kubernetes)"
        )
    folder = plan.reports / "kubernetes" / "-".join(plan.request.tables)
    written = kubernetes.render(read_json(plan_file.write(plan)), folder)
    print("\n".join(map(str, written)))
    return 0


def _run(options: argparse.Namespace) -> int:
    from reproduce.harness.verdict.check import AGREES, INCOMPLETE

    return INCOMPLETE if _carry_out(_plan(options), options.cores, options.skip_missing_data) else AGREES


def _check_only(options: argparse.Namespace) -> int:
    return _check(_plan_to_judge(options), options.strict)


def _report_only(options: argparse.Namespace) -> int:
    print(f"report: {_report(_plan_to_judge(options))}")
    return 0


def _record(options: argparse.Namespace) -> int:
    from reproduce.harness import record_baseline
    from reproduce.harness.verdict.check import INCOMPLETE

    if options.seeds < record_baseline.MIN_SEEDS:
        raise UserError(
            f"{options.seeds} seeds are too few to record from: give --seeds {record_baseline.MIN_SEEDS} or more"
        )
    every = [tables.load(name, options.scale) for name in tables.names(options.scale)]
    recordable = [table.table for table in every if table.expected == "recorded"]
    options.tables = options.tables or recordable
    if not options.tables:
        raise UserError(f"tables at scale {options.scale} are held against printed numbers: there is nothing to record")
    if printed := set(options.tables) - set(recordable):
        raise UserError(f"{min(printed)} cannot be recorded: {did_you_mean(min(printed), recordable)}")
    record_baseline.refuse_dirty(options.allow_dirty)
    plan = _plan(options)
    if _carry_out(plan, options.cores):
        return INCOMPLETE
    print(f"recorded: {record_baseline.record(plan, options.allow_dirty)}")
    if left := [name for name in recordable if name not in options.tables]:
        print(f"without expected numbers of its own from now on, as all are of one code: {', '.join(left)}")
    return 0


def _one_run(options: argparse.Namespace) -> int:
    from reproduce.harness import data_check as pictures
    from reproduce.harness.execute.job import execute
    from reproduce.harness.verdict.check import AGREES, INCOMPLETE

    _check_choice(options.group, options.choice)
    kind: Kind = "pretrain" if options.group == "experiment" else "evaluate"
    request = Request((), options.scale, **_request_flags(options))
    checkpoint = getattr(options, "checkpoint", "")
    overrides = (*_pixels_of(checkpoint), *options.overrides)
    plan = build.single_run_plan(request, kind, options.choice, checkpoint, overrides)
    (run,) = plan.runs.values()
    if valid_result(plan, run):
        print(f"{run.metrics_text()}\nalready done: {run.result}")
        return 0
    if run.result.exists():
        print("its result belongs to a checkpoint that was trained again since: it is measured again")
    if plan.cluster["executor"] != "local":
        return INCOMPLETE if _carry_out(plan, options.cores) else AGREES
    pictures.generate(plan)
    pictures.refuse_missing(plan)
    status = execute(run.command(), Path(run.folder), echo=True)
    if status == 0:
        print(f"{run.metrics_text()}\nresult: {run.result}")
    return status


def _pixels_of(checkpoint: str) -> tuple[str, ...]:
    """A released checkpoint brings the normalisation that it was trained with."""
    from models.zoo import entries as released

    if not checkpoint.startswith(released.PREFIX):
        return ()
    return (f"normalize={released.entry(checkpoint.removeprefix(released.PREFIX)).normalize}",)


def _fetch(options: argparse.Namespace) -> int:
    from models.zoo import entries as released

    entries = released.load()
    if not options.names:
        for item in entries.values():
            rows = ", ".join(f"{table} {row}" for table, row in item.fills.items())
            print(f"{item.name}: {item.status if item.address else 'unavailable'}{f' ({rows})' if rows else ''}")
        return 0
    problems = []
    for item in [released.entry(name.removeprefix(released.PREFIX)) for name in options.names]:
        try:
            print(f"{item.name}: {released.fetch(item)}")
        except UserError as error:
            problems.append(str(error))
            print(f"{item.name}: {error}", file=sys.stderr)
    if problems:
        raise UserError(f"{len(problems)} of {len(options.names)} checkpoints are not here; the lines above say why")
    return 0


def _data_verify(options: argparse.Namespace) -> int:
    from reproduce.config.compose import compose
    from reproduce.data.prepare import verify

    catalogue = compose("pretrain", [f"data={options.data_config}"]).data
    fine = verify.verify_datasets(Path(options.data), catalogue, options.sets, options.decode)
    return 0 if fine else EXIT_USAGE


def _data_prepare(options: argparse.Namespace) -> int:
    from reproduce.config.compose import compose
    from reproduce.data.prepare import unpack, verify

    catalogue = compose("pretrain", [f"data={options.data_config}"]).data
    for dataset in verify.select_datasets(catalogue, options.sets):
        unpack.unpack_dataset(Path(options.archives), Path(options.data), dataset)
    return 0


def _data_shard(options: argparse.Namespace) -> int:
    from reproduce.config.compose import compose
    from reproduce.data.prepare import verify, write_shards

    catalogue = compose("pretrain", [f"data={options.data_config}"]).data
    names = options.sets or [dataset.name for dataset in verify.catalog_datasets(catalogue)]
    for dataset in verify.select_datasets(catalogue, names):
        write_shards.write_shards(Path(options.data), Path(options.shards), dataset)
    return 0


def _list(_options: argparse.Namespace) -> int:
    from reproduce.config.compose import group_options
    from reproduce.harness.spec import claims

    for scale in tables.scales():
        print(f"tables at scale {scale}: {', '.join(tables.names(scale))}")
    print(f"claims, at every scale: {', '.join(claim.claim for claim in claims.load())}")
    print(f"experiments: {', '.join(group_options('experiment'))}")
    print(f"evaluations: {', '.join(group_options('eval'))}")
    return 0


def _plan(options: argparse.Namespace) -> Plan:
    _check_numbers(options)
    return build.build_plan(Request(tuple(options.tables), options.scale, **_request_flags(options)))


def _plan_to_judge(options: argparse.Namespace) -> Plan:
    """Return the plan that was written last, and print how the request differs from it."""
    _check_numbers(options)
    plan, difference = plan_file.plan_to_judge(tuple(options.tables), options.scale, _request_flags(options))
    if difference:
        print(f"note: {difference}")
    return plan


def _check_numbers(options: argparse.Namespace) -> None:
    if options.source == "released" and options.scale != "paper":
        raise UserError("--from released evaluates full-size public weights: give it --scale paper")
    if (options.seeds is not None and options.seeds < 1) or options.cores < 1:
        raise UserError("--seeds and --cores count from 1")


def _request_flags(options: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of a `Request` that the command line sets, without its tables and scale."""
    seeds, cluster_options = getattr(options, "seeds", None), options.cluster_options
    flags = {
        "seeds": (options.seed,) if "seed" in options else seeds and tuple(range(seeds)),
        "data": options.data,
        "data_config": options.data_config,
        "skip_bad_images": options.skip_bad_images or None,
        "source": options.source,
        "cluster": options.cluster,
        "cluster_options": None if cluster_options is None else _cluster_options(cluster_options),
    }
    return {name: value for name, value in flags.items() if value is not None}


def _cluster_options(given: str) -> tuple[str, ...]:
    """`KEY=VALUE "KEY=A VALUE"` as Hydra overrides below `cluster`."""
    try:
        pairs = [item.partition("=") for item in shlex.split(given)]
    except ValueError as error:
        raise UserError(f"--cluster-options {given}: {error}") from error
    if wrong := [key for key, equals, _ in pairs if not key or not equals]:
        raise UserError(f"--cluster-options takes KEY=VALUE KEY=VALUE, as slurm.partition=gpu; {wrong[0]!r} is none")
    return tuple(f"{key}={build.hydra_quote(value)}" for key, _, value in pairs)


def _print_plan(plan: Plan, cores: int) -> None:
    """A line a run: how far it is, what it serves, what it costs; then what all of it comes to."""
    from reproduce.harness.data_check import other_data_roots
    from reproduce.harness.execute.progress import Progress
    from reproduce.harness.plan import cost, cost_report
    from reproduce.harness.plan.durations import expected_seconds, format_duration
    from reproduce.harness.spec import baseline

    costs = cost.plan_cost(plan)
    print(cost_report.as_text(plan, costs))
    progress = Progress(
        plan, cores, expected_seconds(plan, baseline.load(plan.request.scale).wall_seconds), costs.states
    )
    in_all = progress.seconds_to_go(0.0)
    time = (
        f", about {format_duration(in_all)} on {cores} cores" if in_all and plan.cluster["executor"] == "local" else ""
    )
    print(f"{len(plan.cells)} cells need {len(plan.runs)} runs, of which {len(costs.to_do)} are to do{time}")
    if elsewhere := other_data_roots(plan):
        print(f"note: runs that are done read their pictures from {elsewhere}; delete results/ to make them again")


def _carry_out(plan: Plan, cores: int, skip_missing_data: bool = False) -> bool:
    """Do the plan's runs, or those whose data is there; whether any is missing in the end."""
    from reproduce.harness import data_check as pictures
    from reproduce.harness.execute.progress import Screen
    from reproduce.harness.execute.supervise import carry_out
    from reproduce.harness.spec import baseline

    seconds = baseline.load(plan.request.scale).wall_seconds
    possible, why = pictures.possible(plan, skip_missing_data)
    if len(possible.runs) in (0, len(plan.runs)):
        pictures.refuse_missing(plan)
        return bool(carry_out(plan, cores, seconds, Screen()).missing)
    print(f"{why}: of {len(plan.runs)} runs, {len(possible.runs)} serve cells that need none of it, and are done now")
    carry_out(possible, cores, seconds, Screen())
    return True


def _check(plan: Plan, strict: bool) -> int:
    from reproduce.harness.report import claims as show_claims
    from reproduce.harness.verdict import check
    from reproduce.harness.verdict import claims as judge_claims
    from reproduce.harness.verdict.strict import complaints

    checked, answers = check.check(plan), judge_claims.judge(plan)
    news = check.write(plan, checked, answers)
    for table in checked:
        print(check.as_text(table))
    if answers:
        print(show_claims.as_text(answers))
    if problem := check.track(plan, news):
        print(f"W&B has no table of these verdicts ({problem})", file=sys.stderr)
    if said := check.again(checked):
        print(said)
    status = check.exit_status(checked, answers, claims_asked=bool(plan.claims))
    print(f"check: {check.MEANING[status]}; details in {plan.reports}")
    open_questions = complaints(plan, checked, answers) if strict else []
    for sentence in open_questions:
        print(f"strict: {sentence}")
    return status or (check.DISAGREES if open_questions else check.AGREES)


def _report(plan: Plan) -> Path:
    from reproduce.harness import report

    return report.write(plan.request.scale)


def _check_choice(group: str, choice: str) -> None:
    from reproduce.config.compose import group_options

    valid = group_options(group)
    if choice not in valid:
        what = {"experiment": "experiment", "eval": "evaluation"}[group]
        raise UserError(f"there is no {what} {choice!r}: {did_you_mean(choice, valid)}")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Parser(argparse.ArgumentParser):
    """Ends like every other wrong request: one sentence, exit status 2."""

    def error(self, message: str) -> NoReturn:
        missing = re.findall(r"--([a-z-]+)", message.partition("are required:")[2])
        for_make = [f"{name.replace('-', '_').upper()}=" for name in missing]
        hint = f" (for make: {' '.join(for_make)})" if for_make else ""
        raise UserError(f"{message}{hint}; `{self.prog} --help` shows what there is")


def _parser() -> argparse.ArgumentParser:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog="python -m reproduce", description=__doc__, formatter_class=as_written)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    pictures = _Parser(add_help=False)
    pictures.add_argument("--scale", default="smoke", help="smoke (default), lite or paper")
    pictures.add_argument("--data", metavar="DIR", help="folder with the pictures; generated ones need none")
    pictures.add_argument("--data-config", metavar="NAME", help="layout of DATA: a name in conf/data, or a YAML file")
    pictures.add_argument("--skip-bad-images", action="store_true", help="count pictures that cannot be read, go on")
    pictures.add_argument("--cluster", help="where runs go: local (default), slurm, kubernetes")
    pictures.add_argument(
        "--cluster-options",
        metavar="KEY=VALUE",
        help="a site's own, as 'slurm.partition=gpu num_processes=64'",
    )

    many = _Parser(add_help=False, parents=[pictures])
    many.add_argument(
        "--from",
        dest="source",
        choices=["scratch", "released"],
        help="train (default), or take public weights",
    )
    many.add_argument("--cores", type=int, default=_cores(), help="cores to use at once (default: all)")

    for name, command, text in (
        ("reproduce", _reproduce, "plan, run, check and report"),
        ("plan", _plan_only, "show the runs that tables need"),
        ("render", _render, "write the manifests of the runs, for Kubernetes"),
        ("run", _run, "do the runs that are not done"),
        ("check", _check_only, "judge what came out"),
        ("report", _report_only, "make the page of what was checked"),
    ):
        sub = commands.add_parser(name, parents=[many], help=text, description=text)
        sub.add_argument("tables", nargs="+", metavar="TABLE", help="table3, figure2, ..., or claims")
        sub.add_argument("--seeds", type=int, help="3 means seeds 0, 1, 2 (default: 1)")
        if name in ("reproduce", "run"):
            sub.add_argument("--skip-missing-data", action="store_true", help="make the cells whose data is there")
        if name in ("reproduce", "check"):
            sub.add_argument("--strict", action="store_true", help="for CI: exit with 1 where any doubt is left")
        sub.set_defaults(command=command)

    text = "run tables of a scale over several seeds and keep the numbers to compare with"
    record = commands.add_parser("record", parents=[many], help=text, description=text)
    record.add_argument("tables", nargs="*", metavar="TABLE", help="which (default: all that are held to such numbers)")
    record.add_argument("--seeds", type=int, default=RECORD_SEEDS, help=f"how many (default {RECORD_SEEDS})")
    record.add_argument("--allow-dirty", action="store_true", help="record from code that is not committed, and say so")
    record.set_defaults(command=_record)

    one = _Parser(add_help=False, parents=[pictures])
    one.add_argument("--seed", type=int, default=0)
    one.set_defaults(source=None, cores=_cores())
    for name, group, text in (
        ("pretrain", "experiment", "do one pretraining as a table would"),
        ("evaluate", "eval", "do one evaluation as a table would"),
    ):
        sub = commands.add_parser(name, parents=[one], help=text, description=text)
        sub.add_argument("choice", metavar=group.upper())
        sub.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to its config")
        if group == "eval":
            sub.add_argument("--checkpoint", required=True, help="run_id of a pretraining, a file, or released:NAME")
        sub.set_defaults(command=_one_run, group=group)

    text = "download released checkpoints, which evaluate takes as released:NAME; without NAME, list them"
    fetch = commands.add_parser("fetch", help=text, description=text)
    fetch.add_argument("names", nargs="*", metavar="NAME", help="as in models/zoo/released.yaml")
    fetch.set_defaults(command=_fetch)

    text = "say what of the data sets is missing, unexpected or broken; exit status 0 where all is fine, 2 where not"
    verify = commands.add_parser("data-verify", help=text, description=text)
    verify.add_argument("sets", nargs="*", metavar="SET", help="imagenet, voc07, ... (default: all)")
    verify.add_argument("--data", metavar="DIR", required=True, help="folder with the pictures")
    verify.add_argument("--data-config", metavar="NAME", default="standard", help="layout of DATA, as for a run")
    verify.add_argument("--decode", choices=("sample", "all"), default="sample", help="which pictures to decode")
    verify.set_defaults(command=_data_verify)

    text = "unpack the official archives of data sets into the layout that runs read; the same command goes on"
    prepare = commands.add_parser("data-prepare", help=text, description=text)
    prepare.add_argument("sets", nargs="*", metavar="SET", help="imagenet, voc07, ... (default: all)")
    prepare.add_argument("--archives", metavar="DIR", required=True, help="folder of the archives; some are downloaded")
    prepare.add_argument("--data", metavar="DIR", required=True, help="folder to unpack into")
    prepare.add_argument("--data-config", metavar="NAME", default="standard", help="layout of DATA, as for a run")
    prepare.set_defaults(command=_data_prepare)

    text = "write data sets as WebDataset shards, which runs read by --data-config shards; the same command goes on"
    shard = commands.add_parser("data-shard", help=text, description=text)
    shard.add_argument("sets", nargs="*", metavar="SET", help="imagenet, voc07, ... (default: all)")
    shard.add_argument("--data", metavar="DIR", required=True, help="folder with the pictures")
    shard.add_argument("--data-config", metavar="NAME", default="standard", help="layout of DATA, as for a run")
    shard.add_argument("--shards", metavar="DIR", required=True, help="folder to write the shards into")
    shard.set_defaults(command=_data_shard)

    text = "name the tables, experiments and evaluations"
    commands.add_parser("list", help=text, description=text).set_defaults(command=_list)
    return parser


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
