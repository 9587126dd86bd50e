"""Describe this machine, its preflights, and which tables can run on it: python -m reproduce.harness.doctor

It takes seconds, needs no torch, and works without .venv as far as possible. It says whether keys are set, never their
values. Exit status: 0 scale smoke can run here, 1 it cannot, 2 the request is wrong.
"""

import argparse
import dataclasses
import os
import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from reproduce.errors import UserError, run_cli
from reproduce.harness import machine, software
from reproduce.harness.machine import Diagnosis

if TYPE_CHECKING:
    from reproduce.harness.spec.tables import Table

WANDB_URL = "https://api.wandb.ai"
"""The default of WANDB_BASE_URL."""
SYMBOLS = {"ok": " ", "note": "-", "missing": "✗"}
GPU_SCALE = "paper"
"""The scale whose trainings would take years on a CPU."""


def main(arguments: list[str] | None = None) -> int:
    """Print all diagnoses; return whether scale smoke can run, as an exit status."""
    parser = argparse.ArgumentParser(prog="python -m reproduce.harness.doctor", description=__doc__)
    parser.add_argument("--data", metavar="DIR", help="folder with the images")
    parser.add_argument("--data-config", metavar="NAME", help="layout of DATA: a name in conf/data, or a YAML file")
    parser.add_argument("--short", action="store_true", help="the machine and its libraries only")
    options = parser.parse_args(arguments)
    if options.data and not Path(options.data).is_dir():
        raise UserError(f"the folder {options.data} given as DATA is not there")
    found = print_diagnoses("machine", machine.hardware())
    found += print_diagnoses("libraries", software.packages())
    if not options.short:
        found += print_diagnoses("around it", [*software.services(), *_keys(), *software.network(_urls())])
        if not any(diagnosis.level == "missing" for diagnosis in found):
            found += print_diagnoses("are the recipes' first steps right here", _preflights())
            found += print_diagnoses("what can run here", _tables(options.data, options.data_config))
        print("A line with ✗ keeps scale smoke from running; one with - keeps something else, or slows it down.")
    return int(any(diagnosis.level == "missing" for diagnosis in found))


def print_diagnoses(heading: str, diagnoses: Iterable[Diagnosis]) -> list[Diagnosis]:
    """Print diagnoses as they come, and return them."""
    print(heading)
    printed = []
    for diagnosis in diagnoses:
        start = f" {SYMBOLS[diagnosis.level]} {diagnosis.subject:20} "
        print(textwrap.fill(diagnosis.text, 119, initial_indent=start, subsequent_indent=" " * len(start)), flush=True)
        printed.append(diagnosis)
    return printed


def _keys() -> Iterator[Diagnosis]:
    from reproduce.engine.runs import tracking

    kept = "there: runs are tracked online" if tracking.is_online() else "none: runs are tracked offline (wandb sync)"
    yield Diagnosis("W&B key", kept)


def _urls() -> dict[str, str]:
    """Return the addresses that runs may use, by subject."""
    tracker = os.environ.get("WANDB_BASE_URL", WANDB_URL)
    found = {"W&B": tracker} if urlsplit(tracker).scheme == "https" else {}
    try:
        from models.zoo import entries
    except ImportError:  # no .venv yet
        return found
    hosts = {urlsplit(item.url).netloc for item in entries.load_entries().values() if item.url}
    return found | {f"public weights ({host})": f"https://{host}" for host in sorted(hosts)}


def _preflights() -> Iterator[Diagnosis]:
    """Diagnose the last preflight of each scale: what it found, when and where, and whether that still holds."""
    from reproduce.harness.spec import golden, preflight_file

    for scale in preflight_file.SCALES:
        subject = f"{scale} preflight"
        try:
            result = preflight_file.last_preflight(scale)
            if result is not None:
                doubts = list(preflight_file.doubts(result))
                found = f"{preflight_file.summary(result)}, {preflight_file.origin(result)}."
                yield Diagnosis(subject, " ".join([found, *doubts]), "ok" if result["equal"] and not doubts else "note")
            elif golden.path(scale).exists():
                yield Diagnosis(subject, f"none was run: {preflight_file.command(scale)}")
            else:
                yield Diagnosis(subject, "none is possible: no first steps are recorded at this scale")
        except UserError as error:
            yield Diagnosis(subject, str(error), "note")


@dataclass(frozen=True)
class Availability:
    """What runs of one scale find on this machine."""

    scale: str
    lacks_gpu: bool
    missing_data: dict[str, list[str]]
    """The missing data set of each evaluation as a phrase, and under "" that of pretraining."""

    def missing(self, evaluation: str) -> set[str]:
        """Return phrases on what an evaluation lacks."""
        return {*self.missing_data[evaluation], *self.missing_data[""], *(["a GPU"] if self.lacks_gpu else [])}


def _tables(data: str | None, data_config: str | None) -> Iterator[Diagnosis]:
    """Diagnose each table: how many numbers this machine can produce, and what the others lack."""
    from reproduce.harness.spec import tables

    has_gpu = isinstance(found := machine.list_gpus(), list) and bool(found)
    for scale in sorted(tables.scales(), reverse=True):
        chosen = [tables.load(name, scale) for name in tables.names(scale)]
        cells = [(table, row, key) for table in chosen for row in table.rows for key in table.columns]
        evaluations = {name for table, row, key in cells if (name := table.eval_of(row, key))}
        own = (data, data_config if scale == GPU_SCALE else None)
        here = Availability(scale, scale == GPU_SCALE and not has_gpu, _missing_data(scale, evaluations, *own))
        for table in chosen:
            yield _table(table, here)
    yield _weights()


def _table(table: "Table", here: Availability) -> Diagnosis:
    subject = f"{here.scale} {table.table}"
    made = [(row, key) for row, key, _ in table.reproducible_cells()]
    lacks = [here.missing(name) if (name := table.eval_of(row, key)) else set() for row, key in made]
    lacks += [here.missing("") for _ in table.curve_rows()]
    if not lacks:
        return Diagnosis(subject, "none of it is made by this code so far", "note")
    possible = sum(not missing for missing in lacks)
    what = f"{len(lacks)} {'curves' if table.plots else 'numbers'}" if len(lacks) > 1 else "one number"
    words = f"{possible or 'none'} of the {what} that this code makes"
    if missing := sorted(set[str]().union(*lacks)):
        return Diagnosis(subject, f"{words}; missing: {', '.join(missing)}", "note")
    return Diagnosis(subject, f"all {len(lacks)} that this code makes")


def _missing_data(scale: str, evaluations: set[str], data: str | None, data_config: str | None) -> dict[str, list[str]]:
    """Return the missing data set of each evaluation, and under "" that of pretraining."""
    from reproduce.harness.plan import build
    from reproduce.harness.plan.data_requirements import missing_data
    from reproduce.harness.plan.model import Request

    request = Request((), scale, data_config=data_config)
    if not build.single_run_plan(request, "pretrain", "random").generated_data_dir:
        request = dataclasses.replace(request, data=data)
    plans = {name: build.single_run_plan(request, "evaluate", name, "any") for name in sorted(evaluations)}
    plans[""] = build.single_run_plan(request, "pretrain", "random")
    missing = {}
    for name, plan in plans.items():
        (run,) = plan.runs.values()
        absent = not plan.generated_data_dir and (not plan.data_root or bool(missing_data(plan, run)))
        missing[name] = [f"the data of {run.workload.dataset['name']}"] if absent else []
    return missing


def _weights() -> Diagnosis:
    from models.zoo import entries

    public = [item for item in entries.load_entries().values() if item.url]
    here = sum(entries.cache_path(item).exists() for item in public)
    return Diagnosis("public weights", f"{here} of {len(public)} are downloaded (make fetch-weights lists them)")


if __name__ == "__main__":
    sys.exit(run_cli(main))
