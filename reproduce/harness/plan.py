"""What a request comes to: which runs make which cells. Equal runs are one."""

import dataclasses
import hashlib
import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from reproduce.data import released
from reproduce.data.released import Released
from reproduce.errors import UserError
from reproduce.files import write_json
from reproduce.harness import claims, margins, tables, work
from reproduce.harness.claims import Claim
from reproduce.harness.code import CHECKOUT
from reproduce.harness.tables import Margin, Row, Table
from reproduce.harness.work import Work

if TYPE_CHECKING:
    from omegaconf import DictConfig  # which the harness imports only where a plan is new

Kind = Literal["pretrain", "evaluate", "measure"]

Source = Literal["scratch", "released"]

WHOLE_MACHINE = 100_000
"""Cores of a run that measures time: nothing may run beside it."""

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
    """Whose networks are evaluated: those that we train, or public ones (models/released.yaml)."""
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

    def command(self) -> list[str]:
        """The run's argument vector, the same on each of its machines (reproduce.engine.launch tells them apart)."""
        module = f"reproduce.{self.kind}"
        launcher = ["-m", "reproduce.engine.launch", "--processes", str(self.num_processes // self.num_nodes)]
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

    def should_fail(self, run: Run) -> bool:
        """Whether the paper says, of every number that a run serves, that the training behind it fails."""
        served = [cell for cell in self.cells if any(run.run_id in self._behind(name) for name in cell.run_ids)]
        return bool(served) and all(map(self._prints_failure, served))

    def _behind(self, run_id: str) -> tuple[str, ...]:
        return (run_id, *self.runs[run_id].parents)

    def _prints_failure(self, cell: Cell) -> bool:
        if cell.table == claims.REQUEST:
            parts = [claim.convergence for claim in self.claims if claim.claim == cell.row]
            return any(part is not None and part.fails == cell.pretrain for part in parts)
        row = self._row(cell)
        return row.cells.get(cell.column) == tables.FAILS

    def _row(self, cell: Cell) -> Row:
        (row,) = [row for row in self.tables[cell.table].rows if row.label == cell.row]
        return row

    def write(self) -> Path:
        """Write the plan, with its price, where the workflow reads it."""
        from reproduce.harness import cost  # which is about plans

        path = self.reports / "plan.json"
        prices = cost.price(self)
        runs = [
            dataclasses.asdict(run) | {"command": run.command(), "state": str(prices.states[run.run_id])}
            for run in self.runs.values()
        ]
        cells = [dataclasses.asdict(cell) for cell in self.cells]
        request = dataclasses.asdict(self.request)
        around = {"request": request, "data": self.data, "pictures": self.pictures, "cluster": self.cluster}
        write_json(path, around | {"runs": runs, "cells": cells, "price": cost.as_data(self, prices)})
        self._note_margins()
        return path

    def _note_margins(self) -> None:
        """Keep the margins that the runs to do will be judged by, before there is a result to fit them to."""
        to_do: dict[Path, dict[str, dict[str, float]]] = {}
        for cell in self.cells:
            for run in (self.runs[name] for name in cell.run_ids):
                margin = self.margin(cell)
                if margin and not run.result.exists():
                    of_scale = to_do.setdefault(margins.path(run.folder), {})
                    of_scale.setdefault(run.run_id, {})[cell.place] = margin.points
        for file, points in to_do.items():
            margins.note(file, points)

    def margin(self, cell: Cell) -> Margin | None:
        """The margin that a cell is judged by; None where it is held against no printed number."""
        if not cell.column or cell.table not in self.tables:
            return None
        return self.tables[cell.table].margin(self._row(cell), cell.column)


def make(request: Request) -> Plan:
    """Plan a request. Raises `UserError` for what the tables or the configs do not know."""
    names = [name for name in dict.fromkeys(request.tables) if name != claims.REQUEST]
    chosen = {name: tables.load(name, request.scale) for name in names}
    return _make(request, chosen, claims.load() if claims.REQUEST in request.tables else [])


def for_claims(request: Request, chosen: list[Claim]) -> Plan:
    """Plan only what some claims need, for the same scale, data and seeds as `request`."""
    return _make(request, {}, chosen)


def for_seeds(plan: Plan, seeds: tuple[int, ...]) -> Plan:
    """Plan the same for other seeds."""
    return _make(dataclasses.replace(plan.request, seeds=seeds), plan.tables, plan.claims)


def _make(request: Request, chosen: dict[str, Table], asked: list[Claim]) -> Plan:
    composer = Composer(request)
    catalogue = composer.catalogue(request.overrides())
    data, pictures = data_folder(request, catalogue)
    runs: dict[str, Run] = {}
    cells: list[Cell] = []
    for name, table in chosen.items():
        maker = _Maker(request, composer, runs, [*_where(data), f"logging.group={name}-{request.scale}"])
        cells += _released_cells(maker, table) if request.source == "released" else _trained_cells(maker, table)
    from_scratch = dataclasses.replace(request, source="scratch")
    maker = _Maker(from_scratch, composer, runs, [*_where(data), f"logging.group={claims.REQUEST}-{request.scale}"])
    for claim in asked:
        for need in claim.needs():
            measured = maker.runs_of(need.pretrain, need.eval)
            place = need.pretrain if need.eval else ""
            cells.append(Cell(claims.REQUEST, claim.claim, place, need.pretrain, need.eval, need.metric, measured))
    own_pictures = catalogue == composer.catalogue([f"scale={request.scale}"])
    cluster = composer.cluster
    composer.save()
    return Plan(request, chosen, runs, cells, data, pictures, own_pictures, asked, cluster)


def _trained_cells(maker: "_Maker", table: Table) -> Iterator[Cell]:
    for row, key, experiment in table.made_here():
        column = table.columns[key]
        if column.measurement:
            measured = maker.measurements_of(experiment, column.measurement)
            yield Cell(table.table, row.label, key, experiment, column.measurement, column.metric, measured)
        else:
            runs_of = partial(maker.runs_of, experiment, column.eval or "", column.num_runs)
            yield _evaluated(table, row, key, experiment, runs_of)
    for row in table.drawn_here():
        assert row.pretrain
        yield Cell(table.table, row.label, "", row.pretrain, "", "", maker.runs_of(row.pretrain))


def _released_cells(maker: "_Maker", table: Table) -> Iterator[Cell]:
    """Of every row whose weights are public, others' methods among them, the columns that an evaluation makes."""
    for row in table.rows:
        item = public_weights(table, row)
        for key, column in table.columns.items():
            if item and item.address and column.eval and table.has_cell(row, key):
                runs_of = partial(maker.released_runs_of, item, column.eval, column.num_runs)
                yield _evaluated(table, row, key, released.PREFIX + item.name, runs_of)


def _evaluated(table: Table, row: Row, key: str, pretrain: str, runs_of: Callable[..., dict[int, str]]) -> Cell:
    """The cell of an evaluation, in each of the settings that its best is chosen from."""
    column = table.columns[key]
    cell = partial(Cell, table.table, row.label, key, pretrain, column.eval or "", column.metric)
    if column.best_of is None:
        return cell(runs_of())
    settings = [f"{column.best_of.key}={value:g}" for value in column.best_of.values]
    of_settings = {setting: runs_of(setting) for setting in settings}
    return cell(of_settings[settings[0]], of_settings, column.best_of.metric)


def public_weights(table: Table, row: Row) -> Released | None:
    """The entry of the zoo that fills a row: the one that names it, or that of its experiment."""
    zoo = released.load()
    naming = [item for item in zoo.values() if item.fills.get(table.table) == row.label]
    return naming[0] if naming else zoo.get(row.pretrain or "")


@dataclass
class _Maker:
    """Adds to `runs` what a number needs."""

    request: Request
    composer: "Composer"
    runs: dict[str, Run]
    around: list[str]

    def runs_of(self, experiment: str, evaluation: str = "", num_runs: int = 1, setting: str = "") -> dict[int, str]:
        """By seed, the run_id of an experiment's evaluation, or of the experiment itself.

        An evaluation that the paper averages over `num_runs` runs of it has so many seeds of its own for each
        pretraining: 0 to 4 on that of seed 0, 5 to 9 on that of seed 1. `setting` is an override of its config.
        """
        return {
            seed: self._last_run(experiment, evaluation, setting, pretrained, seed).run_id
            for pretrained in self.request.seeds
            for seed in _own_seeds(pretrained, num_runs)
        }

    def released_runs_of(self, item: Released, evaluation: str, num_runs: int, setting: str = "") -> dict[int, str]:
        """By seed, the run_id of an evaluation of public weights."""
        weights = [f"checkpoint='{released.PREFIX}{item.name}'", f"normalize={item.normalize}"]
        found = {}
        for seed in (seed for asked in self.request.seeds for seed in _own_seeds(asked, num_runs)):
            asked = [f"eval={evaluation}", *weights, *self.request.overrides(), f"seed={seed}", *_given(setting)]
            run = self.composer.run("evaluate", asked, self.around)
            run = dataclasses.replace(run, of=", ".join([f"{released.PREFIX}{item.name}", *_given(setting)]))
            found[seed] = self.runs.setdefault(run.run_id, run).run_id
        return found

    def measurements_of(self, experiment: str, measurement: str) -> dict[int, str]:
        """By seed, the run_id of what is measured of an experiment's network."""
        asked = [f"experiment={experiment}", f"measurement={measurement}", f"name={measurement}_{experiment}"]
        common = self.request.overrides()
        runs = {
            seed: self.composer.run("measure", [*asked, *common, f"seed={seed}"], self.around)
            for seed in self.request.seeds
        }
        self.runs.update((run.run_id, run) for run in runs.values())
        return {seed: run.run_id for seed, run in runs.items()}

    def _last_run(self, experiment: str, evaluation: str, setting: str, pretrained: int, seed: int) -> Run:
        common = self.request.overrides()
        first = [f"experiment={experiment}", *common, f"seed={pretrained}"]
        pretraining = self.composer.run("pretrain", first, self.around)
        self.runs.setdefault(pretraining.run_id, pretraining)
        if not evaluation:
            return pretraining
        asked = [f"eval={evaluation}", f"checkpoint={pretraining.run_id}", *common, f"seed={seed}", *_given(setting)]
        run = self.composer.run("evaluate", asked, self.around, pretraining)
        run = dataclasses.replace(run, of=", ".join([run.of, *_given(setting)]))
        return self.runs.setdefault(run.run_id, run)


def _own_seeds(pretrained: int, num_runs: int) -> range:
    """The seeds of an evaluation's `num_runs` runs on one network."""
    return range(pretrained * num_runs, (pretrained + 1) * num_runs)


def _given(setting: str) -> list[str]:
    return [setting] if setting else []


def one(request: Request, kind: Kind, choice: str, checkpoint: str = "", overrides: tuple[str, ...] = ()) -> Plan:
    """Plan one run by itself, with the run_id that a table would give it. `overrides` are Hydra's, and come last."""
    composer = Composer(request)
    catalogue = composer.catalogue(request.overrides())
    data, pictures = data_folder(request, catalogue)
    what = [f"experiment={choice}"] if kind == "pretrain" else [f"eval={choice}", f"checkpoint={quoted(checkpoint)}"]
    run = composer.run(kind, [*what, *request.overrides(), f"seed={request.seeds[0]}", *overrides], _where(data))
    return Plan(request, {}, {run.run_id: run}, [], data, pictures, own_pictures=False, cluster=composer.cluster)


def _where(data: str) -> list[str]:
    return [f"paths.data={quoted(data)}"] if data else []


def data_folder(request: Request, catalogue: dict[str, str]) -> tuple[str, str]:
    """Where the pictures lie, and the folder to generate them in. Empty: not said yet, and nothing to generate.

    Without a DATA of one's own, generated pictures go below `.cache`, in a folder named after the generator's version.
    """
    if catalogue["name"] != "generated":
        return request.data or "", ""
    folder = request.data or str(CACHE / "data" / catalogue["source"])
    below_cache = CACHE.resolve() in Path(folder).resolve().parents
    return folder, folder if below_cache else ""


def quoted(value: str) -> str:
    """A text as the value of a Hydra override."""
    if re.fullmatch(r"[\w./-]+", value):
        return value
    escaped = re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return f"'{escaped}'"  # Hydra reads a backslash as itself unless it stands before a quote


@dataclass
class Composer:
    """Composes configs, each distinct one once; answers are kept in `.cache` as long as no config file changes."""

    request: Request
    memory: dict[str, Any] = field(default_factory=dict)
    composed: dict[str, "DictConfig"] = field(default_factory=dict)
    """Configs as resolved in this process; their plain keys are those of the last run that was asked for."""
    new: bool = False

    def __post_init__(self) -> None:
        self.file = CACHE / "configs.json"
        self.fingerprint = _fingerprint()
        try:
            kept = json.loads(self.file.read_text())
            self.memory = kept["configs"] if kept["fingerprint"] == self.fingerprint else {}
        except (OSError, ValueError, KeyError):
            self.memory = {}

    def run(self, kind: Kind, overrides: list[str], around: list[str], parent: Run | None = None) -> Run:
        """The run that a list of overrides comes to. `around` says where and for whom: no part of what it is."""
        overrides = [*self.request.where(kind), *overrides]
        known = self._remember(kind, overrides, lambda: self._compose(kind, overrides))
        parents = [parent.run_id] if parent else []
        of = parent.name if parent else ""
        does = Work(**known["work"])
        return Run(kind=kind, overrides=[*overrides, *around], parents=parents, of=of, **known | {"work": does})

    def catalogue(self, overrides: list[str]) -> dict[str, str]:
        """Name of the data catalogue, and the source of its pictures."""
        return dict(self._remember("catalogue", overrides, lambda: _catalogue(overrides)))

    @property
    def cluster(self) -> dict[str, Any]:
        """The section of the config that says where runs go."""
        where = [f"scale={self.request.scale}", *self.request.where("pretrain")]
        return dict(self._remember("cluster", where, lambda: _cluster(where)))

    def _compose(self, kind: Kind, overrides: list[str]) -> dict[str, Any]:
        """What a run is. Composing takes a quarter of a second: runs that differ in plain keys share one config."""
        from reproduce import config

        rest, plain = _plain_keys(overrides)
        shared = [*rest, *(f"{key}=0" for key in plain)]
        key = _key(kind, shared)
        if key not in self.composed:
            self.composed[key] = config.compose(kind, shared)
        self.composed[key].update(plain)
        return _summary(kind, self.composed[key])

    def save(self) -> None:
        """Keep the answers for the next command."""
        if self.new:
            write_json(self.file, {"fingerprint": self.fingerprint, "configs": self.memory})

    def _remember(self, what: str, overrides: list[str], compose: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        key = _key(what, overrides)
        if key not in self.memory:
            self.memory[key] = compose()
            self.new = True
        known: dict[str, Any] = self.memory[key]
        return known


def _key(what: str, overrides: list[str]) -> str:
    """Names an answer: by the words of the request, and by what a catalogue of one's own says."""
    own = [Path(item.partition("=")[2]) for item in overrides if item.startswith("data=") and item.endswith("ml")]
    files = [hashlib.sha256(path.read_bytes()).hexdigest() for path in own if path.is_file()]
    return " ".join([what, *overrides]) + "".join(files)


PLAIN = {"seed": re.compile(r"(\d+)"), "checkpoint": re.compile(r"(\w+-s\d+-[0-9a-f]{10})|'(released:\w+)'")}
"""Keys that no other is made of, and their values that need no parser: whole numbers, run_ids, public weights."""


def _plain_keys(overrides: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Overrides without those that set a plain key to a plain value; and the last value of each of these keys."""
    rest, plain = overrides, {}
    for key, pattern in PLAIN.items():
        values = [item.partition("=")[2] for item in rest if item.startswith(f"{key}=")]
        found = [match[match.lastindex or 0] for value in values if (match := pattern.fullmatch(value))]
        if values and len(found) == len(values):
            rest = [item for item in rest if not item.startswith(f"{key}=")]
            plain[key] = int(found[-1]) if key == "seed" else found[-1]
    return rest, plain


def _summary(kind: Kind, cfg: "DictConfig") -> dict[str, Any]:
    from reproduce import config

    return {
        "run_id": config.run_id(cfg),
        "name": cfg.name,
        "seed": cfg.seed,
        "folder": str(config.run_dir(cfg)),
        "cores": WHOLE_MACHINE if kind == "measure" else cfg.cluster.num_threads * cfg.cluster.num_processes,
        "num_processes": cfg.cluster.num_processes,
        "num_nodes": _num_nodes(cfg.cluster),
        "catalogue": cfg.data.name,
        "work": dataclasses.asdict(work.of(cfg)),
    }


def _num_nodes(cluster: Any) -> int:
    """How many machines a run takes. Raises `UserError` where they would not be evenly filled."""
    nodes = math.ceil(cluster.num_processes / (cluster.processes_per_node or cluster.num_processes))
    if cluster.num_processes % nodes:
        raise UserError(
            f"cluster.num_processes={cluster.num_processes} can't be spread evenly over machines of "
            f"cluster.processes_per_node={cluster.processes_per_node}: make it a multiple of that"
        )
    if nodes > 1 and cluster.executor == "local":
        raise UserError(
            f"{nodes} machines of cluster.processes_per_node={cluster.processes_per_node} are asked for, and there is "
            "one: take CLUSTER=slurm or kubernetes (python -m reproduce: --cluster)"
        )
    return nodes


def _cluster(overrides: list[str]) -> dict[str, Any]:
    from omegaconf import OmegaConf

    from reproduce import config

    section: Any = OmegaConf.to_container(config.compose("pretrain", overrides).cluster)
    return dict(section)


def _catalogue(overrides: list[str]) -> dict[str, str]:
    from reproduce import config

    data = config.compose("pretrain", overrides).data
    return {"name": data.name, "source": data.imagenet.source}


def _fingerprint() -> str:
    """Hash of all that a composed config, and what is kept of it, depends on."""
    package = CHECKOUT / "reproduce"
    digest = hashlib.sha256(" ".join([sys.version, version("hydra-core"), version("omegaconf")]).encode())
    for kept in (Path(__file__), Path(work.__file__)):
        digest.update(kept.read_bytes())
    for path in sorted([package / "config.py", *(package / "conf").rglob("*.yaml")]):
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return digest.hexdigest()
