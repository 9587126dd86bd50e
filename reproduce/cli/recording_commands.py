"""The commands on what is recorded: record-baseline, preflight, record-golden."""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from reproduce.cli.requests import plan_of, request_flags
from reproduce.cli.table_commands import execute
from reproduce.errors import UserError, did_you_mean
from reproduce.harness.plan import build, plan_file
from reproduce.harness.plan.model import Request
from reproduce.harness.spec import baseline, tables

if TYPE_CHECKING:
    from reproduce.harness.arithmetics import Setting
    from reproduce.harness.plan.model import Plan


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
    if options.same_seed:
        return _record_same_seed(options)
    plan, before = record_baseline.without_recorded_seeds(plan_of(options))
    if before.cells:
        first, last = plan.request.seeds[0], plan.request.seeds[-1]
        print(f"{len(before.header['seeds'])} seeds are recorded already; this adds seeds {first} to {last}")
    _, beside = record_baseline.recorded_beside(plan)
    if beside:
        print(f"recorded already, by the same code for these seeds: {', '.join(beside)}; their numbers stay")
    if execute(plan, options.cores):
        return INCOMPLETE
    others = [] if before.cells else record_baseline.under_other_arithmetic(plan)
    if _execute_under(others, options.cores):
        return INCOMPLETE
    plan_file.write(plan)  # check and report judge the plan that was written last
    print(f"recorded: {record_baseline.record(plan, options.allow_dirty, before, [other for _, other in others])}")
    for doubt in record_baseline.doubts(plan):
        print(f"note: {doubt}")
    if left := [name for name in recordable if name not in (*options.tables, *beside)]:
        print(f"these tables have no expected numbers of this code: {', '.join(left)}")
    return 0


def judge_recorded_claims(options: argparse.Namespace) -> int:
    """Print what the recorded numbers of a scale say of the paper's claims; return 1 if they contradict one."""
    from reproduce.harness.report.render_claims import claims_as_text
    from reproduce.harness.verdict.check import AGREES, DISAGREES
    from reproduce.harness.verdict.claims import check_recorded_claims
    from reproduce.harness.verdict.labels import ClaimStatus

    found = check_recorded_claims(options.scale)
    header = baseline.load(options.scale).header
    print(f"by the numbers in {baseline.path(options.scale)}: {len(header['seeds'])} seeds, {header['date']}")
    print(claims_as_text(found).lstrip())
    return DISAGREES if any(each.status == ClaimStatus.CONTRADICTED for each in found) else AGREES


def _record_same_seed(options: argparse.Namespace) -> int:
    """Add to the recorded numbers what their first seed gives under every arithmetic of this machine."""
    from reproduce.harness import arithmetics, record_baseline
    from reproduce.harness.verdict.check import AGREES, INCOMPLETE

    recorded = baseline.load(options.scale)
    if not recorded.cells:
        raise UserError(f"nothing is recorded at scale {options.scale}: make record-baseline records seeds first")
    options.seeds = 1
    plan = build.plan_for_seeds(plan_of(options), tuple(recorded.header["seeds"][:1]))
    others = record_baseline.under_other_arithmetic(plan, arithmetics.of_this_machine())
    if not others:
        raise UserError("no evaluation of an untrained trunk is left to repeat here: use a CPU, CLUSTER=local")
    if _execute_under(others, options.cores):
        return INCOMPLETE
    written = record_baseline.record_same_seed(plan, [other for _, other in others], options.allow_dirty)
    print(f"recorded: {written}")
    return AGREES


def _execute_under(plans: "Sequence[tuple[Setting, Plan]]", cores: int) -> list[str]:
    """Do the runs of plans, each under its arithmetic, until one is missing; return the run_ids of those missing."""
    for setting, plan in plans:
        print(f"the first seed's untrained trunks under other arithmetic: {setting.name}")
        with setting.applied():
            if missing := execute(plan, cores):
                return missing
    return []


def preflight_recipes(options: argparse.Namespace) -> int:
    """Compare the first steps of every recipe with the recorded ones; return 1 if one differs."""
    from reproduce.harness.preflight.preflight import preflight
    from reproduce.harness.report.render_preflight import write_preflight_page
    from reproduce.harness.report.tracking import log_preflight
    from reproduce.harness.verdict.check import AGREES, DISAGREES

    cluster = Request((), options.scale, **request_flags(options)).cluster_overrides("pretrain")
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
    print(f"recorded: {record(options.scale, options.cores, _say, options.only_new)}")
    return 0


def _say(line: str) -> None:
    print(line, flush=True)
