"""What runs have left behind: results, failures, and whether a run still has to be done."""

import json
import math
import os
import re
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

from reproduce.errors import UserError
from reproduce.files import read_json
from reproduce.harness.plan.build import for_seeds
from reproduce.harness.plan.model import Plan, Run

ENDINGS = ("result.json", "failure.json")
RUN_ID = re.compile(r"(?P<name>.+)-s(?P<seed>\d+)-[0-9a-f]{10}")


class State(StrEnum):
    """What is left to do for a run."""

    DONE = "done"
    TO_DO = "to do"
    FAILED = "failed before"
    COLLAPSED = "collapsed, as printed"
    """A training that the paper says fails, and what would be measured on it: nothing is left to do."""

    @property
    def settled(self) -> bool:
        """Whether nothing is left to do."""
        return self in (State.DONE, State.COLLAPSED)


def read(run: Run) -> dict[str, Any] | None:
    """A run's result, or None where there is none yet. Raises `UserError` as `load` does."""
    return load(run.result, run.run_id) if run.result.exists() else None


def load(path: Path, run_id: str) -> dict[str, Any]:
    """The result in a file. Raises `UserError` for a cut one, one of another run, or one that no run has written."""
    result = read_json(path)
    if not isinstance(result, dict) or result.get("run_id") != run_id:
        raise UserError(f"{path} is not the result of {run_id}; delete it and run the same command again")
    if wrong := next(_strange(result), None):
        raise UserError(f"{path} is damaged ({wrong}); delete it and run the same command again")
    return result


def _strange(result: dict[str, Any]) -> Iterator[str]:
    """What of a result is not as runs write it: a sentence each."""
    whole = {"metrics": None, "counts": {}, "provenance": {}, "wall_seconds": None, **result}
    numbers: dict[str, Any] = {
        key: whole[key] for key in ("wall_seconds", "device_hours", "peak_memory_gb") if key in whole
    }
    for section in ("metrics", "counts", "provenance"):
        if not isinstance(whole[section], dict):
            yield f"{section} has no keys"
        elif section != "provenance":
            numbers |= {f"{section}.{name}": value for name, value in whole[section].items()}
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            yield f"{key} is {json.dumps(value)}, not a number"


def in_words(run: Run) -> str:
    """The metrics of a run's result, as "knn20 67.24, knn200 67.22"."""
    result = read(run)
    metrics = result["metrics"] if result else {}
    return ", ".join(f"{name} {value:.2f}" for name, value in metrics.items()) or "no metrics"


def read_failure(run: Run) -> dict[str, Any] | None:
    """How a run failed the last time, or None; see `load_failure`."""
    return load_failure(run.failure)


def load_failure(path: Path) -> dict[str, Any] | None:
    """A failure's file, or None without it. One that cannot be read says so in its message."""
    unknown = {"status": "failed", "exit_status": 1, "message": "it did not say why"}
    try:
        return unknown | json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        return unknown | {"message": f"{path} cannot be read"}


def beyond(plan: Plan) -> Plan | None:
    """The same plan for seeds that were not asked for and left something behind; None where there are none."""
    names = {run.name for run in plan.runs.values()}
    left = {path.parent for folder in _homes(plan) for path in folder.glob("*/*.json") if path.name in ENDINGS}
    strange = [folder.name for folder in left if folder.name not in plan.runs]
    runs = [found for name in strange if (found := RUN_ID.fullmatch(name)) and found["name"] in names]
    seeds = {int(found["seed"]) for found in runs} - set(plan.request.seeds)
    return for_seeds(plan, tuple(sorted(seeds))) if seeds else None


def _homes(plan: Plan) -> set[Path]:
    return {Path(run.folder).parent for run in plan.runs.values()}


def last_progress(run: Run) -> tuple[int, int] | None:
    """`(step, num_steps)` from the end of a run's metrics.jsonl, or None where it tells none."""
    try:
        with open(Path(run.folder) / "metrics.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, 2) - 4096))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            entry = json.loads(line)
            return int(entry["step"]), int(entry["num_steps"])
        except (ValueError, KeyError, TypeError):
            continue
    return None


def curves(path: Path) -> dict[str, list[tuple[float, float]]]:
    """`(step, value)` of everything that a metrics.jsonl tells, by name; what is not finite is passed over."""
    found: dict[str, list[tuple[float, float]]] = {}
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    for line in lines:
        try:
            entry = json.loads(line)
            step = float(entry["step"])
        except (ValueError, KeyError, TypeError):
            continue
        for name, value in entry.items():
            if name not in ("step", "num_steps") and isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(name, []).append((step, float(value)))
    return found


def losses(path: Path) -> list[tuple[float, float]]:
    """`(step, loss)` of a metrics.jsonl; lines that tell no finite loss are passed over."""
    return curves(path).get("loss", [])


def states(plan: Plan) -> dict[str, State]:
    """State of every run, parents first."""
    return {run.run_id: state(plan, run) for run in plan.runs.values()}


def state(plan: Plan, run: Run) -> State:
    """What is left to do for a run: for plan, workflow, check, claims and report alike.

    A run is done again when a run that it builds on is, or was since: what it measured is not the checkpoint that
    stands. That a checkpoint's file is gone takes nothing from results that are there.
    """
    parents = [state(plan, parent) for parent in _parents(plan, run)]
    if State.COLLAPSED in parents or _collapsed_as_printed(plan, run):
        return State.COLLAPSED
    if read(run) is None:
        return State.FAILED if run.failure.exists() else State.TO_DO
    made_again = any(parent != State.DONE for parent in parents) or _of_another_checkpoint(run)
    return State.TO_DO if made_again else State.DONE


def standing(plan: Plan, run: Run) -> dict[str, Any] | None:
    """A run's result if it counts: None where there is none, or where the run is to do again."""
    return read(run) if state(plan, run) == State.DONE else None


def lack(plan: Plan, run: Run) -> str:
    """A run without a result that counts in words, and, where one is there, why it does not count."""
    if read(run) is None or state(plan, run) == State.DONE:
        return run.label
    lacking = [parent.label for parent in _parents(plan, run) if read(parent) is None]
    again = f"make reproduce-... (python -m reproduce run) makes {'both' if lacking else 'it'} again"
    if not lacking:
        return f"{run.label} (the result there is of a checkpoint that was made again since; {again})"
    return (
        f"{run.label} (the result there is of a checkpoint of {lacking[0]}, whose own result is not here; {again}, or "
        "copy that result.json, too: the checkpoint may stay behind)"
    )


def _parents(plan: Plan, run: Run) -> list[Run]:
    return [plan.runs[name] for name in run.parents if name in plan.runs]


def _of_another_checkpoint(run: Run) -> bool:
    """Whether a result is of a checkpoint that was made again since, as far as results tell.

    They quote the checkpoint's SHA-256; older ones of pretrainings do not, and there the later one counts. Files' times
    say nothing: a copy does not keep them.
    """
    own = read_json(run.result)
    for name in run.parents or own.get("parents", []):
        path = Path(run.folder).with_name(name) / "result.json"
        parent = read_json(path) if path.exists() else {}
        stands, measured = (each.get("provenance", {}).get("checkpoint_sha256") for each in (parent, own))
        made, judged = (str(each.get("finished") or "") for each in (parent, own))
        if stands and measured:
            if stands != measured:
                return True
        elif made and judged and made > judged:
            return True
    return False


def order_files(plan: Plan) -> None:
    """Let files say what `states` does, before Snakemake goes by them: it redoes what is older than its parent.

    What stands gets its parent's time where it is older; what is to do again for a parent that stands is removed, as
    Snakemake itself would do.
    """
    for run in plan.runs.values():
        parents = _parents(plan, run)
        if not run.result.exists() or any(state(plan, parent) != State.DONE for parent in parents):
            continue
        if state(plan, run) == State.TO_DO:
            run.result.unlink()
        else:
            newest = max([run.result, *(parent.result for parent in parents)], key=lambda path: path.stat().st_mtime)
            os.utime(run.result, ns=(newest.stat().st_atime_ns, newest.stat().st_mtime_ns))


def _collapsed_as_printed(plan: Plan, run: Run) -> bool:
    if run.result.exists() or not run.failure.exists() or not plan.should_fail(run):
        return False
    failure = read_failure(run)
    return failure is not None and failure["status"] == "collapsed"


def data_elsewhere(plan: Plan) -> str:
    """Another folder than DATA that finished runs read their pictures from ("" for none): DATA names no run."""
    if not plan.data:
        return ""
    done = [result for run in plan.runs.values() if (result := read(run)) is not None]
    roots = {str(result.get("provenance", {}).get("data_root", "")) for result in done} - {""}
    return ", ".join(sorted(root for root in roots if Path(root).resolve() != Path(plan.data).resolve()))
