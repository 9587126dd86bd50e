"""What a request comes to: which runs make which cells. Equal runs are one."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from models.zoo import entries
from models.zoo.entries import Released
from reproduce.harness.plan.config_cache import Composer
from reproduce.harness.plan.model import CACHE, Cell, Kind, Plan, Request, Run
from reproduce.harness.spec import claims, tables
from reproduce.harness.spec.claims import Claim, Measurement
from reproduce.harness.spec.tables import Row, Table

RUN_ENDINGS = ("result.json", "failure.json")
"""The files of which a run that has ended leaves one."""
RUN_ID = re.compile(r"(?P<name>.+)-s(?P<seed>\d+)-[0-9a-f]{10}")


def make(request: Request) -> Plan:
    """Plan a request. Raises `UserError` for what the tables or the configs do not know."""
    names = [name for name in dict.fromkeys(request.tables) if name != claims.TARGET]
    chosen = {name: tables.load(name, request.scale) for name in names}
    return _make(request, chosen, claims.load() if claims.TARGET in request.tables else [])


def for_claims(request: Request, chosen: list[Claim]) -> Plan:
    """Plan only what some claims need, for the same scale, data and seeds as `request`."""
    return _make(request, {}, chosen)


def for_seeds(plan: Plan, seeds: tuple[int, ...]) -> Plan:
    """Plan the same for other seeds."""
    return _make(dataclasses.replace(plan.request, seeds=seeds), plan.tables, plan.claims)


def plan_for_other_seeds(plan: Plan) -> Plan | None:
    """Plan the same for the seeds outside the request that left a result or a failure; None if there are none."""
    names = {run.name for run in plan.runs.values()}
    homes = {Path(run.folder).parent for run in plan.runs.values()}
    left = {path.parent for home in homes for path in home.glob("*/*.json") if path.name in RUN_ENDINGS}
    others = [folder.name for folder in left if folder.name not in plan.runs]
    runs = [found for name in others if (found := RUN_ID.fullmatch(name)) and found["name"] in names]
    seeds = {int(found["seed"]) for found in runs} - set(plan.request.seeds)
    return for_seeds(plan, tuple(sorted(seeds))) if seeds else None


def from_released(plan: Plan) -> Plan:
    """Plan the same from public weights: FROM=released."""
    return _make(dataclasses.replace(plan.request, source="released"), plan.tables, plan.claims)


def _make(request: Request, chosen: dict[str, Table], asked: list[Claim]) -> Plan:
    composer = Composer(request)
    catalogue = composer.catalogue(request.overrides())
    data, pictures = data_folder(request, catalogue)
    runs: dict[str, Run] = {}
    cells: list[Cell] = []
    for name, table in chosen.items():
        maker = _Maker(request, composer, runs, [*_where(data), f"logging.wandb_group={name}-{request.scale}"])
        cells += _released_cells(maker, table) if request.source == "released" else _trained_cells(maker, table)
    maker = _Maker(request, composer, runs, [*_where(data), f"logging.wandb_group={claims.TARGET}-{request.scale}"])
    for claim in asked:
        cells += _claims_cells(maker, claim)
    own_pictures = catalogue == composer.catalogue([f"scale={request.scale}"])
    cluster = composer.cluster
    composer.save()
    return Plan(request, chosen, runs, cells, data, pictures, own_pictures, asked, cluster)


def _trained_cells(maker: "_Maker", table: Table) -> Iterator[Cell]:
    for row, key, experiment in table.reproducible_cells():
        column = table.columns[key]
        if column.measurement:
            measured = maker.measurements_of(experiment, column.measurement)
            yield Cell(table.table, row.label, key, experiment, column.measurement, column.metric, measured)
        else:
            runs_of = partial(maker.runs_of, experiment, column.eval or "", column.num_runs)
            yield _evaluated(table, row, key, experiment, runs_of)
    for row in table.curve_rows():
        assert row.pretrain
        yield Cell(table.table, row.label, "", row.pretrain, "", "", maker.runs_of(row.pretrain))


def _released_cells(maker: "_Maker", table: Table) -> Iterator[Cell]:
    """Of every row whose weights are public, others' methods among them, the columns that an evaluation makes."""
    for row in table.rows:
        item = public_weights(table, row)
        for key, column in table.columns.items():
            if item and item.address and column.eval and table.has_cell(row, key):
                runs_of = partial(maker.released_runs_of, item, column.eval, column.num_runs)
                yield _evaluated(table, row, key, entries.PREFIX + item.name, runs_of)


def _claims_cells(maker: "_Maker", claim: Claim) -> Iterator[Cell]:
    """The numbers that a claim compares; of public weights, those of parts whose every side has some."""
    cell = partial(Cell, claims.TARGET, claim.claim)
    if maker.request.source == "released":
        comparable = [
            need for part in claim.parts() if not without_weights(part.measurements()) for need in part.measurements()
        ]
        for need in dict.fromkeys(comparable):
            item = entries.entry(need.pretrain)
            measured = maker.released_runs_of(item, need.eval)
            yield cell(need.pretrain, entries.PREFIX + item.name, need.eval, need.metric, measured)
        return
    for need in claim.measurements():
        place = need.pretrain if need.eval else ""
        yield cell(place, need.pretrain, need.eval, need.metric, maker.runs_of(need.pretrain, need.eval))


def without_weights(needs: Iterable[Measurement]) -> str:
    """Why numbers of ours cannot be measured on public weights, a sentence; "" where all of them can."""
    zoo = entries.load()
    for need in needs:
        item = zoo.get(need.pretrain)
        if not (item and item.address):
            why = item.unavailable if item else "none are known"
            return f"No public weights of {need.pretrain} (models/zoo/released.yaml): {why}; FROM=scratch trains it."
        if not need.eval:
            return f"The public weights of {need.pretrain} come without a curve; FROM=scratch makes one."
    return ""


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
    zoo = entries.load()
    naming = [item for item in zoo.values() if item.fills.get(table.table) == row.label]
    return naming[0] if naming else zoo.get(row.pretrain or "")


@dataclass
class _Maker:
    """Adds to `runs` what a number needs."""

    request: Request
    composer: Composer
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

    def released_runs_of(self, item: Released, evaluation: str, num_runs: int = 1, setting: str = "") -> dict[int, str]:
        """By seed, the run_id of an evaluation of public weights."""
        weights = [f"checkpoint='{entries.PREFIX}{item.name}'", f"normalize={item.normalize}"]
        found = {}
        for seed in (seed for asked in self.request.seeds for seed in _own_seeds(asked, num_runs)):
            asked = [f"eval={evaluation}", *weights, *self.request.overrides(), f"seed={seed}", *_given(setting)]
            run = self.composer.run("evaluate", asked, self.around)
            run = dataclasses.replace(run, of=", ".join([f"{entries.PREFIX}{item.name}", *_given(setting)]))
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
    return [f"paths.data_root={quoted(data)}"] if data else []


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
