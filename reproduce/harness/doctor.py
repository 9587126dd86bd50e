"""What this machine is, what of the tables can run here, and what is missing: python -m reproduce.harness.doctor

In plain words, in seconds, without torch, and without .venv as far as that goes. Keys are told as there or not, never
their values. Exit status: 0 scale smoke can run here, 1 it can't, 2 the request is wrong.
"""

import argparse
import os
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from reproduce.errors import UserError, run_cli
from reproduce.harness import machine
from reproduce.harness.machine import Finding

if TYPE_CHECKING:
    from reproduce.harness.spec.tables import Table

TRACKING = "https://api.wandb.ai"
"""W&B's own, where WANDB_BASE_URL names no other."""
SIGNS = {"ok": " ", "note": "-", "missing": "✗"}
NEEDS_GPU = "paper"
"""The scale whose trainings would take a processor years."""


def main(arguments: list[str] | None = None) -> int:
    """Look, tell, and say whether scale smoke can run."""
    parser = argparse.ArgumentParser(prog="python -m reproduce.harness.doctor", description=__doc__)
    parser.add_argument("--data", metavar="DIR", help="folder with the pictures")
    parser.add_argument("--data-config", metavar="NAME", help="layout of DATA: a name in conf/data, or a YAML file")
    parser.add_argument("--short", action="store_true", help="the machine and its libraries only")
    options = parser.parse_args(arguments)
    if options.data and not Path(options.data).is_dir():
        raise UserError(f"the folder {options.data} given as DATA is not there")
    found = tell("machine", machine.hardware())
    found += tell("libraries", machine.packages())
    if not options.short:
        found += tell("around it", [*machine.services(), *_keys(), *machine.network(_addresses())])
        if not any(finding.mark == "missing" for finding in found):
            found += tell("what can run here", _tables(options.data, options.data_config))
        print("A line with ✗ keeps scale smoke from running; one with - keeps something else, or slows it down.")
    return int(any(finding.mark == "missing" for finding in found))


def tell(heading: str, findings: Iterator[Finding] | list[Finding]) -> list[Finding]:
    """Print findings as they come; give them back."""
    print(heading)
    told = []
    for finding in findings:
        start = f" {SIGNS[finding.mark]} {finding.subject:20} "
        print(textwrap.fill(finding.words, 119, initial_indent=start, subsequent_indent=" " * len(start)), flush=True)
        told.append(finding)
    return told


def _keys() -> Iterator[Finding]:
    from reproduce.engine.runs import tracking

    kept = "there: runs are tracked online" if tracking.is_online() else "none: runs are tracked offline (wandb sync)"
    yield Finding("W&B key", kept)


def _addresses() -> dict[str, str]:
    """What runs may want from outside, by what it is."""
    tracker = os.environ.get("WANDB_BASE_URL", TRACKING)
    found = {"W&B": tracker} if urlsplit(tracker).scheme == "https" else {}
    try:
        from models.zoo import entries
    except ImportError:  # no .venv yet
        return found
    hosts = {urlsplit(item.url).netloc for item in entries.load_entries().values() if item.url}
    return found | {f"public weights ({host})": f"https://{host}" for host in sorted(hosts)}


@dataclass(frozen=True)
class Here:
    """What runs of one scale find on this machine."""

    scale: str
    lacks_gpu: bool
    lacking: dict[str, list[str]]
    """By evaluation, the data set that is not there, as words; of "" that of pretraining."""

    def missing(self, evaluation: str) -> set[str]:
        """What keeps a number from being made, as words."""
        return {*self.lacking[evaluation], *self.lacking[""], *(["a GPU"] if self.lacks_gpu else [])}


def _tables(data: str | None, data_config: str | None) -> Iterator[Finding]:
    """Of each table, how many numbers can be made here, and what the others lack."""
    from reproduce.harness.spec import tables

    has_gpu = isinstance(found := machine.gpus(), list) and bool(found)
    for scale in sorted(tables.scales(), reverse=True):
        chosen = [tables.load(name, scale) for name in tables.names(scale)]
        evaluations = {column.eval for table in chosen for column in table.columns.values() if column.eval}
        own = (data, data_config) if scale == NEEDS_GPU else (None, None)  # scale smoke makes its own
        here = Here(scale, scale == NEEDS_GPU and not has_gpu, _lacking(scale, evaluations, *own))
        for table in chosen:
            yield _table(table, here)
    yield _weights()


def _table(table: "Table", here: Here) -> Finding:
    subject = f"{here.scale} {table.table}"
    columns = [table.columns[key] for _, key, _ in table.reproducible_cells()]
    lacks = [set() if column.measurement else here.missing(column.eval or "") for column in columns]
    lacks += [here.missing("") for _ in table.curve_rows()]
    if not lacks:
        return Finding(subject, "none of it is made by this code so far", "note")
    possible = sum(not missing for missing in lacks)
    words = f"{possible or 'none'} of the {len(lacks)} {'curves' if table.plots else 'numbers'} that this code makes"
    if missing := sorted(set[str]().union(*lacks)):
        return Finding(subject, f"{words}; missing: {', '.join(missing)}", "note")
    return Finding(subject, f"all {len(lacks)} that this code makes")


def _lacking(scale: str, evaluations: set[str], data: str | None, data_config: str | None) -> dict[str, list[str]]:
    """The data sets that are not there, by evaluation; of "" those of pretraining."""
    from reproduce.harness.plan import build
    from reproduce.harness.plan.data_requirements import missing_data
    from reproduce.harness.plan.model import Request

    request = Request((), scale, data=data, data_config=data_config)
    plans = {name: build.single_run_plan(request, "evaluate", name, "any") for name in sorted(evaluations)}
    plans[""] = build.single_run_plan(request, "pretrain", "random")
    lacking = {}
    for name, plan in plans.items():
        (run,) = plan.runs.values()
        absent = not plan.generated_data_dir and (not plan.data_root or bool(missing_data(plan, run)))
        lacking[name] = [f"the data of {run.workload.dataset['name']}"] if absent else []
    return lacking


def _weights() -> Finding:
    from models.zoo import entries

    public = [item for item in entries.load_entries().values() if item.url]
    here = sum(entries.cache_path(item).exists() for item in public)
    return Finding("public weights", f"{here} of {len(public)} are downloaded (make fetch-weights lists them)")


if __name__ == "__main__":
    sys.exit(run_cli(main))
