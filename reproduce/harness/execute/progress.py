"""Follow the runs of a plan by their events: what runs, what is done, and how long the rest will take."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reproduce.harness import results
from reproduce.harness.plan.durations import format_duration
from reproduce.harness.plan.model import Plan, Run
from reproduce.harness.plan.run_state import RunState


@dataclass
class Progress:
    """The progress of a plan's runs. `expected` is what `durations.expected_seconds` returns."""

    plan: Plan
    cores: int
    expected: Mapping[str, float]
    states: dict[str, RunState]
    started: dict[str, float] = field(default_factory=dict)
    first_step: dict[str, int] = field(default_factory=dict)
    """The step from which a run was started or resumed, by run_id."""
    failed: set[str] = field(default_factory=set)
    observed: list[tuple[float, float]] = field(default_factory=list)
    """(expected, actual) seconds of the runs that ended."""

    def update(self, event: Mapping[str, Any]) -> str | None:
        """Take in an event; return the line to print for it, if any."""
        run = self.plan.runs[event["run_id"]]
        if event["event"] == "wait":
            return f"waiting for another process that runs {run.label}"
        if event["event"] == "start":
            again = event["attempt"] > 1 or run.run_id in self.first_step  # a job that was requeued is one attempt
            self.started[run.run_id] = event["time"]
            self.first_step[run.run_id] = (results.last_progress(Path(run.folder)) or (0, 0))[0]
            return f"{'again' if again else 'start'}   {run.label}"
        if event["event"] == "requeue":
            return f"again   {run.label}: it was preempted, and resumes from its checkpoint"
        began = self.started.pop(run.run_id, event["time"])
        seconds = event["time"] - began
        if event["event"] == "stop":
            return f"stopped {run.label}"
        if event["exit_status"] == 0:
            if expected := self.expected_seconds(run):
                self.observed.append((expected, seconds))
            self.states[run.run_id] = RunState.DONE
            self.failed.discard(run.run_id)
            return f"done    {run.label}: {run.metrics_text()} ({format_duration(seconds)})"
        self.failed.add(run.run_id)
        failure = run.read_failure() or {"status": "failed", "message": f"exit status {event['exit_status']}"}
        return f"{failure['status']:7} {run.label}: {failure['message']}\n        log: {run.log}"

    def remaining_runs(self) -> list[Run]:
        """Return the runs that are not done and can still be: no parent has failed."""
        hopeless = set(self.failed - set(self.started))
        for run in self.plan.runs.values():
            if hopeless & set(run.parents):
                hopeless.add(run.run_id)
        return [
            run for run in self.plan.runs.values() if not self.states[run.run_id].settled and run.run_id not in hopeless
        ]

    def status(self, now: float) -> str:
        """Return one line: how many runs are done, what runs and how far it is, the time left."""
        done = sum(state.settled for state in self.states.values())
        parts = [f"{done}/{len(self.plan.runs)} done"]
        parts += [f"{len(self.failed)} failed"] if self.failed else []
        parts += [self._running(self.plan.runs[name]) for name in self.started]
        seconds = self.seconds_left(now)
        at_least = self.seconds_left(now, unknown=0.0) if seconds is None else None
        parts += [f"about {format_duration(seconds)} to go"] if seconds else []
        parts += [f"at least {format_duration(at_least)} to go"] if at_least else []
        return " | ".join(parts)

    def seconds_left(self, now: float, unknown: float | None = None) -> float | None:
        """Return the time until the last run ends, by scheduling the rest.

        A run whose time nobody knows counts as `unknown` seconds; None if that is None.
        """
        left = self.remaining_runs()
        remaining = {}
        for run in left:
            seconds = self._remaining(run, now)
            seconds = unknown if seconds is None else seconds
            if seconds is None:
                return None
            remaining[run.run_id] = seconds
        return schedule(left, remaining, self.cores, first=set(self.started))

    def expected_seconds(self, run: Run) -> float | None:
        """Return the seconds that a run should take: its own time, its name's, or the mean of all evaluations."""
        for key in (run.time_key, f"{run.kind}/{run.name}"):
            if (known := self.expected.get(key)) is not None:
                return known
        evaluations = [seconds for key, seconds in self.expected.items() if key.startswith("evaluate/")]
        return sum(evaluations) / len(evaluations) if evaluations and run.kind == "evaluate" else None

    def _remaining(self, run: Run, now: float) -> float | None:
        elapsed = now - self.started.get(run.run_id, now)
        reached = results.last_progress(Path(run.folder)) if run.run_id in self.started else None
        if reached:
            step, num_steps = reached
            first = self.first_step[run.run_id] if self.first_step[run.run_id] <= step else 0
            if step > first and elapsed > 5:
                return elapsed * (num_steps - step) / (step - first)
        expected = self.expected_seconds(run)
        if expected is None:
            return None
        pace = sum(actual for _, actual in self.observed) / max(sum(expected for expected, _ in self.observed), 1e-9)
        return max(expected * (pace if self.observed else 1.0) - elapsed, 0.0)

    def _running(self, run: Run) -> str:
        reached = results.last_progress(Path(run.folder))
        return f"{run.label} (step {reached[0]}/{reached[1]})" if reached else run.label


def schedule(runs: list[Run], seconds: Mapping[str, float], cores: int, first: set[str]) -> float:
    """Return when the last of `runs` ends, if each starts as soon as its parents are done and cores are free."""
    waiting = sorted(runs, key=lambda run: run.run_id not in first)
    ends: dict[str, float] = {}
    busy: list[tuple[float, int]] = []
    now = 0.0
    unfinished = {run.run_id for run in runs}
    while waiting:
        free = cores - sum(used for end, used in busy if end > now)
        for run in list(waiting):
            ready = all(ends.get(name, float("inf")) <= now for name in run.parents if name in unfinished)
            need = min(run.cores, cores)
            if ready and need <= free:
                ends[run.run_id] = now + seconds[run.run_id]
                busy.append((ends[run.run_id], need))
                free -= need
                waiting.remove(run)
        later = [end for end, _ in busy if end > now]
        if waiting and not later:
            if any(end == now for end in ends.values()):
                continue  # runs of zero seconds have just freed their cores
            break
        now = min(later, default=now)
    return max(ends.values(), default=0.0)
