"""Preflight: rehearse every recipe on this machine and compare its first steps with the recorded ones."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reproduce.errors import UserError
from reproduce.files import file_lock, write_json
from reproduce.harness import revision
from reproduce.harness.execute import gpus, slurm
from reproduce.harness.preflight.rehearsals import (
    FULL_SIZE,
    PROCESSES,
    Rehearsal,
    rehearsals,
    same_for_any_number_of_processes,
)
from reproduce.harness.preflight.run import generate_images, run_rehearsals
from reproduce.harness.spec import golden
from reproduce.harness.spec.golden import Comparison, Golden
from reproduce.harness.spec.preflight_file import preflight_path
from reproduce.system import available_cores

NUM_SHOWN = 3
"""Differences that a line quotes."""
NUM_KEPT = 20
"""Differences of one rehearsal that the result keeps."""
REHEARSED_OTHERWISE = "; rehearsed with other overrides than recorded: record again"
UNKNOWN: dict[str, Any] = {"hardware": "unknown", "packages": {}, "arithmetic": {}, "world_size": 1}
"""Where rehearsals ran of which none ended."""


def preflight(
    scale: str,
    num_processes: int | None,
    precisions: Sequence[str],
    cluster_overrides: Sequence[str],
    log: Callable[[str], None],
) -> bool:
    """Rehearse the recipes of a scale, log one line for each, and write the result; return whether all are equal.

    `precisions` default to those of the scale; what is recorded for others is not compared. `cluster_overrides` say
    where to rehearse, and with `cluster.num_processes` in how many processes each: their numbers are those of one.
    """
    recorded = golden.load(scale)
    preflight_path(scale).unlink(missing_ok=True)  # whatever happens now, the last one is over
    started = time.monotonic()
    planned = rehearsals(scale, generate_images(scale), precisions, cluster_overrides)
    names = {each.name for each in planned}
    cluster = planned[0].config["cluster"]
    num_ranks = cluster["num_processes"]
    if num_ranks not in PROCESSES:
        raise UserError(f"rehearsals run in {' or '.join(map(str, PROCESSES))} processes, not in {num_ranks}")
    if num_ranks > 1:
        planned = same_for_any_number_of_processes(planned)
        left_out = sorted(names - {each.name for each in planned})
        log(f"left out, because they draw at random in each process: {', '.join(left_out)}")
    entries: list[dict[str, Any]] = []

    def judge(rehearsal: Rehearsal, content: Mapping[str, Any]) -> None:
        entries.append(entry := _entry(rehearsal, content, recorded.rehearsals.get(rehearsal.name)))
        if rehearsal.kind != "schedule" or not entry["equal"]:
            log(f"{entry['name']:28} {entry['line']}")

    at_once, python = _placed(cluster, 1 if scale in FULL_SIZE else num_processes)
    folder = Path(".cache", "rehearsals", f"preflight-{scale}")
    with file_lock(folder.with_name(f"{folder.name}.lock"), "another preflight"):
        found = run_rehearsals(planned, folder, at_once, None, num_ranks, python, judge)
    schedules = [entry for entry in entries if entry["kind"] == "schedule"]
    num_equal = sum(entry["equal"] for entry in schedules)
    log(f"{'learning rates of all steps':28} {num_equal} of {len(schedules)} schedules equal")
    rehearsed = {name.rpartition(".")[2] for name in found if "." in name}
    expected = {name for name in recorded.rehearsals if "." not in name or name.rpartition(".")[2] in rehearsed}
    if not_rehearsed := sorted(expected - names):
        log(f"recorded, but of no recipe now: {', '.join(not_rehearsed)}")
    one = next((each for each in found.values() if "hardware" in each), UNKNOWN)
    equal = all(entry["equal"] for entry in entries) and not not_rehearsed
    write_json(
        preflight_path(scale),
        {
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - started, 1),
            "scale": scale,
            "precisions": sorted(rehearsed),
            "equal": equal,
            "commit": revision.commit(),
            "dirty": revision.dirty(),
            "recorded": recorded.recorded,
            **{key: one[key] for key in ("hardware", "packages", "arithmetic", "world_size")},
            "rehearsals": sorted(entries, key=lambda entry: entry["name"]),
            "not_rehearsed": not_rehearsed,
        },
    )
    return equal


def _placed(cluster: Mapping[str, Any], num_processes: int | None) -> tuple[int, list[str]]:
    """Return how many processes to start, and the command that starts Python where the config says.

    Under SLURM, one command starts all of them. On GPUs one process does all, which takes a second or two for each.
    Raises `UserError` if SLURM does not answer, and for Kubernetes.
    """
    num_ranks, on_gpus = cluster["num_processes"], cluster["gpus_per_process"] or gpus.visible_gpus()
    if cluster["executor"] == "slurm":
        slurm.check_available()
        num_tasks = 1 if num_ranks > 1 or cluster["gpus_per_process"] else num_processes or 1
        return 1, slurm.command_of_tasks(cluster, num_tasks)
    if cluster["executor"] == "kubernetes":
        raise UserError(
            "preflight runs here or under SLURM; on Kubernetes start it in the image, in a pod like a run's: "
            "python -m reproduce preflight"
        )
    return 1 if on_gpus else max(1, (num_processes or available_cores()) // num_ranks), [sys.executable]


def _entry(rehearsal: Rehearsal, content: Mapping[str, Any], recorded: Golden | None) -> dict[str, Any]:
    """Return what the result keeps of one rehearsal."""
    entry = {
        "name": rehearsal.name,
        "kind": rehearsal.kind,
        "recipes": rehearsal.recipes,
        "equal": False,
        "seconds": round(content["seconds"], 2),
        "num_compared": 0,
        "worst": None,
        "differences": [],
        "num_differences": 0,
    }
    if "error" in content:
        return {**entry, "status": "failed", "line": f"FAILED: {content['error']}"}
    if recorded is None:
        return {**entry, "status": "not recorded", "line": "NOT RECORDED: see make record-golden"}
    if golden.is_of_gpu(content["arithmetic"]) and rehearsal.protocol == "voc_detection":  # which draws proposals there
        comparison = golden.compare_recorded(content["values"], golden.free_of_arithmetic(recorded))
    else:
        comparison = golden.compare(content["values"], recorded)
    return {
        **entry,
        "equal": not comparison.differences,
        "status": "different" if comparison.differences else "equal",
        "line": _line(comparison) + ("" if rehearsal.overrides == recorded.overrides else REHEARSED_OTHERWISE),
        "num_compared": comparison.num_compared,
        "worst": comparison.worst,
        "differences": [
            asdict(each) | {"cause": each.cause, "text": str(each)} for each in comparison.differences[:NUM_KEPT]
        ],
        "num_differences": len(comparison.differences),
    }


def _line(comparison: Comparison) -> str:
    if comparison.differences:
        shown = "; ".join(str(each) for each in comparison.differences[:NUM_SHOWN])
        more = len(comparison.differences) - NUM_SHOWN
        return f"DIFFERENT: {shown}{f'; and {more} more' if more > 0 else ''}"
    if comparison.worst is None:
        return f"equal ({comparison.num_compared} numbers, all exact)"
    quantity, step, relative, share = comparison.worst
    return (
        f"equal ({comparison.num_compared} numbers; the closest to its tolerance: {quantity} at step {step}, "
        f"{relative:.1g} apart, {share:.0%} of it)"
    )
