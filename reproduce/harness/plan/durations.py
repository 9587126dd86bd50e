"""How long runs take: the seconds to expect of each, and seconds as text."""

from collections.abc import Mapping

from reproduce.harness.plan.model import Plan


def expected_seconds(plan: Plan, recorded: Mapping[str, float]) -> dict[str, float]:
    """Return seconds by `Run.time_key` and by "kind/name": means of the plan's finished runs.

    By "kind/name", a run that is none of these has the mean of other networks, or else the `recorded` time.
    The recorded times are those of the scale's own images, of which other data may have a hundred times as many.
    """
    times: dict[str, list[float]] = {}
    for run in plan.runs.values():
        if result := run.read_result():
            for key in {run.time_key, f"{run.kind}/{run.name}"}:
                times.setdefault(key, []).append(float(result.get("wall_seconds", 0)))
    known = dict(recorded) if plan.uses_reference_data else {}
    return known | {key: sum(found) / len(found) for key, found in times.items()}


def cores_in_words(cores: int) -> str:
    """Return a number of cores with its noun: 1 core, 2 cores."""
    return f"{cores} core{'s' if cores != 1 else ''}"


def format_duration(seconds: float) -> str:
    """Return seconds as a clock shows them: 42 s, 3 min 05 s, 7 h 20 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
