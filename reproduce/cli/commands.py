"""The commands on tables and runs: plan, render, run, check, report, record-baseline, pretrain, evaluate, list.

A command imports what only it needs when it runs, so that `--help` and wrong requests answer at once.
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from reproduce.config import RunKind
from reproduce.config.quoting import hydra_quote
from reproduce.errors import UserError, did_you_mean
from reproduce.harness.plan import build, plan_file
from reproduce.harness.plan.model import CACHE, Plan, Request
from reproduce.harness.plan.run_state import missing_reason, valid_result
from reproduce.harness.spec import tables

OWN_IMAGES = CACHE / "images"
"""Links to own pictures, as class folders of two splits."""

FLAGS = {
    "scale": "--scale (make: SCALE=)",
    "data": "--data-config (make: DATA_CONFIG=)",
    "paths.data_root": "--data (make: DATA=)",
}
"""Config keys that decide where a single run finds its images, and so can't be its overrides: they would get others."""

MAX_SEEDS = 1000
"""More seeds than anybody trains: a mistyped number must not fill the memory with runs."""


def reproduce_tables(options: argparse.Namespace) -> int:
    """Plan, run, check and report; return the check's exit status."""
    from reproduce.harness.verdict.check import AGREES, NOTHING_COMPARED

    plan = _plan(options)
    _print_plan(plan, options.cores)
    _execute(plan, options.cores, options.skip_missing_data)
    status = _check(plan, options.strict)
    print(f"report: {_report(plan)}")
    # Who asks for numbers of own pictures knows that there are no others.
    return AGREES if options.images and status == NOTHING_COMPARED else status


def plan_tables(options: argparse.Namespace) -> int:
    """Print the runs that the tables need and what they cost; write plan.json."""
    plan = _plan(options)
    _print_plan(plan, options.cores)
    print(f"plan: {plan_file.write(plan)}")
    return 0


def render_manifests(options: argparse.Namespace) -> int:
    """Write the Kubernetes manifests of the runs. Raises UserError for another cluster."""
    from reproduce.files import read_json
    from reproduce.harness.execute import kubernetes_manifests

    plan = _plan(options)
    if plan.cluster["executor"] != "kubernetes":
        raise UserError("render writes Kubernetes manifests: add --cluster kubernetes (make: CLUSTER=kubernetes)")
    folder = plan.reports / "kubernetes" / "-".join(plan.request.tables)
    written = kubernetes_manifests.render(read_json(plan_file.write(plan)), folder)
    print("\n".join(map(str, written)))
    return 0


def run_tables(options: argparse.Namespace) -> int:
    """Do the runs that are not done; return 3 if one is missing in the end."""
    from reproduce.harness.verdict.check import AGREES, INCOMPLETE

    return INCOMPLETE if _execute(_plan(options), options.cores, options.skip_missing_data) else AGREES


def check_tables(options: argparse.Namespace) -> int:
    """Give the cells of the written plan their verdicts; return the check's exit status."""
    return _check(_plan_to_judge(options), options.strict)


def report_tables(options: argparse.Namespace) -> int:
    """Write the page of what was checked."""
    print(f"report: {_report(_plan_to_judge(options))}")
    return 0


def record_baseline_numbers(options: argparse.Namespace) -> int:
    """Run tables over several seeds and record their numbers as the expected ones."""
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
        raise UserError(
            f"tables at scale {options.scale} are compared with printed numbers: there is nothing to record"
        )
    if printed := set(options.tables) - set(recordable):
        raise UserError(f"{min(printed)} cannot be recorded: {did_you_mean(min(printed), recordable)}")
    record_baseline.refuse_dirty(options.allow_dirty)
    plan, before = record_baseline.without_recorded_seeds(_plan(options))
    if before.cells:
        first, last = plan.request.seeds[0], plan.request.seeds[-1]
        print(f"{len(before.header['seeds'])} seeds are recorded already; this adds seeds {first} to {last}")
    if _execute(plan, options.cores):
        return INCOMPLETE
    others = [] if before.cells else record_baseline.under_other_arithmetic(plan)
    for setting, other in others:
        print(f"the first seed's untrained trunks under other arithmetic: {setting.name}")
        with setting.applied():
            if _execute(other, options.cores):
                return INCOMPLETE
    plan_file.write(plan)  # check and report judge the plan that was written last
    print(f"recorded: {record_baseline.record(plan, options.allow_dirty, before, [other for _, other in others])}")
    for doubt in record_baseline.doubts(plan):
        print(f"note: {doubt}")
    if left := [name for name in recordable if name not in options.tables]:
        print(f"these tables have no expected numbers now, because a record covers one code version: {', '.join(left)}")
    return 0


def preflight_recipes(options: argparse.Namespace) -> int:
    """Compare the first steps of every recipe with the recorded ones; return 1 if one differs."""
    from reproduce.harness.preflight.preflight import preflight
    from reproduce.harness.report.render_preflight import write_preflight_page
    from reproduce.harness.report.tracking import log_preflight
    from reproduce.harness.verdict.check import AGREES, DISAGREES

    cluster = Request((), options.scale, **_request_flags(options)).cluster_overrides("pretrain")
    equal = preflight(options.scale, options.cores, options.precision, cluster, _say)
    if problem := log_preflight(options.scale):
        print(f"W&B has no table of this preflight ({problem})", file=sys.stderr)
    print(f"preflight: {'every recipe takes its recorded first steps' if equal else 'NOT ALL RECIPES ARE RIGHT HERE'}")
    print(f"report: {write_preflight_page(options.scale)}")
    return AGREES if equal else DISAGREES


def record_golden_steps(options: argparse.Namespace) -> int:
    """Record the first steps of every recipe, with tolerances measured on this machine."""
    from reproduce.harness import record_baseline
    from reproduce.harness.preflight.record import record

    record_baseline.refuse_dirty(options.allow_dirty)
    print(f"recorded: {record(options.scale, options.cores, _say)}")
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


def run_single(options: argparse.Namespace) -> int:
    """Do one pretraining or evaluation, with the run_id that a table would give it; return its exit status."""
    from reproduce.harness import data_check
    from reproduce.harness.execute.process_group import run_process
    from reproduce.harness.verdict.check import AGREES, INCOMPLETE

    _check_choice(options.group, options.choice)
    kind: RunKind = "pretrain" if options.group == "experiment" else "evaluate"
    request = Request((), options.scale, **_request_flags(options))
    checkpoint = getattr(options, "checkpoint", "")
    for item in options.overrides:
        if flag := FLAGS.get(item.lstrip("+~").partition("=")[0]):
            raise UserError(f"{item!r} is no override of this command: give it as {flag}")
    overrides = (*_preprocessing_of(checkpoint, options.choice), *options.overrides)
    plan = build.single_run_plan(request, kind, options.choice, checkpoint, overrides)
    (run,) = plan.runs.values()
    if valid_result(plan, run):
        print(f"{run.metrics_text()}\nalready done: {run.result}")
        return 0
    if run.result.exists():
        print(f"{missing_reason(plan, run)}: doing it again")
    if plan.cluster["executor"] != "local":
        return INCOMPLETE if _execute(plan, options.cores) else AGREES
    data_check.generate_images(plan)
    data_check.check_data(plan)
    status = run_process(run.command(), Path(run.folder), echo=True)
    if status == 0:
        print(f"{run.metrics_text()}\nresult: {run.result}")
    return status


def _preprocessing_of(checkpoint: str, evaluation: str) -> list[str]:
    """Return the overrides that prepare images as a released checkpoint needs them; [] for another one."""
    from models.zoo import entries

    if not checkpoint.startswith(entries.PREFIX):
        return []
    return build.preprocessing_overrides(entries.get_entry(checkpoint.removeprefix(entries.PREFIX)), evaluation)


def list_names(_options: argparse.Namespace) -> int:
    """Print the names of tables, claims, experiments and evaluations."""
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
    if options.seeds is not None and options.seeds > MAX_SEEDS:
        raise UserError(f"--seeds {options.seeds}: a plan has {MAX_SEEDS:,} seeds at most")


def _request_flags(options: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of a `Request` that the command line sets, without its tables and scale."""
    if options.images:
        _arrange_own_images(options)
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


def _arrange_own_images(options: argparse.Namespace) -> None:
    """Put what reads the pictures of --images in the place of --data and --data-config."""
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
    options.data, options.data_config = str(own.data), str(own.config)


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


def _print_plan(plan: Plan, cores: int) -> None:
    """Print a line per run with its state, cells and cost, and a summary."""
    from reproduce.harness.data_check import other_data_roots
    from reproduce.harness.execute.progress import Progress
    from reproduce.harness.plan import cost, cost_report
    from reproduce.harness.plan.durations import expected_seconds, format_duration
    from reproduce.harness.spec import baseline
    from reproduce.harness.verdict.seeds_needed import seeds_in_words

    costs = cost.plan_cost(plan)
    print(cost_report.as_text(plan, costs))
    progress = Progress(
        plan, cores, expected_seconds(plan, baseline.load(plan.request.scale).wall_seconds), costs.states
    )
    seconds = progress.seconds_left(0.0)
    time = (
        f", about {format_duration(seconds)} on {cores} cores"
        if seconds and plan.cluster["executor"] == "local"
        else ""
    )
    print(f"{len(plan.cells)} cells need {len(plan.runs)} runs, of which {len(costs.to_do)} are to do{time}")
    for line in seeds_in_words(plan):
        print(line)
    if elsewhere := other_data_roots(plan):
        print(f"note: finished runs read their images from {elsewhere}; delete results/ to repeat them")


def _execute(plan: Plan, cores: int, skip_missing_data: bool = False) -> bool:
    """Do the plan's runs, or only those whose data exists; return whether any is missing in the end."""
    from reproduce.engine.runs import tracking
    from reproduce.harness import data_check
    from reproduce.harness.execute.status_printer import StatusPrinter
    from reproduce.harness.execute.workflow import execute_plan
    from reproduce.harness.spec import baseline

    tracking.check_mode()
    seconds = baseline.load(plan.request.scale).wall_seconds
    possible, why = data_check.runnable_part(plan, skip_missing_data)
    if len(possible.runs) in (0, len(plan.runs)):
        data_check.check_data(plan)
        return bool(execute_plan(plan, cores, seconds, StatusPrinter()).missing)
    print(f"{why}: {len(possible.runs)} of {len(plan.runs)} runs do not need it, and are done now")
    execute_plan(possible, cores, seconds, StatusPrinter())
    return True


def _check(plan: Plan, strict: bool) -> int:
    from reproduce.harness.report.files import write_verdicts
    from reproduce.harness.report.headline import headline
    from reproduce.harness.report.render_checkpoints import checkpoints_as_text
    from reproduce.harness.report.render_claims import claims_as_text
    from reproduce.harness.report.render_tables import NOTICES_FOOTNOTE, table_as_text
    from reproduce.harness.report.summary import read_verdicts
    from reproduce.harness.report.tracking import log_changes
    from reproduce.harness.verdict import check
    from reproduce.harness.verdict.claims import check_claims
    from reproduce.harness.verdict.doubts import of_tables
    from reproduce.harness.verdict.first_steps import FirstStepsCheck
    from reproduce.harness.verdict.strict import open_issues

    checked, claims, checkpoints = check.check_tables(plan), check_claims(plan), check.check_checkpoints(plan)
    changes = write_verdicts(plan, checked, claims, checkpoints)
    for table in checked:
        print(table_as_text(table))
    if checkpoints:
        print(checkpoints_as_text(checkpoints))
    if claims:
        print(claims_as_text(claims))
    if problem := log_changes(plan, changes):
        print(f"W&B has no table of these verdicts ({problem})", file=sys.stderr)
    if matches := check.recorded_matches(checked):
        print(matches)
    written = read_verdicts(plan.reports, plan.request.scale)
    proved = headline([table for table in written.tables if table["table"] in plan.tables], written.checkpoints)
    recorded_only = all(table.expected == "recorded" for table in plan.tables.values()) and not plan.claims
    if (first_steps := FirstStepsCheck.of_plan(plan).in_words()) and not (proved and recorded_only):
        print(first_steps)
    if proved:
        print(f"{NOTICES_FOOTNOTE}\n{proved}")
    for doubt in of_tables():
        print(f"note: {doubt}")
    status = check.exit_status(checked, claims, bool(plan.claims), checkpoints)
    print(f"check: {check.STATUS_MEANINGS[status]}; details in {plan.reports}")
    issues = open_issues(plan, checked, claims) if strict else []
    for issue in issues:
        print(f"strict: {issue}")
    return status or (check.DISAGREES if issues else check.AGREES)


def _report(plan: Plan) -> Path:
    from reproduce.harness.report import page, summary

    written = page.write_page(plan.request.scale)
    for sentence in page.stale_verdicts(summary.read_verdicts(plan.reports, plan.request.scale).tables):
        print(f"note: {sentence}")
    return written


def _check_choice(group: str, choice: str) -> None:
    from reproduce.config.compose import group_options

    valid = group_options(group)
    if choice not in valid:
        what = {"experiment": "experiment", "eval": "evaluation"}[group]
        raise UserError(f"there is no {what} {choice!r}: {did_you_mean(choice, valid)}")
