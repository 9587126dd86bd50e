"""Estimate what a plan costs in GPUs, hours and disk; every number says where it comes from."""

import re
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from reproduce.config.schema import ABSENT
from reproduce.harness.plan import build, cost_facts
from reproduce.harness.plan.cost_facts import REFERENCE_CROPS, REFERENCE_GPU, CostFacts, num_pixels, printed_time
from reproduce.harness.plan.data_requirements import DataRequirement, data_requirements
from reproduce.harness.plan.model import Plan, Run
from reproduce.harness.plan.run_state import RunState, run_states
from reproduce.harness.plan.workload import Workload
from reproduce.harness.spec import baseline, tables
from reproduce.harness.spec.paper_data import paper_data_sources

Basis = Literal["measured", "recorded", "published", "estimate", "unknown"]
"""Where hours come from. Measured: finished runs. Recorded: the scale's baseline. Published: the paper or others."""

PIXELS_PX = 224
BYTES_PER_WEIGHT = 8
"""Bytes of a weight in a checkpoint: the weight and its momentum, in fp32."""
GPU_HARDWARE = re.compile(r"(?P<num>\d+) x (?P<name>.+)")
"""The hardware in the result of a run on GPUs. A CPU is followed by its cores instead."""


@dataclass(frozen=True)
class RunCost:
    """The cost of one run. `hours` are wall-clock hours, None if unknown."""

    hours: float | None
    num_gpus: int
    """0 for a run on the CPU."""
    gpu: str
    basis: Basis
    source: str
    disk_gb: float = 0.0

    @property
    def gpu_hours(self) -> float | None:
        """Hours on `gpu` times the number of GPUs; None if unknown."""
        return None if self.hours is None else self.hours * self.num_gpus


@dataclass(frozen=True)
class PlanCost:
    """The cost of a plan by run, with sums over all runs or over those still to do."""

    runs: dict[str, RunCost]
    data: list[DataRequirement]
    states: dict[str, RunState]
    facts: CostFacts
    released: "ReleasedSubset | None" = None
    """What public weights can fill, FROM=released; None if nothing, or if that is the plan itself."""

    def gpu_hours(self, gpu: str, names: Iterable[str]) -> float:
        """Return the summed GPU-hours on one kind of GPU of the runs whose hours and GPU are known."""
        return sum(hours for name in names if (hours := self.hours_on(self.runs[name], gpu)) is not None)

    def hours_on(self, cost: RunCost, gpu: str) -> float | None:
        """Return a run's GPU-hours on another GPU; None if its hours or its GPU's speed are unknown."""
        if cost.gpu_hours is None or (cost.num_gpus and cost.gpu not in self.facts.gpus):
            return None
        speedup = self.facts.gpus[cost.gpu].speedup / self.facts.gpus[gpu].speedup if cost.num_gpus else 0.0
        return cost.gpu_hours * speedup

    def cpu_seconds(self, plan: Plan) -> dict[str, float]:
        """Return the seconds of runs without a GPU whose cost is known, by `Run.time_key`."""
        costs = {run.time_key: self.runs[run.run_id] for run in plan.runs.values()}
        return {key: cost.hours * 3600 for key, cost in costs.items() if cost.hours is not None and not cost.num_gpus}

    @property
    def to_do(self) -> list[str]:
        """The run ids still to do."""
        return [name for name, state in self.states.items() if not state.settled]

    def unpriced(self, names: Iterable[str]) -> list[str]:
        """Return the run ids that the sums leave out."""
        return [name for name in names if self.hours_on(self.runs[name], REFERENCE_GPU) is None]


@dataclass(frozen=True)
class ReleasedSubset:
    """The plan of the same request from public weights, FROM=released, and its cost."""

    plan: Plan
    cost: PlanCost


def plan_cost(plan: Plan) -> PlanCost:
    """Estimate the cost of every run of a plan, from its own results if there are any."""
    facts = cost_facts.load()
    estimator = _Estimator(plan, facts)
    costs = {run.run_id: estimator.run_cost(run) for run in plan.runs.values()}
    return PlanCost(costs, data_requirements(plan, facts.data), estimator.states, facts, _released_subset(plan))


def _released_subset(plan: Plan) -> ReleasedSubset | None:
    if plan.request.scale != "paper" or plan.request.source == "released":
        return None
    released = build.plan_from_released(plan)
    return ReleasedSubset(released, plan_cost(released)) if released.runs else None


class _Estimator:
    def __init__(self, plan: Plan, facts: CostFacts) -> None:
        self.plan, self.facts = plan, facts
        self.states = run_states(plan)
        self.recorded = baseline.load(plan.request.scale)
        self.seconds = self.recorded.wall_seconds if plan.uses_reference_data else {}
        self.done = {run.run_id: result for run in plan.runs.values() if (result := run.read_result())}
        self.paper_tables = {name: tables.load(name, "paper") for name in ("table1", "release_notes")}

    def run_cost(self, run: Run) -> RunCost:
        """Return the measured cost of a run, or else the recorded, published or estimated one.

        A run to do is not priced by a GPU whose speed is unknown, which nothing could be summed with.
        """
        result = self.done.get(run.run_id)
        if result and (self.states[run.run_id].settled or self._is_comparable(result)):
            cost = _measured_cost(result, float(result["wall_seconds"]) / 3600, "this run")
        elif results := self._of_other_seeds(run):
            seconds = statistics.fmean(float(result["wall_seconds"]) for result in results)
            cost = _measured_cost(results[-1], seconds / 3600, "the same run with other seeds")
        elif (seconds := self.seconds.get(f"{run.kind}/{run.name}", 0.0)) > 0:
            machine = self.recorded.header["machine"]
            source = f"beside the scale's numbers, on {machine['cpu']}, {machine['cores']} cores"
            cost = RunCost(seconds / 3600, 0, "", "recorded", source)
        elif run.workload.dataset.get("source") == ABSENT:
            cost = _unknown("its data set is not there")
        elif run.kind == "pretrain":
            cost = self._pretraining(run.workload)
        elif run.kind == "measure":
            cost = RunCost(1 / 60, 0, "", "estimate", "a few steps on noise, on this machine")
        else:
            cost = self._evaluation(run)
        return replace(cost, disk_gb=self._disk_gb(run))

    def _of_other_seeds(self, run: Run) -> list[dict[str, Any]]:
        """Return the results of the runs that differ from a run in nothing but the seed, on GPUs of known speed.

        The same evaluation of another network is none of them: a wider one takes many times as long.
        """
        others = [self.plan.runs[name] for name in self.done]
        same = [each for each in others if (each.time_key, each.workload) == (run.time_key, run.workload)]
        return [self.done[each.run_id] for each in same if self._is_comparable(self.done[each.run_id])]

    def _is_comparable(self, result: dict[str, Any]) -> bool:
        cost = _measured_cost(result, 0.0, "")
        return not cost.num_gpus or cost.gpu in self.facts.gpus

    def _pretraining(self, workload: Workload) -> RunCost:
        if not workload.epochs:
            return RunCost(0.0, 0, "", "estimate", "no training, only the initial weights")
        if workload.dataset["source"] != paper_data_sources()["imagenet"]:
            return self._on_cpu(workload, workload.width, workload.num_networks) or _unknown(
                f"no time is known of a training on {workload.dataset['source']}"
            )
        crops = workload.crops.replace("_", "+")
        images_per_gpu = self.facts.images_per_gpu
        per_gpu = images_per_gpu.get(str(round(workload.width)), images_per_gpu["1"])
        num_gpus = max(1, workload.batch_size // per_gpu)
        if workload.width == 1 and (found := self._published(workload, crops)):
            hours, source = found
            return RunCost(hours, num_gpus, REFERENCE_GPU, "published", source)
        per_100, _ = printed_time(self.paper_tables["table1"], "swav", REFERENCE_CROPS, "time_100ep") or (0.0, "")
        pixel_ratio = workload.pixels / num_pixels(REFERENCE_CROPS)
        hours = per_100 * 64 * workload.epochs / 100 * (pixel_ratio * workload.width**2) / num_gpus
        hours *= workload.num_networks
        source = (
            f"Table 1's {per_100:.2f} h per 100 epochs of {REFERENCE_CROPS} on 64 V100 x {workload.epochs:g} epochs x "
            f"{pixel_ratio:.2f} of its pixels x width {workload.width:g} squared{_networks(workload.num_networks)}, "
            f"on {num_gpus} GPUs"
        )
        return RunCost(hours, num_gpus, REFERENCE_GPU, "estimate", source)

    def _on_cpu(
        self, workload: Workload, width: float, num_networks: int, *, evaluation: bool = False
    ) -> RunCost | None:
        """Return what a CPU takes at the plan's scale; None if no speed is known of it, or no size of the data set."""
        speed, data = self.facts.cpu.get(self.plan.request.scale), self.facts.data.get(workload.dataset["source"])
        if not speed or not data:
            return None
        rate = speed.evaluation if evaluation else speed.training
        num_images = workload.epochs * (data.num_images if evaluation else data.num_train)
        seconds = num_images * workload.pixels / rate * width / speed.width * num_networks
        wider = f" x width {width:g} / {speed.width:g}" if width != speed.width else ""
        wider += _networks(num_networks)
        amount = f"{num_images:,.0f} images of {workload.pixels:,} pixels{wider}"
        return RunCost(seconds / 3600, 0, "", "estimate", f"{amount}, at {rate:,.0f} pixels a second: {speed.source}")

    def _published(self, workload: Workload, crops: str) -> tuple[float, str] | None:
        """Return the hours of a recipe that the paper or the release notes print, and the source."""
        timed = printed_time(self.paper_tables["table1"], workload.method, crops, "time_100ep")
        if workload.batch_size == 4096 and timed:
            hours, printed = timed
            return hours * workload.epochs / 100, f"Table 1: {printed} per 100 epochs of {crops} on 64 V100"
        variant = f"batch {workload.batch_size}, {crops}"
        if found := printed_time(self.paper_tables["release_notes"], workload.method, variant, "minutes_per_epoch"):
            minutes, printed = found
            return minutes * workload.epochs / 60, f"release notes: {printed} an epoch at {variant}"
        return None

    def _evaluation(self, run: Run) -> RunCost:
        workload = run.workload
        data = self.facts.data.get(workload.dataset["source"])
        if data and (timed := self.facts.trainings.get(workload.method)):
            gpu_hours, num_gpus = timed.hours * timed.num_gpus * workload.epochs / timed.epochs, run.num_processes
            if num_gpus == timed.num_gpus:
                return RunCost(gpu_hours / num_gpus, num_gpus, REFERENCE_GPU, "published", timed.source)
            source = f"{timed.source}; as many GPU-hours on {num_gpus} GPU{'s' if num_gpus > 1 else ''}"
            return RunCost(gpu_hours / num_gpus, num_gpus, REFERENCE_GPU, "estimate", source)
        if data is None or workload.method not in self.facts.evaluations:
            return _unknown(f"no time is known of {run.name} on {workload.dataset['source']}")
        parent = next((self.plan.runs[name].workload for name in run.parents if name in self.plan.runs), None)
        width = workload.width or (parent.width if parent else 1.0)
        num_networks = parent.num_networks if parent else 1
        if on_cpu := self._on_cpu(workload, width, num_networks, evaluation=True):
            return on_cpu
        passes = workload.epochs * data.num_images * workload.pixels / PIXELS_PX**2 * width**2 * num_networks
        wider = (f" x width {width:g} squared" if width != 1 else "") + _networks(num_networks)
        source = (
            f"{workload.epochs:g} x {data.num_images / 1e6:.2f} million images{wider}, forward at "
            f"{self.facts.forward.images_per_second:g} a second, without {self.facts.evaluations[workload.method]}"
        )
        return RunCost(passes / self.facts.forward.images_per_second / 3600, 1, REFERENCE_GPU, "estimate", source)

    def _disk_gb(self, run: Run) -> float:
        if run.kind != "pretrain":
            return self.facts.log_gb
        workload = run.workload
        weights = self.facts.trunk_weights_millions * 1e6 * workload.width**2 + workload.head_weights
        weights *= workload.num_networks
        data = self.facts.data.get(workload.dataset["source"])
        values = workload.queue_values + workload.values_per_image * (data.num_train if data else 0)
        values += round(weights) if workload.has_key_encoder else 0
        return self.facts.log_gb + (weights * BYTES_PER_WEIGHT + values * 4) / 1e9


def _networks(number: int) -> str:
    return f" x {number} networks" if number > 1 else ""


def _unknown(source: str) -> RunCost:
    return RunCost(None, 0, "", "unknown", source)


def _measured_cost(result: dict[str, Any], hours: float, source: str) -> RunCost:
    provenance = result.get("provenance", {})
    hardware = str(provenance.get("hardware", "a machine that it does not name"))
    gpu = GPU_HARDWARE.fullmatch(hardware)
    num_gpus = int(provenance.get("world_size", 1)) if gpu else 0
    words = re.findall(r"\w+", gpu["name"]) if gpu else []  # an "RTX A1000" is no A100
    known = [name for name in cost_facts.load().gpus if name in words]
    name = known[0] if known else gpu["name"] if gpu else ""
    return RunCost(hours, num_gpus, name, "measured", f"{source}, {hardware}")
