"""Whether runs took their recorded first steps (`spec.golden`): the recipe itself, whatever accuracy came of it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from reproduce.harness.plan.model import Plan
from reproduce.harness.plan.run_state import valid_result
from reproduce.harness.spec import golden
from reproduce.harness.spec.golden import Comparison
from reproduce.harness.verdict import notes
from reproduce.harness.verdict.notes import Note


@dataclass(frozen=True)
class RunSteps:
    """The first steps of one run with a valid result. `comparison` is None if they could not be compared."""

    label: str
    recorded: bool
    comparison: Comparison | None
    input_only: bool = False
    """Whether it ran on a GPU, where only the input and the rates are compared."""

    @property
    def state(self) -> Literal["equal", "different", "not recorded", "not kept", "input equal"]:
        """Whether the run took its recorded first steps, or why that is not known."""
        if not self.recorded:
            return "not recorded"
        if self.comparison is None:
            return "not kept"
        return "different" if self.comparison.differences else "input equal" if self.input_only else "equal"

    @property
    def equal(self) -> bool:
        """Whether the run took its recorded first steps, as far as they do not depend on a trained trunk."""
        return self.state == "equal"

    @property
    def different(self) -> bool:
        """Whether the run took other first steps than recorded."""
        return self.comparison is not None and bool(self.comparison.differences)

    @property
    def not_kept(self) -> bool:
        """Whether first steps are recorded, but the result is of a version that kept none."""
        return self.recorded and self.comparison is None


@dataclass(frozen=True)
class FirstStepsCheck:
    """The first steps of a plan's runs, compared with the recorded ones."""

    plan: Plan
    recorded_any: bool
    """Whether first steps of any run are recorded at the plan's scale."""
    runs: Mapping[str, RunSteps]
    """By run_id, parents first; those with a valid result."""

    @classmethod
    def of_plan(cls, plan: Plan) -> "FirstStepsCheck":
        """Compare every run that has a valid result. Raises `UserError` for a damaged result or recording."""
        recorded = golden.load_runs(plan.request.scale)
        runs = {}
        for run in plan.runs.values():
            if (result := valid_result(plan, run)) is None:
                continue
            expected, values = recorded.get(run.run_id), result.get("first_steps")
            on_gpu = golden.is_of_gpu(result.get("provenance", {}).get("arithmetic") or {})
            if expected and on_gpu:
                expected = golden.free_of_arithmetic(expected)
            comparison = None if expected is None or values is None else golden.compare_recorded(values, expected)
            if comparison and not comparison.num_compared and not comparison.differences:
                expected = comparison = None  # of a GPU, and nothing that is recorded is free of arithmetic
            runs[run.run_id] = RunSteps(run.label, expected is not None, comparison, on_gpu)
        return cls(plan, bool(recorded), runs)

    def notes(self, run_ids: Iterable[str]) -> tuple[Note, ...]:
        """Return what is known of the first steps of runs and of those that they build on; nothing without a result."""
        if not self.recorded_any:
            return (notes.NoRecordedFirstSteps(self.plan.request.scale),)
        behind = self._behind(run_ids)
        if differences := self.differences(run_ids):
            return differences
        equal = [run.comparison for run in behind if run.equal]
        if len(equal) < len(behind):
            not_recorded = tuple(run.label for run in behind if not run.recorded)
            not_kept = tuple(run.label for run in behind if run.not_kept)
            input_only = tuple(run.label for run in behind if run.state == "input equal")
            return (notes.FirstStepsNotCompared(not_recorded, not_kept, len(equal), input_only),)
        num_numbers = sum(comparison.num_compared for comparison in equal if comparison)
        return (notes.SameFirstSteps(len(equal), num_numbers),) if equal else ()

    def differences(self, run_ids: Iterable[str]) -> tuple[Note, ...]:
        """Return a note if one of the runs, or one that they build on, took other first steps than recorded.

        It quotes the first of them: a pretraining rather than its evaluation.
        """
        changed = [(run.label, run.comparison.differences) for run in self._behind(run_ids) if run.comparison]
        changed = [(label, differences) for label, differences in changed if differences]
        if not changed:
            return ()
        (label, differences), *others = changed
        return (notes.OtherFirstSteps(label, differences[0], len(differences), tuple(other for other, _ in others)),)

    def in_words(self) -> str:
        """Return how many runs took their recorded first steps; "" if no run has a result."""
        if not self.runs:
            return ""
        if not self.recorded_any:
            return f"no first steps of runs are recorded at scale {self.plan.request.scale}"
        runs = self.runs.values()
        parts = [f"{sum(run.equal for run in runs)} of {len(runs)} runs take their recorded first steps"]
        if changed := [run.label for run in runs if run.different]:
            parts.append(f"different: {len(changed)} ({'; '.join(changed)})")
        if num_input := sum(run.state == "input equal" for run in runs):
            parts.append(f"on a GPU, where only input and rates are compared: {num_input}")
        if num_unknown := sum(not run.recorded for run in runs):
            parts.append(f"not recorded: {num_unknown}")
        if num_not_kept := sum(run.not_kept for run in runs):
            parts.append(f"results from before first steps were kept: {num_not_kept}")
        return "; ".join(parts)

    def _behind(self, run_ids: Iterable[str]) -> list[RunSteps]:
        wanted = {behind for run_id in run_ids for behind in self.plan.behind(run_id)}
        return [run for run_id, run in self.runs.items() if run_id in wanted]
