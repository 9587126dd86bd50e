"""The commands on tables: reproduce, plan, render, run, check, report, list.

A command imports what only it needs when it runs, so that `--help` and wrong requests answer at once.
"""

import argparse
from pathlib import Path

from reproduce.cli.requests import plan_of, plan_to_judge
from reproduce.errors import UserError
from reproduce.harness.plan import plan_file
from reproduce.harness.plan.model import Plan
from reproduce.harness.plan.run_state import run_states
from reproduce.harness.spec import tables


def reproduce_tables(options: argparse.Namespace) -> int:
    """Plan, run, check, draw pictures and report; return the check's exit status."""
    from reproduce.cli.check import check_plan
    from reproduce.harness.report.pictures import make_pictures_of_plan
    from reproduce.harness.verdict.check import AGREES, NOTHING_COMPARED

    plan = plan_of(options)
    _print_plan(plan, options.cores)
    execute(plan, options.cores, options.skip_missing_data)
    status = check_plan(plan, options.strict)
    make_pictures_of_plan(plan)
    print(f"report: {_report(plan)}")
    # Who asks for numbers of own pictures knows that there are no others.
    return AGREES if options.images and status == NOTHING_COMPARED else status


def plan_tables(options: argparse.Namespace) -> int:
    """Print the runs that the tables need and what they cost; write plan.json."""
    plan = plan_of(options)
    _print_plan(plan, options.cores)
    print(f"plan: {plan_file.write(plan)}")
    return 0


def render_manifests(options: argparse.Namespace) -> int:
    """Write the Kubernetes manifests of the runs. Raises UserError for another cluster."""
    from reproduce.files import read_json
    from reproduce.harness.execute import kubernetes_manifests

    plan = plan_of(options)
    if plan.cluster["executor"] != "kubernetes":
        raise UserError("render writes Kubernetes manifests: add --cluster kubernetes (make: CLUSTER=kubernetes)")
    folder = plan.reports / "kubernetes" / "-".join(plan.request.tables)
    written = kubernetes_manifests.render(read_json(plan_file.write(plan)), folder)
    print("\n".join(map(str, written)))
    return 0


def run_tables(options: argparse.Namespace) -> int:
    """Do the runs that are not done; return 3 if one is missing in the end."""
    from reproduce.harness.verdict.check import AGREES, INCOMPLETE

    missing = execute(plan_of(options), options.cores, options.skip_missing_data)
    return INCOMPLETE if missing else AGREES


def check_tables(options: argparse.Namespace) -> int:
    """Give the cells of the written plan their verdicts; return the check's exit status."""
    from reproduce.cli.check import check_plan

    return check_plan(plan_to_judge(options), options.strict)


def report_tables(options: argparse.Namespace) -> int:
    """Write the page of what was checked."""
    print(f"report: {_report(plan_to_judge(options))}")
    return 0


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


def _print_plan(plan: Plan, cores: int) -> None:
    """Print a line per run with its state, cells and cost, and a summary."""
    from reproduce.harness.data_check import other_data_roots
    from reproduce.harness.execute.progress import Progress
    from reproduce.harness.plan import budget, build, cost, cost_report
    from reproduce.harness.plan.durations import cores_in_words, expected_seconds, format_duration
    from reproduce.harness.spec import baseline
    from reproduce.harness.verdict.seeds_needed import seeds_in_words

    costs = cost.plan_cost(plan)
    print(cost_report.as_text(plan, costs))
    if plan.request.budget:
        whole = build.build_plan(plan.request)
        print("\n".join(budget.in_words(budget.choose(whole, cost.plan_cost(whole)), plan, len(whole.cells))))
    known = expected_seconds(plan, baseline.load(plan.request.scale).wall_seconds)
    progress = Progress(plan, cores, costs.cpu_seconds(plan) | known, costs.states)
    seconds = progress.seconds_left(0.0)
    time = (
        f", about {format_duration(seconds)} on {cores_in_words(cores)}"
        if seconds and plan.cluster["executor"] == "local"
        else ""
    )
    print(f"{len(plan.cells)} cells need {len(plan.runs)} runs, of which {len(costs.to_do)} are to do{time}")
    for line in seeds_in_words(plan):
        print(line)
    if elsewhere := other_data_roots(plan):
        print(f"note: finished runs read their images from {elsewhere}; delete results/ to repeat them")


def execute(plan: Plan, cores: int, skip_missing_data: bool = False) -> list[str]:
    """Do the plan's runs, or only those whose data exists; return the run_ids of those missing in the end."""
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
        return execute_plan(plan, cores, seconds, StatusPrinter()).missing
    print(f"{why}: {len(possible.runs)} of {len(plan.runs)} runs do not need it, and are done now")
    execute_plan(possible, cores, seconds, StatusPrinter(), whole=plan)
    return [name for name, state in run_states(plan).items() if not state.settled]


def _report(plan: Plan) -> Path:
    from reproduce.harness.report import page, summary

    written = page.write_page(plan.request.scale)
    for sentence in page.stale_verdicts(summary.read_verdicts(plan.reports, plan.request.scale)):
        print(f"note: {sentence}")
    return written
