"""Record the first steps of a scale's recipes with tolerances measured here, and try them under other arithmetic."""

import hashlib
import json
import platform
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reproduce.config import DETECTORS
from reproduce.errors import UserError
from reproduce.files import read_json, write_atomic, write_json
from reproduce.harness import arithmetics, revision
from reproduce.harness.arithmetics import HELD_OUT, SETTINGS, Setting
from reproduce.harness.preflight.rehearsals import (
    FULL_SIZE,
    HALF_PRECISIONS,
    RECORDED_PRECISIONS,
    Rehearsal,
    rehearsals,
    runs_of_tables,
    same_for_any_number_of_processes,
)
from reproduce.harness.preflight.run import generate_images, run_rehearsals
from reproduce.harness.preflight.tolerances import measured
from reproduce.harness.spec import golden
from reproduce.harness.spec.golden import Golden, GoldenFile, Values
from reproduce.system import cpu_name

NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
"""Environment of all settings: they are arithmetics of a CPU."""
OF_REHEARSALS_ONLY = ("state of", "metric")
"""Beginnings of what a rehearsal has after its last step, which is not that of a run."""


def record(scale: str, num_processes: int, log: Callable[[str], None], only_new: bool = False) -> Path:
    """Record the first steps of a scale; return the file. Raises `UserError` if a rehearsal fails.

    With `only_new`, rehearsals that are recorded are not repeated, and their entries stay as they are.
    After an interruption, or a change of the rule for tolerances, settings that are done are not done again.
    """
    observed: dict[str, list[Values]] = {}
    last: Mapping[str, Any] = {}
    settings, held_out = arithmetics.possible(SETTINGS), arithmetics.possible(HELD_OUT)
    if scale in FULL_SIZE:
        settings, held_out = arithmetics.at_full_size(), []
    planned = rehearsals(scale, generate_images(scale), RECORDED_PRECISIONS[scale])
    runs = runs_of_tables(scale) if scale == "smoke" else []
    planned += runs
    every_name = {each.name for each in planned}
    if only_new:
        planned = _unrecorded(planned, scale)
    for setting in settings:
        last = _run(planned, setting, scale, num_processes)
        for name, content in last.items():
            observed.setdefault(name, []).append(content["values"])
        log(f"{setting.name}: {len(last)} rehearsals")
    one = next(iter(last.values()))
    recorded = {
        "commit": revision.commit(),
        "dirty": revision.dirty(),
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": cpu_name(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": one["packages"],
        "settings": [setting.name for setting in settings],
    }
    # Rates of a whole schedule are computed in double precision.
    precisions = {each.name: each.config.get("precision", "fp64") for each in planned}
    found = measured(observed, precisions)
    all_of = {each.name: _golden(each, *found[each.name]) for each in planned if each.name in found}
    content = _keep_matching_entries(
        GoldenFile(recorded, {name: each for name, each in all_of.items() if each.values}),
        scale,
        every_name if only_new else set(),
    )
    recorded["held_out"] = {
        setting.name: _try(content, _run(planned, setting, scale, num_processes), log) for setting in held_out
    }
    run_ids = {each.name for each in runs}
    of_runs, of_recipes = (
        {name: each for name, each in content.rehearsals.items() if (name in run_ids) == wanted}
        for wanted in (True, False)
    )
    if runs:
        write(golden.runs_path(scale), GoldenFile(recorded, of_runs))
    target = golden.path(scale)
    write(target, GoldenFile(recorded, of_recipes))
    return target


def _golden(rehearsal: Rehearsal, values: dict[str, list[float]], tolerances: dict[str, list[float | None]]) -> Golden:
    """Return what is recorded of a rehearsal.

    Of a table's run, that is what the run will have, too; of a trained trunk's evaluation, what the trunk leaves alone.
    Detectors draw at random, differently on each rank: of their runs, only the input and the rates are recorded.
    """
    recorded = Golden(rehearsal.recipes, rehearsal.overrides, values, tolerances)
    if not rehearsal.of_table:
        return recorded
    if rehearsal.trained_trunk or rehearsal.protocol in DETECTORS:
        return golden.free_of_arithmetic(recorded)
    return recorded.restricted_to(name for name in values if not name.startswith(OF_REHEARSALS_ONLY))


def _unrecorded(planned: list[Rehearsal], scale: str) -> list[Rehearsal]:
    """Return the rehearsals that are not recorded or have changed, after the first, which makes the trunk."""
    known = _entries(scale)
    left = [each for each in planned[1:] if not _is_of(known.get(each.name), each)]
    if not left:
        raise UserError(f"every rehearsal of scale {scale} is recorded: make record-golden repeats all")
    return [planned[0], *left]


def _entries(scale: str) -> dict[str, Golden]:
    recorded = golden.load(scale).rehearsals if golden.path(scale).exists() else {}
    return {**recorded, **golden.load_runs(scale)}


def _is_of(known: Golden | None, asked: Rehearsal | Golden) -> bool:
    return known is not None and (known.recipes, known.overrides) == (asked.recipes, asked.overrides)


def _keep_matching_entries(content: GoldenFile, scale: str, not_repeated: Collection[str] = ()) -> GoldenFile:
    """Keep the earlier entries that this machine's numbers agree with: their tolerances know other arithmetic, too.

    Those that are named as `not_repeated` are kept if they have no numbers of this machine.
    """
    if not golden.path(scale).exists():
        return content
    earlier = golden.load(scale)
    new = content.rehearsals
    kept = {
        name: known
        for name, known in _entries(scale).items()
        if (name in not_repeated and name not in new)
        or (name in new and _is_of(known, new[name]) and not golden.compare(new[name].values, known).differences)
    }
    if kept:
        earlier_header = {key: earlier.recorded[key] for key in ("commit", "date", "hardware", "settings")}
        before = earlier.recorded.get("earlier", [])
        content.recorded["earlier"] = [
            *before,
            {**earlier_header, "entries_that_stand": len(kept), **(_not_tried_again(earlier) if not_repeated else {})},
        ]
    return GoldenFile(content.recorded, {**content.rehearsals, **kept})


def _not_tried_again(earlier: GoldenFile) -> dict[str, Any]:
    return {"repeated": False, "held_out": earlier.recorded.get("held_out", {})}


def write(target: Path, content: GoldenFile) -> None:
    """Write first steps to a file: a line has a quantity's numbers and their tolerances, so that a diff is short."""
    entries = []
    for name, each in content.rehearsals.items():
        lines = [
            f"   {json.dumps(quantity)}: [{_compact(series)},{_compact(each.tolerances[quantity])}]"
            for quantity, series in each.values.items()
        ]
        entries.append(
            f'  {json.dumps(name)}: {{"recipes": {json.dumps(each.recipes)},\n'
            f'   "overrides": {json.dumps(each.overrides)},\n   "steps": {{\n' + ",\n".join(lines) + "}}"
        )
    header = f'{{\n "recorded": {json.dumps(content.recorded)},\n "rehearsals": {{\n'
    write_atomic(target, header + ",\n".join(entries) + "\n }\n}\n")


def _compact(series: Sequence[float | None]) -> str:
    """Return a series as JSON; repeated numbers are written in full, whole ones without a point."""
    return json.dumps(
        [int(each) if each is not None and float(each).is_integer() else each for each in series], separators=(",", ":")
    )


def _run(planned: Sequence[Rehearsal], setting: Setting, scale: str, num_processes: int) -> Mapping[str, Any]:
    """Do the rehearsals under a setting, or return what an earlier recording left of the same ones by the same code."""
    asked = [
        each
        for each in (same_for_any_number_of_processes(planned) if setting.num_ranks > 1 else planned)
        if setting.half_precision or each.config.get("precision") not in HALF_PRECISIONS
    ]
    folder = Path(".cache", "rehearsals", f"record-{scale}", re.sub(r"\W+", "-", setting.name))
    stamp, made_by = folder.with_suffix(".json"), _made_by(asked, setting)
    if not revision.dirty() and stamp.exists() and read_json(stamp) == made_by:
        return {each.name: read_json(folder / f"{each.name}.json") for each in asked[1:]}
    stamp.unlink(missing_ok=True)
    at_once = 1 if scale in FULL_SIZE else max(1, num_processes // setting.num_ranks)
    found = run_rehearsals(asked, folder, at_once, {**NO_GPU, **setting.environment}, setting.num_ranks)
    if failed := [f"{name}: {content['error']}" for name, content in found.items() if "error" in content]:
        raise UserError(f"{len(failed)} rehearsals failed under {setting.name}; the first: {failed[0]}")
    write_json(stamp, made_by)
    return found


def _made_by(asked: Sequence[Rehearsal], setting: Setting) -> dict[str, str]:
    """Return what the rehearsals' numbers depend on: the code that they run, what is asked of them, the processor."""
    requests = json.dumps([each.request() for each in asked], sort_keys=True)
    parts = {"code": revision.run_code_fingerprint(revision.commit()), "requests": requests}
    digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in parts.items()}
    return {**digests, "environment": json.dumps(dict(setting.environment)), "hardware": cpu_name()}


def _try(content: GoldenFile, found: Mapping[str, Any], log: Callable[[str], None]) -> dict[str, int]:
    """Count the rehearsals that were compared, and those with a number outside its tolerance."""
    num_compared = flagged = 0
    for name, result in found.items():
        if name not in content.rehearsals:
            continue
        expected = content.rehearsals[name]
        num_compared += 1
        if differences := golden.compare_recorded(result["values"], expected).differences:
            flagged += 1
            log(f"outside its tolerance under held-out arithmetic: {name}: {differences[0]}")
    return {"rehearsals": num_compared, "flagged": flagged}
