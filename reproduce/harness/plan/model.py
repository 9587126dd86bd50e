"""What a plan is: the runs behind the asked tables, and the cells that they make."""

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from reproduce.harness import results
from reproduce.harness.plan.workload import Work
from reproduce.harness.spec import claims, tables
from reproduce.harness.spec.claims import Claim
from reproduce.harness.spec.tables import Margin, Row, Table

Kind = Literal["pretrain", "evaluate", "measure"]

Source = Literal["scratch", "released"]

Level = Literal["L0", "L1"]
"""Of a verdict: the authors' public checkpoint through our evaluation, or our own pretraining through it."""

OF_PRETRAINING = ("num_processes=", "processes_per_node=", "num_threads=")
"""Cluster options that are a pretraining's: an evaluation takes one process, of as many threads as its config says."""

CACHE = Path(".cache")
REPORTS = Path("reports")


@dataclass(frozen=True)
class Request:
    """What a person asked for."""

    tables: tuple[str, ...]
    scale: str
    seeds: tuple[int, ...] = (0,)
    data: str | None = None
    data_config: str | None = None
    skip_bad_images: bool = False
    source: Source = "scratch"
    """Whose networks are evaluated: those that we train, or public ones (models/zoo/released.yaml)."""
    cluster: str = "local"
    cluster_options: tuple[str, ...] = ()
    """What is a site's own, as KEY=VALUE below `cluster` of the config: `slurm.partition=gpu`."""

    def overrides(self) -> list[str]:
        """What every run of the request has in common, as Hydra overrides."""
        given = [f"scale={self.scale}"]
        given += [f"data={self.data_config}"] if self.data_config else []
        given += ["on_bad_image=skip"] if self.skip_bad_images else []
        return given

    def where(self, kind: Kind) -> list[str]:
        """Where runs of a kind go, as Hydra overrides; nothing for this machine as it comes."""
        given = [] if self.cluster == "local" else [f"cluster={self.cluster}"]
        own = [item for item in self.cluster_options if kind == "pretrain" or not item.startswith(OF_PRETRAINING)]
        return given + [f"cluster.{item}" for item in own]


@dataclass(frozen=True)
class Run:
    """One process, and everything needed to start it."""

    run_id: str
    kind: Kind
    name: str
    seed: int
    folder: str
    overrides: list[str]
    parents: list[str]
    cores: int
    num_processes: int
    catalogue: str
    work: Work
    of: str = ""
    num_nodes: int = 1
    """Machines that the processes are spread over, evenly."""

    @property
    def label(self) -> str:
        """The run in words."""
        return f"{self.name} of {self.of}, seed {self.seed}" if self.of else f"{self.name}, seed {self.seed}"

    @property
    def result(self) -> Path:
        """The file that says that the run is done."""
        return Path(self.folder) / "result.json"

    @property
    def failure(self) -> Path:
        """The file that says how the run failed, the last time that it was tried."""
        return Path(self.folder) / "failure.json"

    @property
    def log(self) -> Path:
        """What the run said on stdout and stderr."""
        return Path(self.folder) / "log.txt"

    def read_result(self) -> dict[str, Any] | None:
        """Return the run's result, or None if there is none yet. Raises `UserError` as `results.load` does."""
        return results.load(self.result, self.run_id) if self.result.exists() else None

    def metrics_text(self) -> str:
        """Return the metrics of the run's result as text, such as "knn20 67.24, knn200 67.22"."""
        result = self.read_result()
        metrics = result["metrics"] if result else {}
        return ", ".join(f"{name} {value:.2f}" for name, value in metrics.items()) or "no metrics"

    def read_failure(self) -> dict[str, Any] | None:
        """Return how the run failed the last time, or None; see `results.load_failure`."""
        return results.load_failure(self.failure)

    def command(self) -> list[str]:
        """The run's argument vector, the same on each of its machines (the launcher tells them apart)."""
        module = f"reproduce.{self.kind}"
        launcher = [
            "-m",
            "reproduce.engine.distributed.launch",
            "--processes",
            str(self.num_processes // self.num_nodes),
        ]
        launcher += ["--nodes", str(self.num_nodes)] if self.num_nodes > 1 else []
        return [sys.executable, *(launcher if self.num_processes > 1 else ["-m"]), module, *self.overrides]


@dataclass(frozen=True)
class Cell:
    """One number to make: its place in its table, and the run of each seed that measures it.

    A curve that a figure draws has no column, evaluation and metric; its runs are the pretrainings.
    """

    table: str
    row: str
    column: str
    pretrain: str
    eval: str
    metric: str
    runs: dict[int, str]
    """Where there are `settings`, those of the first."""
    settings: dict[str, dict[int, str]] = field(default_factory=dict)
    """By setting, the runs that the best is chosen from."""
    best_by: str = ""
    """The metric that chooses."""

    @property
    def run_ids(self) -> list[str]:
        """All runs behind the number."""
        return [name for runs in (self.settings.values() or [self.runs]) for name in runs.values()]

    @property
    def place(self) -> str:
        """Where the number stands."""
        return f"{self.table}/{self.row}/{self.column}"

    @property
    def key(self) -> str:
        """What is measured, whichever table shows it."""
        return f"{self.pretrain}/{self.eval}/{self.metric}"


@dataclass(frozen=True)
class Plan:
    """The graph of runs behind the asked tables."""

    request: Request
    tables: dict[str, Table]
    runs: dict[str, Run]
    cells: list[Cell]
    data: str
    pictures: str
    """The folder to generate pictures in; empty where the pictures are given."""
    own_pictures: bool
    """Whether these are the pictures that the scale's recorded numbers were measured on."""
    claims: list[Claim] = field(default_factory=list)
    """Those that were asked for."""
    cluster: dict[str, Any] = field(default_factory=lambda: {"executor": "local"})
    """The config's section: who starts the runs, and all that is a site's own."""

    @property
    def level(self) -> Level:
        """Of all that is judged by this plan."""
        return "L0" if self.request.source == "released" else "L1"

    @property
    def reports(self) -> Path:
        """Where this plan's tables and page go."""
        return REPORTS / self.request.scale

    def runs_of(self, table: str) -> list[Run]:
        """The runs behind one table, parents first."""
        last = {name for cell in self.cells if cell.table == table for name in cell.run_ids}
        serving = last | {parent for name in last for parent in self.runs[name].parents}
        return [run for run in self.runs.values() if run.run_id in serving]

    def cells_of(self, run_id: str) -> int:
        """How many cells a run serves, by itself or through the runs that build on it."""
        heirs = {run.run_id for run in self.runs.values() if run_id in (run.run_id, *run.parents)}
        return sum(bool(heirs & set(cell.run_ids)) for cell in self.cells)

    def only(self, possible: Callable[[Run], bool]) -> "Plan":
        """The cells whose every run is possible, and the runs that these need."""
        can = {run_id for run_id, run in self.runs.items() if possible(run)}
        cells = [cell for cell in self.cells if all(can.issuperset(self._behind(name)) for name in cell.run_ids)]
        needed = {name for cell in cells for run_id in cell.run_ids for name in self._behind(run_id)}
        runs = {run_id: run for run_id, run in self.runs.items() if run_id in needed}
        return dataclasses.replace(self, runs=runs, cells=cells)

    def expected_to_fail(self, run: Run) -> bool:
        """Whether the paper says, of every number that a run serves, that the training behind it fails."""
        served = [cell for cell in self.cells if any(run.run_id in self._behind(name) for name in cell.run_ids)]
        return bool(served) and all(map(self._prints_failure, served))

    def _behind(self, run_id: str) -> tuple[str, ...]:
        return (run_id, *self.runs[run_id].parents)

    def _prints_failure(self, cell: Cell) -> bool:
        if cell.table == claims.TARGET:
            parts = [claim.convergence for claim in self.claims if claim.claim == cell.row]
            return any(part is not None and part.fails == cell.pretrain for part in parts)
        row = self._row(cell)
        return row.cells.get(cell.column) == tables.PRINTED_FAILURE

    def _row(self, cell: Cell) -> Row:
        (row,) = [row for row in self.tables[cell.table].rows if row.label == cell.row]
        return row

    def margin(self, cell: Cell) -> Margin | None:
        """The margin that a cell is judged by; None where it is held against no printed number."""
        if not cell.column or cell.table not in self.tables:
            return None
        public_weights = self.request.source == "released"
        return self.tables[cell.table].margin(self._row(cell), cell.column, public_weights)
