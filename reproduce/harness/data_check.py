"""Check that the data of a plan is there before any run starts, or generate it."""

import subprocess
import sys
from pathlib import Path

from reproduce.errors import UserError
from reproduce.harness.plan.data_requirements import missing_data
from reproduce.harness.plan.model import Plan, Run
from reproduce.harness.plan.run_state import run_states


def runnable_part(plan: Plan, skip_missing_data: bool) -> tuple[Plan, str]:
    """Return the part of a plan that can run with the data that is there, and why it is a part ("" if it is all)."""
    if _needs_data_flag(plan):
        return plan.restricted_to(lambda run: run.kind == "measure"), "no DATA is given"
    if not skip_missing_data or plan.generated_data_dir or not Path(plan.data_root).is_dir():
        return plan, ""
    missing = _missing_by_run(plan)
    return plan.restricted_to(lambda run: run.run_id not in missing), f"DATA misses {_phrases(missing)}"


def check_data(plan: Plan) -> None:
    """Raise `UserError` if data that the runs need is missing, before any of them starts."""
    if plan.request.data and not plan.generated_data_dir and not Path(plan.data_root).is_dir():
        what = "no folder" if Path(plan.data_root).exists() else "not there"
        raise UserError(f"the folder {plan.data_root} given as DATA is {what}")
    to_do = _runs_to_read(plan)
    if plan.generated_data_dir or not to_do:
        return
    if _needs_data_flag(plan):
        name = to_do[0].data_config
        raise UserError(f"the data config {name!r} needs DATA, the folder with the images (--data; for make: DATA=)")
    if missing := _missing_by_run(plan):
        rest = plan.restricted_to(lambda run: run.run_id not in missing).cells
        hint = (
            f"; {len(rest)} of {len(plan.cells)} cells need none of it: SKIP_MISSING_DATA=1 (python -m reproduce: "
            "--skip-missing-data) makes them"
        )
        raise UserError(f"DATA misses what the runs read: {_phrases(missing)}{hint if rest else ''}")


def generate_images(plan: Plan) -> None:
    """Generate the images of a plan that reads generated ones, unless they are there. Raises `UserError` on failure."""
    if not plan.generated_data_dir:
        return
    command = [sys.executable, "-m", "reproduce.data.prepare.synthetic", "--root", plan.generated_data_dir]
    if subprocess.run(command, check=False).returncode:
        raise UserError(f"the images in {plan.generated_data_dir} could not be generated; see the lines above")


def other_data_roots(plan: Plan) -> str:
    """Return the folders other than DATA that finished runs of unknown images read, comma-separated.

    DATA is no part of a run's name. Results say which images they are of, unless an older version wrote them.
    """
    if not plan.data_root:
        return ""
    done = [result for run in plan.runs.values() if (result := run.read_result()) is not None]
    done = [result for result in done if "data_content_sha256" not in result.get("provenance", {})]
    roots = {str(result.get("provenance", {}).get("data_root", "")) for result in done} - {""}
    return ", ".join(sorted(root for root in roots if Path(root).resolve() != Path(plan.data_root).resolve()))


def _needs_data_flag(plan: Plan) -> bool:
    return not plan.data_root and not plan.generated_data_dir


def _runs_to_read(plan: Plan) -> list[Run]:
    """Return the runs that still have to read images."""
    states = run_states(plan)
    return [run for run in plan.runs.values() if not states[run.run_id].settled and run.kind != "measure"]


def _missing_by_run(plan: Plan) -> dict[str, list[str]]:
    """Return what is missing of each run's data, by run_id."""
    return {run.run_id: missing for run in _runs_to_read(plan) if (missing := missing_data(plan, run))}


def _phrases(missing: dict[str, list[str]]) -> str:
    return "; ".join(dict.fromkeys(phrase for phrases in missing.values() for phrase in phrases))
