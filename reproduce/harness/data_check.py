"""Whether the pictures that a plan's runs read are there: said before any of them starts, or generated."""

import subprocess
import sys
from pathlib import Path

from reproduce.errors import UserError
from reproduce.harness.plan.data_requirements import missing_data
from reproduce.harness.plan.model import Plan, Run
from reproduce.harness.plan.run_state import run_states


def possible(plan: Plan, skip_missing_data: bool) -> tuple[Plan, str]:
    """The part of a plan whose data is there, as far as it may be made without the rest, and why it is a part."""
    if _lacks_data(plan):
        return plan.restricted_to(lambda run: run.kind == "measure"), "no DATA is given"
    if not skip_missing_data or plan.generated_data_dir or not Path(plan.data_root).is_dir():
        return plan, ""
    absent = _absent(plan)
    return plan.restricted_to(lambda run: run.run_id not in absent), f"DATA misses {_phrases(absent)}"


def refuse_missing(plan: Plan) -> None:
    """Raise `UserError` where pictures that the runs need are not there, before any of them starts."""
    if plan.request.data and not plan.generated_data_dir and not Path(plan.data_root).is_dir():
        what = "no folder" if Path(plan.data_root).exists() else "not there"
        raise UserError(f"the folder {plan.data_root} given as DATA is {what}")
    to_do = _to_read(plan)
    if plan.generated_data_dir or not to_do:
        return
    if _lacks_data(plan):
        name = to_do[0].data_config
        raise UserError(f"the data catalog {name!r} needs DATA, the folder with the pictures (--data; for make: DATA=)")
    if absent := _absent(plan):
        rest = plan.restricted_to(lambda run: run.run_id not in absent).cells
        hint = (
            f"; {len(rest)} of {len(plan.cells)} cells need none of it: SKIP_MISSING_DATA=1 (python -m reproduce: "
            "--skip-missing-data) makes them"
        )
        raise UserError(f"DATA misses what the runs read: {_phrases(absent)}{hint if rest else ''}")


def generate(plan: Plan) -> None:
    """Make the pictures that are generated, unless they are there. Raises `UserError` where that fails."""
    if not plan.generated_data_dir:
        return
    command = [sys.executable, "-m", "reproduce.data.prepare.synthetic", "--root", plan.generated_data_dir]
    if subprocess.run(command, check=False).returncode:
        raise UserError(f"the pictures in {plan.generated_data_dir} could not be generated; the lines above say why")


def other_data_roots(plan: Plan) -> str:
    """Return the folders other than DATA that finished runs read, comma-separated: DATA is no part of a run's name."""
    if not plan.data_root:
        return ""
    done = [result for run in plan.runs.values() if (result := run.read_result()) is not None]
    roots = {str(result.get("provenance", {}).get("data_root", "")) for result in done} - {""}
    return ", ".join(sorted(root for root in roots if Path(root).resolve() != Path(plan.data_root).resolve()))


def _lacks_data(plan: Plan) -> bool:
    return not plan.data_root and not plan.generated_data_dir


def _to_read(plan: Plan) -> list[Run]:
    """The runs that are still to read pictures."""
    states = run_states(plan)
    return [run for run in plan.runs.values() if not states[run.run_id].settled and run.kind != "measure"]


def _absent(plan: Plan) -> dict[str, list[str]]:
    """By run, what it would read and is not there."""
    return {run.run_id: absent for run in _to_read(plan) if (absent := missing_data(plan, run))}


def _phrases(absent: dict[str, list[str]]) -> str:
    return "; ".join(dict.fromkeys(what for missing in absent.values() for what in missing))
