"""A plan: the runs behind the requested tables, and the cells that they fill."""

import dataclasses
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from reproduce.config import RunKind
from reproduce.errors import UserError
from reproduce.harness import results
from reproduce.harness.plan.workload import Workload
from reproduce.harness.spec import claims, tables
from reproduce.harness.spec.claims import Claim
from reproduce.harness.spec.tables import Margin, Row, Table

Source = Literal["scratch", "released"]

Level = Literal["public weights", "own training"]
"""Whose networks a verdict is about: public checkpoints, or those of our own pretraining."""

PRETRAINING_ONLY_OPTIONS = ("num_processes=", "num_threads=")
"""Cluster options that evaluations ignore: their configs set the number of processes and threads. An evaluation is one
process, unless it trains a detector (`detector_processes`)."""

CACHE = Path(".cache")
REPORTS = Path("reports")


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    tables: tuple[str, ...]
    scale: str
    seeds: tuple[int, ...] = (0,)
    data: str | None = None
    data_config: str | None = None
    skip_bad_images: bool = False
    source: Source = "scratch"
    """Which networks are evaluated: our own or public ones (models/zoo/released.yaml)."""
    cluster: str = "local"
    cluster_options: tuple[str, ...] = ()
    """Site-specific KEY=VALUE overrides below `cluster` of the config, such as `slurm.partition=gpu`."""
    budget: str = ""
    """The GPU-hours that the runs may take, such as "24" or "24 H100"; "" for all cells (`budget.parse`)."""

    def overrides(self) -> list[str]:
        """Return the Hydra overrides that all runs of the request share."""
        overrides = [f"scale={self.scale}"]
        overrides += [f"data={self.data_config}"] if self.data_config else []
        overrides += ["on_bad_image=skip"] if self.skip_bad_images else []
        return overrides

    def cluster_overrides(self, kind: RunKind) -> list[str]:
        """Return the Hydra overrides that say where runs of a kind execute; none for this machine."""
        cluster = [] if self.cluster == "local" else [f"cluster={self.cluster}"]
        options = [
            item for item in self.cluster_options if kind == "pretrain" or not item.startswith(PRETRAINING_ONLY_OPTIONS)
        ]
        return cluster + [f"cluster.{item}" for item in options]


@dataclass(frozen=True)
class Run:
    """One run, and everything needed to start it."""

    run_id: str
    kind: RunKind
    name: str
    seed: int
    folder: str
    overrides: list[str]
    parents: list[str]
    cores: int
    num_processes: int
    data_config: str
    """The name in the data config: its layout of DATA."""
    workload: Workload
    parent_name: str = ""
    """What an evaluation evaluates: the name of a pretraining, or public weights."""
    num_nodes: int = 1
    """The number of machines that share the processes evenly."""

    @property
    def label(self) -> str:
        """The run's name for people."""
        return f"{self._name_without_seed}, seed {self.seed}"

    @property
    def time_key(self) -> str:
        """The name by which runs that differ in their seed only share one time: "kind/name of parent"."""
        return f"{self.kind}/{self._name_without_seed}"

    @property
    def _name_without_seed(self) -> str:
        return f"{self.name} of {self.parent_name}" if self.parent_name else self.name

    @property
    def result(self) -> Path:
        """The file that the run writes when it is done."""
        return Path(self.folder) / "result.json"

    @property
    def failure(self) -> Path:
        """The file that says how the last attempt failed."""
        return Path(self.folder) / "failure.json"

    @property
    def log(self) -> Path:
        """The file with the run's stdout and stderr."""
        return Path(self.folder) / "log.txt"

    def read_result(self) -> dict[str, Any] | None:
        """Return the run's result, or None if there is none yet. Raises `UserError` as `results.load` does."""
        if not self.result.exists():
            return None
        result = results.load(self.result, self.run_id)
        own: dict[str, Any] = {"kind": self.kind, "scale": Path(self.folder).parent.name}
        own |= {"parents": self.parents} if self.parents else {}  # a run planned by itself does not know them
        for key, wanted in own.items():
            if result.get(key, wanted) != wanted:
                raise UserError(
                    f"{self.result} is called the result of {self.run_id}, but its {key} is {result[key]}; delete it "
                    "and run the same command again"
                )
        return result

    def metrics_text(self) -> str:
        """Return the metrics of the run's result as text, such as "knn20 67.24, knn200 67.22"."""
        result = self.read_result()
        metrics = result["metrics"] if result else {}
        return ", ".join(f"{name} {value:.2f}" for name, value in metrics.items()) or "no metrics"

    def read_failure(self) -> dict[str, Any] | None:
        """Return how the run failed the last time, or None; see `results.load_failure`."""
        return results.load_failure(self.failure)

    def command(self) -> list[str]:
        """Return the run's argument vector. It is the same on all machines; the launcher tells them apart."""
        module = f"reproduce.{self.kind}"
        launcher = [
            "-m",
            "reproduce.engine.distributed.launch",
            "--nproc-per-node",
            str(self.num_processes // self.num_nodes),
        ]
        launcher += ["--nnodes", str(self.num_nodes)] if self.num_nodes > 1 else []
        return [sys.executable, *(launcher if self.num_processes > 1 else ["-m"]), module, *self.overrides]


@dataclass(frozen=True)
class Cell:
    """One number of a table, and the run of each seed that measures it.

    The cell of a plotted curve has no column, evaluation and metric; its runs are the pretrainings.
    """

    table: str
    row: str
    column: str
    pretrain: str
    eval: str
    metric: str
    runs: dict[int, str]
    """Run ids by seed; with `runs_by_override`, those of its first entry."""
    runs_by_override: dict[str, dict[int, str]] = field(default_factory=dict)
    """Run ids by seed for every override of which the best counts (`tables.BestOf`)."""
    selection_metric: str = ""
    """The metric that selects the best override."""

    @property
    def run_ids(self) -> list[str]:
        """The run ids behind the number, of all overrides."""
        return [name for runs in (self.runs_by_override.values() or [self.runs]) for name in runs.values()]

    @property
    def table_key(self) -> str:
        """The position of the cell, such as table3/SwAV/voc07."""
        return f"{self.table}/{self.row}/{self.column}"

    @property
    def metric_key(self) -> str:
        """What is measured, whichever table shows it, such as swav_800ep/voc07_svm/map."""
        return f"{self.pretrain}/{self.eval}/{self.metric}"


@dataclass(frozen=True)
class Plan:
    """The graph of runs behind the requested tables."""

    request: Request
    tables: dict[str, Table]
    runs: dict[str, Run]
    cells: list[Cell]
    data_root: str
    generated_data_dir: str
    """The folder to generate images in; empty if the images are given."""
    uses_reference_data: bool
    """Whether the runs read the data that the scale's recorded numbers were measured on."""
    claims: list[Claim] = field(default_factory=list)
    """The requested claims."""
    cluster: dict[str, Any] = field(default_factory=lambda: {"executor": "local"})
    """The `cluster` section of the config: what starts the runs, and everything site-specific."""
    content_hashes: dict[tuple[str, str, str], str | None] = field(default_factory=dict, compare=False, repr=False)
    """What `run_state` has looked up of the images in DATA, so that one command looks once."""
    composed: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The configs that `ConfigCache` has composed for it, so that a second plan of a command composes only others."""

    @property
    def level(self) -> Level:
        """The level of all verdicts on this plan."""
        return "public weights" if self.request.source == "released" else "own training"

    @property
    def reports(self) -> Path:
        """The folder of this plan's tables and page."""
        return REPORTS / self.request.scale

    def runs_of(self, table: str) -> list[Run]:
        """Return the runs behind one table, parents first."""
        last = {name for cell in self.cells if cell.table == table for name in cell.run_ids}
        serving = last | {parent for name in last for parent in self.runs[name].parents}
        return [run for run in self.runs.values() if run.run_id in serving]

    def behind(self, run_id: str) -> tuple[str, ...]:
        """Return a run and those that it builds on: its parents, and theirs."""
        return (run_id, *(name for parent in self.runs[run_id].parents for name in self.behind(parent)))

    def cells_of(self, run_id: str) -> int:
        """Count the cells that need a run, directly or through an evaluation of it."""
        dependants = {run.run_id for run in self.runs.values() if run_id in (run.run_id, *run.parents)}
        return sum(bool(dependants & set(cell.run_ids)) for cell in self.cells)

    def restricted_to(self, possible: Callable[[Run], bool]) -> "Plan":
        """Return the plan of the cells whose runs are all `possible`, with only the runs that these need."""
        can = {run_id for run_id, run in self.runs.items() if possible(run)}
        return self.with_cells(
            cell for cell in self.cells if all(can.issuperset(self.behind(name)) for name in cell.run_ids)
        )

    def with_cells(self, chosen: Iterable[Cell]) -> "Plan":
        """Return the plan of some of its cells, in its own order, with only the runs that these need."""
        wanted = list(chosen)
        cells = [cell for cell in self.cells if cell in wanted]
        needed = {name for cell in cells for run_id in cell.run_ids for name in self.behind(run_id)}
        runs = {run_id: run for run_id, run in self.runs.items() if run_id in needed}
        return dataclasses.replace(self, runs=runs, cells=cells)

    def expected_to_fail(self, run: Run) -> bool:
        """Return whether every cell that needs a run accepts a failure, or has the paper's printed."""
        served = [cell for cell in self.cells if any(run.run_id in self.behind(name) for name in cell.run_ids)]
        return bool(served) and all(map(self._accepts_failure, served))

    def _accepts_failure(self, cell: Cell) -> bool:
        if cell.table == claims.TARGET:
            parts = [claim.convergence for claim in self.claims if claim.claim == cell.row]
            return any(part is not None and part.fails == cell.pretrain for part in parts)
        row = self._row(cell)
        return row.may_fail or row.cells.get(cell.column) == tables.PRINTED_FAILURE

    def _row(self, cell: Cell) -> Row:
        (row,) = [row for row in self.tables[cell.table].rows if row.label == cell.row]
        return row

    def margin(self, cell: Cell) -> Margin | None:
        """Return the margin of a cell, or None if the cell is not compared with a printed number."""
        if not cell.column or cell.table not in self.tables:
            return None
        public = tables.public_weights_margins() if self.request.source == "released" else {}
        return self.tables[cell.table].margin(self._row(cell), cell.column, public)
