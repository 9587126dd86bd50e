"""The commands on a single run: pretrain, evaluate."""

import argparse
from pathlib import Path

from reproduce.cli.requests import link_own_images, request_flags
from reproduce.cli.table_commands import execute
from reproduce.config import RunKind
from reproduce.errors import UserError, did_you_mean
from reproduce.harness.plan import build
from reproduce.harness.plan.model import Request
from reproduce.harness.plan.run_state import missing_reason, valid_result

FLAGS = {
    "scale": "--scale (make: SCALE=)",
    "data": "--data-config (make: DATA_CONFIG=)",
    "paths.data_root": "--data (make: DATA=)",
    "cluster": "--cluster (make: CLUSTER=)",
    "cluster.executor": "--cluster (make: CLUSTER=)",
}
"""Config keys that the harness reads, and so can't be a single run's overrides: it would look for the images elsewhere,
and start the run here."""


def run_single(options: argparse.Namespace) -> int:
    """Do one pretraining or evaluation, with the run_id that a table would give it; return its exit status."""
    from reproduce.harness import data_check
    from reproduce.harness.execute.process_group import run_process
    from reproduce.harness.verdict.check import AGREES, INCOMPLETE

    _check_choice(options.group, options.choice)
    kind: RunKind = "pretrain" if options.group == "experiment" else "evaluate"
    request = Request((), options.scale, **request_flags(link_own_images(options)))
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
        return INCOMPLETE if execute(plan, options.cores) else AGREES
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


def _check_choice(group: str, choice: str) -> None:
    from reproduce.config.compose import group_options

    valid = group_options(group)
    if choice not in valid:
        what = {"experiment": "experiment", "eval": "evaluation"}[group]
        raise UserError(f"there is no {what} {choice!r}: {did_you_mean(choice, valid)}")
