"""Record the first steps of a scale's recipes with tolerances measured here, and try them under other arithmetic."""

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reproduce.errors import UserError
from reproduce.files import write_atomic
from reproduce.harness import revision
from reproduce.harness.preflight.rehearsals import Rehearsal, rehearsals
from reproduce.harness.preflight.run import generate_images, run_rehearsals
from reproduce.harness.preflight.tolerances import HELD_OUT, SETTINGS, Setting, measured
from reproduce.harness.spec import golden
from reproduce.harness.spec.golden import Golden, GoldenFile, Values
from reproduce.system import cpu_flags, cpu_name


def record(scale: str, num_processes: int, overrides: Sequence[str], say: Callable[[str], None]) -> Path:
    """Record the first steps of a scale; return the file.

    Raises `UserError` if a rehearsal fails. `overrides` are those of the config that the file is for (`precision=`).
    """
    observed: dict[str, list[Values]] = {}
    last: Mapping[str, Any] = {}
    settings = _possible(SETTINGS)
    planned = rehearsals(scale, generate_images(scale), overrides)
    for setting in settings:
        last = _run(planned, setting, scale, num_processes)
        for name, content in last.items():
            observed.setdefault(name, []).append(content["values"])
        say(f"{setting.name}: {len(last)} rehearsals")
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
    found = measured(observed)
    content = GoldenFile(
        recorded,
        {each.name: Golden(each.recipes, each.overrides, *found[each.name]) for each in planned if each.name in found},
    )
    recorded["held_out"] = {
        setting.name: _try(content, _run(planned, setting, scale, num_processes), say)
        for setting in _possible(HELD_OUT)
    }
    return write(scale, content)


def write(scale: str, content: GoldenFile) -> Path:
    """Write a scale's first steps, a line for each quantity, so that a change is one line of a diff."""
    lines = [f' "recorded": {json.dumps(content.recorded)},', ' "rehearsals": {']
    for number, (name, each) in enumerate(content.rehearsals.items(), start=1):
        lines.append(f'  {json.dumps(name)}: {{"recipes": {json.dumps(each.recipes)},')
        lines.append(f'   "overrides": {json.dumps(each.overrides)},')
        for key, close in (("values", ","), ("tolerances", "}" + "," * (number < len(content.rehearsals)))):
            series = [
                f"    {json.dumps(quantity)}: {_compact(each_of)}" for quantity, each_of in asdict(each)[key].items()
            ]
            lines.append(f'   "{key}": {{\n' + ",\n".join(series) + f"}}{close}")
    target = golden.path(scale)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, "{\n" + "\n".join(lines) + "\n }\n}\n")
    return target


def _compact(series: Sequence[float | None]) -> str:
    """Return a series as JSON; repeated numbers are written in full, whole ones without a point."""
    return json.dumps(
        [int(each) if each is not None and each.is_integer() else each for each in series], separators=(",", ":")
    )


def _possible(settings: Sequence[Setting]) -> list[Setting]:
    """Return the settings that this processor has."""
    flags = cpu_flags()
    return [setting for setting in settings if not setting.needs or setting.needs in flags]


def _run(planned: Sequence[Rehearsal], setting: Setting, scale: str, num_processes: int) -> Mapping[str, Any]:
    with_threads = [
        each if each.kind == "schedule" else replace(each, config=_with_threads(each.config, setting.num_threads))
        for each in planned
    ]
    folder = Path(".cache", "rehearsals", f"record-{scale}", setting.name.replace(" ", "-"))
    found = run_rehearsals(with_threads, folder, max(1, num_processes // setting.num_threads), setting.environment)
    if failed := [f"{name}: {content['error']}" for name, content in found.items() if "error" in content]:
        raise UserError(f"{len(failed)} rehearsals failed under {setting.name}; the first: {failed[0]}")
    return found


def _with_threads(config: Mapping[str, Any], num_threads: int) -> dict[str, Any]:
    return {**config, "cluster": {**config["cluster"], "num_threads": num_threads}}


def _try(content: GoldenFile, found: Mapping[str, Any], say: Callable[[str], None]) -> dict[str, int]:
    """Count the rehearsals that were compared, and those with a number outside its tolerance."""
    flagged = 0
    for name, result in found.items():
        differences = golden.compare(result["values"], content.rehearsals[name]).differences
        if differences:
            flagged += 1
            say(f"outside its tolerance under held-out arithmetic: {name}: {differences[0]}")
    return {"rehearsals": len(found), "flagged": flagged}
