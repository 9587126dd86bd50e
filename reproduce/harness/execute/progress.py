"""What a person sees while runs go on: what runs, what is done, and how long it will take."""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from reproduce.harness import results
from reproduce.harness.plan.durations import format_duration
from reproduce.harness.plan.model import Plan, Run
from reproduce.harness.plan.run_state import RunState

QUIET_SECONDS = 15
"""Off a terminal, a status line comes this often."""


@dataclass
class Progress:
    """Follows a plan's runs by their events. `expected` is seconds by "kind/name", from earlier runs."""

    plan: Plan
    cores: int
    expected: Mapping[str, float]
    states: dict[str, RunState]
    started: dict[str, float] = field(default_factory=dict)
    first_step: dict[str, int] = field(default_factory=dict)
    """Where a run stood when it was started: one that was stopped goes on from there."""
    failed: set[str] = field(default_factory=set)
    observed: list[tuple[float, float]] = field(default_factory=list)
    """(expected, real) seconds of the runs that ended."""

    def take(self, event: Mapping[str, Any]) -> str | None:
        """Learn of an event; the sentence that it is worth, if any."""
        run = self.plan.runs[event["run_id"]]
        if event["event"] == "wait":
            return f"waiting for another process that is doing {run.label}"
        if event["event"] == "start":
            again = event["attempt"] > 1 or run.run_id in self.first_step  # a job that was requeued is one attempt
            self.started[run.run_id] = event["time"]
            self.first_step[run.run_id] = (results.last_progress(Path(run.folder)) or (0, 0))[0]
            return f"{'again' if again else 'start'}   {run.label}"
        if event["event"] == "requeue":
            return f"again   {run.label}: it was preempted, and goes on from where it saved"
        began = self.started.pop(run.run_id, event["time"])
        seconds = event["time"] - began
        if event["event"] == "stop":
            return f"stopped {run.label}"
        if event["exit_status"] == 0:
            if expected := self.expectation(run):
                self.observed.append((expected, seconds))
            self.states[run.run_id] = RunState.DONE
            self.failed.discard(run.run_id)
            return f"done    {run.label}: {run.metrics_text()} ({format_duration(seconds)})"
        self.failed.add(run.run_id)
        failure = run.read_failure() or {"status": "failed", "message": f"exit status {event['exit_status']}"}
        return f"{failure['status']:7} {run.label}: {failure['message']}\n        log: {run.log}"

    def left(self) -> list[Run]:
        """Runs that are not done, and can still be."""
        hopeless = set(self.failed - set(self.started))
        for run in self.plan.runs.values():
            if hopeless & set(run.parents):
                hopeless.add(run.run_id)
        return [
            run for run in self.plan.runs.values() if not self.states[run.run_id].settled and run.run_id not in hopeless
        ]

    def status(self, now: float) -> str:
        """One line: how many are done, what runs and how far it is, time to go."""
        done = sum(state.settled for state in self.states.values())
        parts = [f"{done}/{len(self.plan.runs)} done"]
        parts += [f"{len(self.failed)} failed"] if self.failed else []
        parts += [self._running(self.plan.runs[name]) for name in self.started]
        seconds = self.seconds_to_go(now)
        parts += [f"about {format_duration(seconds)} to go"] if seconds else []
        return " | ".join(parts)

    def seconds_to_go(self, now: float) -> float | None:
        """Time until the last run ends, by scheduling what is left; None where nothing is known of a run."""
        left = self.left()
        remaining = {}
        for run in left:
            seconds = self._remaining(run, now)
            if seconds is None:
                return None
            remaining[run.run_id] = seconds
        return schedule(left, remaining, self.cores, first=set(self.started))

    def expectation(self, run: Run) -> float | None:
        """Seconds that a run should take: what its name took, or for an evaluation the mean of the others."""
        if (known := self.expected.get(f"{run.kind}/{run.name}")) is not None:
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
        expected = self.expectation(run)
        if expected is None:
            return None
        pace = sum(real for _, real in self.observed) / max(sum(hoped for hoped, _ in self.observed), 1e-9)
        return max(expected * (pace if self.observed else 1.0) - elapsed, 0.0)

    def _running(self, run: Run) -> str:
        reached = results.last_progress(Path(run.folder))
        return f"{run.label} (step {reached[0]}/{reached[1]})" if reached else run.label


def schedule(runs: list[Run], seconds: Mapping[str, float], cores: int, first: set[str]) -> float:
    """When the last of `runs` ends if each starts as soon as its parents are done and cores are free."""
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
                continue  # runs of no length have just made room
            break
        now = min(later, default=now)
    return max(ends.values(), default=0.0)


@dataclass
class Screen:
    """Prints lines, and below them one status line: in place on a terminal, now and then elsewhere."""

    out: TextIO = field(default_factory=lambda: sys.stdout)
    _shown: str = ""
    _at: float = field(default_factory=time.monotonic)

    def line(self, text: str) -> None:
        """A line that stays."""
        self._clear()
        print(text, file=self.out, flush=True)

    def status(self, text: str) -> None:
        """The line that changes."""
        if self.out.isatty():
            width = _columns()
            cut = text if len(text) < width else text[: width - 2] + "…"
            if cut != self._shown:
                self._clear()
                print(cut, end="", file=self.out, flush=True)
                self._shown = cut
        elif text != self._shown and time.monotonic() - self._at >= QUIET_SECONDS:
            print(text, file=self.out, flush=True)
            self._shown, self._at = text, time.monotonic()

    def close(self) -> None:
        """Leave the terminal clean."""
        self._clear()

    def _clear(self) -> None:
        if self._shown and self.out.isatty():
            print("\r\x1b[2K", end="", file=self.out, flush=True)
            self._shown = ""


def _columns() -> int:
    import shutil

    return shutil.get_terminal_size().columns
