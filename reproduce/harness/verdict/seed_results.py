"""What the runs of a cell gave, seed by seed: numbers, failures, missing results."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from reproduce.errors import UserError
from reproduce.harness.plan.build import plan_for_other_seeds
from reproduce.harness.plan.model import Cell, Plan, Run
from reproduce.harness.plan.run_state import missing_reason, valid_result
from reproduce.harness.spec import baseline
from reproduce.harness.spec.baseline import RecordedNumbers
from reproduce.harness.spec.tables import Table
from reproduce.harness.verdict import stats
from reproduce.harness.verdict.earlier import EarlierTables
from reproduce.harness.verdict.family import Family
from reproduce.harness.verdict.first_steps import FirstStepsCheck
from reproduce.harness.verdict.notes import BestVariant, RunFailure


@dataclass(frozen=True)
class SeedResults:
    """What a cell's runs gave, by seed; a seed is in exactly one of values, collapsed, failed, unavailable, missing."""

    values: dict[int, float] = field(default_factory=dict)
    collapsed: dict[int, RunFailure] = field(default_factory=dict)
    failed: dict[int, RunFailure] = field(default_factory=dict)
    unavailable: dict[int, RunFailure] = field(default_factory=dict)
    """Seeds whose public weights are no longer at their URL."""
    missing: dict[int, str] = field(default_factory=dict)
    """The run without a valid result, in words."""
    other_seeds: dict[int, float] = field(default_factory=dict)
    """Results of seeds that were not requested and are not in `values`."""
    num_test_images: int | None = None
    pretrainings: dict[int, str] = field(default_factory=dict)
    """By seed, the run_id that trained the network; empty for public weights and measurements."""
    runs: dict[int, Run] = field(default_factory=dict)
    """The runs behind these entries by seed, requested ones first; if several variants compete, those of the best."""
    choice: BestVariant | None = None
    """How the variant was chosen, if several compete."""

    @property
    def independent(self) -> list[float]:
        """Return the values that count as seeds: one for each training that could have given another number.

        Several finetunings of one pretraining count once, as their mean. Runs without a pretraining of ours that all
        give the same number count once too: they draw nothing.
        """
        by_network: dict[str | int, list[float]] = {}
        for seed, value in self.values.items():
            by_network.setdefault(self.pretrainings.get(seed, seed), []).append(value)
        values = [stats.mean(each) for each in by_network.values()]
        nothing_drawn = not self.pretrainings and len(set(values)) == 1
        return values[:1] if nothing_drawn else values

    @property
    def without_spread(self) -> bool:
        """Whether several independent numbers are equal to the last digit, which trainings with seeds never are."""
        return len(self.independent) > 1 and len(set(self.independent)) == 1

    @property
    def test_set_error(self) -> float:
        """Return the binomial standard error of a finite test set, in points; 0 if its size is unknown.

        (Mean average precision is no share of hits; there it is a rough stand-in of the right size.)
        """
        if not self.num_test_images:
            return 0.0
        return stats.binomial_se(stats.mean(list(self.values.values())), self.num_test_images)


@dataclass(frozen=True)
class VerdictInputs:
    """What a check judges by: a plan, the plan of other seeds that left results, recorded numbers and first steps."""

    plan: Plan
    recorded: RecordedNumbers
    family: Family
    """All that the check compares with recorded numbers."""
    other_seeds: Plan | None
    first_steps: FirstStepsCheck
    earlier: EarlierTables
    """The tables as they were when the results were made."""

    @classmethod
    def load(cls, plan: Plan) -> "VerdictInputs":
        """Read what is recorded, and find the seeds that the plan leaves out."""
        recorded = baseline.load(plan.request.scale)
        family = Family.of_plan(plan, recorded)
        return cls(
            plan, recorded, family, plan_for_other_seeds(plan), FirstStepsCheck.of_plan(plan), EarlierTables(plan)
        )

    def cell(self, table: Table, row: str, column: str) -> Cell | None:
        """Return how a number is made, or None if no run of ours makes it."""
        return next((cell for cell in self.plan.cells if cell.table_key == f"{table.table}/{row}/{column}"), None)

    def seed_results(self, cell: Cell) -> SeedResults:
        """Return what a cell's runs gave.

        Every seed that left a result or a failure counts, so that nobody can choose among seeds by requesting fewer.
        Only numbers that are compared with recorded ones are those of the requested seeds alone: a recording leaves
        results of many seeds, which are of the recorded code and would hide what has changed. Failures always count.
        """
        same_cell = _find_same(self.other_seeds, cell) if self.other_seeds else None
        if not self.other_seeds or not same_cell:
            return read_seed_results(self.plan, cell)
        table = self.plan.tables.get(cell.table)
        found = read_seed_results(self.plan, cell, self.other_seeds, same_cell)
        if table is None or table.expected == "printed":
            return found
        others = {seed: value for seed, value in found.values.items() if seed not in cell.runs}
        asked = {seed: value for seed, value in found.values.items() if seed in cell.runs}
        runs = {seed: run for seed, run in found.runs.items() if seed not in others}
        return replace(found, values=asked, other_seeds=others, runs=runs)


@dataclass(frozen=True)
class RecordedInputs:
    """In place of `VerdictInputs`: the recorded numbers, whose runs may have been done anywhere."""

    plan: Plan
    recorded: RecordedNumbers
    first_steps: FirstStepsCheck
    """Of no run: those that were recorded left no results here."""

    @classmethod
    def load(cls, plan: Plan) -> "RecordedInputs":
        """Read what is recorded at the plan's scale."""
        return cls(plan, baseline.load(plan.request.scale), FirstStepsCheck(plan, False, {}))

    def seed_results(self, cell: Cell) -> SeedResults:
        """Return a cell's recorded numbers; every seed is missing if there are none, or only of another config."""
        known, seeds = self.recorded.cells.get(cell.metric_key), self.recorded.header["seeds"]
        if known is None or known.run_id != cell.runs[seeds[0]] or len(known.values) != len(seeds):
            return SeedResults(missing=dict.fromkeys(seeds, f"no number of {cell.metric_key} is recorded"))
        parents = {seed: parent for seed in seeds for parent in self.plan.runs[cell.runs[seed]].parents}
        values = dict(zip(seeds, known.values, strict=True))
        return SeedResults(values, num_test_images=known.num_test_images, pretrainings=parents)


@dataclass(frozen=True)
class _SeedRun:
    """The run of one seed and its plan."""

    plan: Plan
    run: Run
    requested: bool = True


def read_seed_results(
    plan: Plan, cell: Cell, other_seeds: Plan | None = None, same_cell: Cell | None = None
) -> SeedResults:
    """Read the results of a cell's runs; of several variants, those with the highest mean of `cell.selection_metric`.

    The seeds of `same_cell`, the cell in the plan of `other_seeds`, count too if they ended. If a variant lacks a
    result, return that variant: there is nothing to choose by yet. Raises `UserError` for a damaged result and for one
    without the metric.
    """
    variants = {
        variant: {seed: _SeedRun(plan, plan.runs[name]) for seed, name in runs.items()}
        for variant, runs in _runs_by_variant(cell).items()
    }
    if other_seeds and same_cell:
        others = _runs_by_variant(same_cell)
        of_variants = [{seed for seed, name in runs.items() if _ended(other_seeds, name)} for runs in others.values()]
        ended = set.intersection(*of_variants)
        for variant, runs in others.items():
            more = {seed: _SeedRun(other_seeds, other_seeds.runs[runs[seed]], False) for seed in sorted(ended)}
            variants[variant] |= more
    if not cell.runs_by_override:
        return _read_variant(variants[""], cell.metric)
    found = {variant: _read_variant(runs, cell.selection_metric) for variant, runs in variants.items()}
    incomplete = [each for each in found.values() if len(each.values) < len(each.runs)]
    if incomplete:
        return min(incomplete, key=lambda each: len(each.missing))  # a failure before what is only missing
    means = {variant: stats.mean(list(each.values.values())) for variant, each in found.items()}
    best = max(means, key=lambda variant: means[variant])
    choice = BestVariant(tuple(means.items()), cell.selection_metric, best)
    return replace(_read_variant(variants[best], cell.metric), choice=choice)


def _runs_by_variant(cell: Cell) -> dict[str, dict[int, str]]:
    return cell.runs_by_override or {"": cell.runs}


def _ended(plan: Plan, run_id: str) -> bool:
    run = plan.runs[run_id]
    return valid_result(plan, run) is not None or _failure(plan, run) is not None


def _find_same(plan: Plan, cell: Cell) -> Cell | None:
    """Return the cell that measures the same in a plan of other seeds; a claim may compare several of one network."""
    wanted = (cell.table_key, cell.metric_key)
    return next((each for each in plan.cells if (each.table_key, each.metric_key) == wanted), None)


def _read_variant(runs: Mapping[int, _SeedRun], metric: str) -> SeedResults:
    values: dict[int, float] = {}
    collapsed: dict[int, RunFailure] = {}
    failed: dict[int, RunFailure] = {}
    unavailable: dict[int, RunFailure] = {}
    missing: dict[int, str] = {}
    checkpoints: dict[str, Run] = {}
    num_test_images = None
    for seed, each in runs.items():
        plan, run = each.plan, each.run
        if failure := _failure(plan, run):
            by_status = {"collapsed": collapsed, "unavailable": unavailable}
            by_status.get(failure.status, failed)[seed] = replace(failure, requested=each.requested)
        elif (result := valid_result(plan, run)) is None:
            missing[seed] = missing_reason(plan, run)
        else:
            values[seed] = _metric(run, result, metric)
            _require_own_training(run, result, checkpoints)
            num_test_images = result.get("counts", {}).get("num_test_images")
    return SeedResults(
        values,
        collapsed,
        failed,
        unavailable,
        missing=missing,
        num_test_images=num_test_images,
        pretrainings={seed: parent for seed, each in runs.items() for parent in each.run.parents},
        runs={seed: each.run for seed, each in runs.items()},
    )


def _require_own_training(run: Run, result: dict[str, Any], checkpoints: dict[str, Run]) -> None:
    """Raise `UserError` if the training behind a seed is that of another one: copied, it would look like certainty.

    `checkpoints` has the runs seen so far, by the hash of the checkpoint that they evaluated.
    """
    digest = result.get("provenance", {}).get("checkpoint_sha256")
    if not digest or not run.parents:
        return
    other = checkpoints.setdefault(digest, run)
    if other.parents != run.parents:
        raise UserError(
            f"{other.label} and {run.label} evaluated one and the same checkpoint (SHA-256 {digest[:12]}...), so they "
            f"are no two trainings: delete {Path(run.folder).with_name(run.parents[0])} and {run.folder} if they are "
            "the copies, and run the same command again"
        )


def _failure(plan: Plan, run: Run) -> RunFailure | None:
    """Return why a run has no result, if it or its pretraining failed."""
    for each in (*(plan.runs[name] for name in run.parents), run):
        if not each.result.exists() and (failure := each.read_failure()):
            patience = _patience_epochs(tuple(each.overrides)) if _has_collapsed(each, failure) else None
            return RunFailure(each.label, failure["status"], failure["message"], patience_epochs=patience)
    return None


def _has_collapsed(run: Run, failure: Mapping[str, Any]) -> bool:
    return run.kind == "pretrain" and failure["status"] == "collapsed"


@cache
def _patience_epochs(overrides: tuple[str, ...]) -> float:
    """Return the patience of a pretraining's collapse detector. The run's name is made from its config, this too."""
    from reproduce.config.compose import compose  # which imports Hydra

    return float(compose("pretrain", list(overrides)).collapse.patience_epochs)


def _metric(run: Run, result: dict[str, Any], name: str) -> float:
    try:
        return float(result["metrics"][name])
    except KeyError as error:
        raise UserError(
            f"{run.result} has no metric {name!r}, only {', '.join(result['metrics'])}. Correct the table's column, "
            "or, if the evaluation reports it by now, delete that file and run the same command again."
        ) from error
