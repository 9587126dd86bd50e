"""Build the plan of a request: which runs fill which cells. Equal configs are one run."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from models.zoo import entries
from models.zoo.entries import ReleasedWeights
from reproduce.config import RunKind
from reproduce.config.identity import RUN_ID
from reproduce.config.quoting import hydra_quote
from reproduce.config.validate import MAX_SEED
from reproduce.errors import UserError
from reproduce.files import read_json
from reproduce.harness.plan.config_cache import ConfigCache, is_fixed_checkpoint
from reproduce.harness.plan.model import CACHE, Cell, Plan, Request, Run
from reproduce.harness.spec import claims, tables
from reproduce.harness.spec.claims import Claim, Measurement
from reproduce.harness.spec.tables import Row, Table
from reproduce.system import CONF_DIR

RUN_ENDINGS = ("result.json", "failure.json")
"""The files of which a run that has ended leaves one."""
UNTRAINED = "random"
"""The experiment that trains nothing: it has the other keys of a measurement of a network that no experiment has."""


def build_plan(request: Request) -> Plan:
    """Plan a request. Raises `UserError` for an unknown table, and for an error in a table or a config."""
    names = [name for name in dict.fromkeys(request.tables) if name != claims.TARGET]
    chosen = {name: tables.load(name, request.scale) for name in names}
    return _build(request, chosen, claims.load() if claims.TARGET in request.tables else [])


def plan_for_claims(request: Request, chosen: list[Claim]) -> Plan:
    """Plan only the measurements of some claims, for the scale, data and seeds of `request`."""
    return _build(request, {}, chosen)


def plan_for_seeds(plan: Plan, seeds: tuple[int, ...]) -> Plan:
    """Plan the same tables and claims for other seeds."""
    return _rebuild(plan, dataclasses.replace(plan.request, seeds=seeds))


def plan_for_other_seeds(plan: Plan) -> Plan | None:
    """Plan the same for the seeds beyond the request that left a result or a failure; return None if there are none."""
    names = {run.name for run in plan.runs.values()}
    homes = {Path(run.folder).parent for run in plan.runs.values()}
    left = {path.parent for home in homes for path in home.glob("*/*.json") if path.name in RUN_ENDINGS}
    others = [folder.name for folder in left if folder.name not in plan.runs]
    runs = [found for name in others if (found := RUN_ID.fullmatch(name)) and found["name"] in names]
    seeds = {seed for found in runs if (seed := int(found["seed"])) <= MAX_SEED} - set(plan.request.seeds)
    return plan_for_seeds(plan, tuple(sorted(seeds))) if seeds else None


def plan_from_released(plan: Plan) -> Plan:
    """Plan the same tables and claims from public weights: FROM=released."""
    return _rebuild(plan, dataclasses.replace(plan.request, source="released"))


def _rebuild(plan: Plan, request: Request) -> Plan:
    """Plan the same tables and claims for another request, of the same images."""
    rebuilt = _build(request, plan.tables, plan.claims, plan.composed)
    return dataclasses.replace(rebuilt, content_hashes=plan.content_hashes)


def _build(
    request: Request, chosen: dict[str, Table], chosen_claims: list[Claim], composed: dict[str, Any] | None = None
) -> Plan:
    configs = ConfigCache(request, composed=composed or {})
    data = configs.data(request.overrides())
    data_root, generated_data_dir = data_folders(request, data)
    runs: dict[str, Run] = {}
    builders = {
        name: _RunBuilder(request, configs, runs, _run_overrides(data_root, name, request.scale))
        for name in (*chosen, claims.TARGET)
    }

    def all_cells() -> list[Cell]:
        cells_of = _released_cells if request.source == "released" else _trained_cells
        of_tables = [cell for name, table in chosen.items() for cell in cells_of(builders[name], table)]
        return [*of_tables, *(cell for claim in chosen_claims for cell in _claim_cells(builders[claims.TARGET], claim))]

    configs.compose_ahead(all_cells)
    runs.clear()  # of stand-ins
    cells = all_cells()
    same_catalog = data == configs.data([f"scale={request.scale}"])
    uses_reference_data = same_catalog and not _in_place_of_generated(data, data_root, generated_data_dir)
    cluster = configs.cluster
    configs.save()
    return Plan(
        *(request, chosen, runs, cells, data_root, generated_data_dir, uses_reference_data, chosen_claims, cluster),
        composed=configs.composed,
    )


def _trained_cells(builder: "_RunBuilder", table: Table) -> Iterator[Cell]:
    """Yield the cells that our own training fills, and the curves that a figure plots."""
    for row, key, experiment in table.reproducible_cells():
        column = table.columns[key]
        if column.measurement:
            measured = builder.measurements_of(experiment, column.measurement, row.architecture)
            yield Cell(table.table, row.label, key, experiment, column.measurement, column.metric, measured)
        else:
            runs_of = partial(builder.runs_of, experiment, table.eval_of(row, key) or "", column.num_runs)
            yield _evaluated(table, row, key, experiment, runs_of)
    for row in table.curve_rows():
        assert row.pretrain
        yield Cell(table.table, row.label, "", row.pretrain, "", "", builder.runs_of(row.pretrain))


def _released_cells(builder: "_RunBuilder", table: Table) -> Iterator[Cell]:
    """Yield the evaluated cells of every row with public weights, other authors' methods among them."""
    for row in table.rows:
        item = public_weights(table, row)
        for key, column in table.columns.items():
            evaluation = table.eval_of(row, key)
            if item and item.url and evaluation and table.has_cell(row, key):
                runs_of = partial(builder.released_runs_of, item, evaluation, column.num_runs)
                yield _evaluated(table, row, key, entries.PREFIX + item.name, runs_of)


def _claim_cells(builder: "_RunBuilder", claim: Claim) -> Iterator[Cell]:
    """Yield the cells that a claim compares; from public weights, only those of parts that have all weights."""
    cell = partial(Cell, claims.TARGET, claim.claim)
    if builder.request.source == "released":
        parts = [part for part in claim.parts() if not missing_weights_reason(part.measurements())]
        for each in dict.fromkeys(each for part in parts for each in part.measurements()):
            item = entries.get_entry(each.pretrain)
            runs = builder.released_runs_of(item, each.eval)
            yield cell(each.pretrain, entries.PREFIX + item.name, each.eval, each.metric, runs)
        return
    for each in claim.measurements():
        column = each.pretrain if each.eval else ""
        yield cell(column, each.pretrain, each.eval, each.metric, builder.runs_of(each.pretrain, each.eval))


def missing_weights_reason(measurements: Iterable[Measurement]) -> str:
    """Return a sentence on why measurements cannot be made on public weights, or "" if all of them can."""
    zoo = entries.load_entries()
    for each in measurements:
        item = zoo.get(each.pretrain)
        if not (item and item.url):
            why = item.unavailable if item else "none are known"
            return f"No public weights of {each.pretrain} (models/zoo/released.yaml): {why}; FROM=scratch trains it."
        if not each.eval:
            return f"The public weights of {each.pretrain} come without a curve; FROM=scratch makes one."
    return ""


def _evaluated(table: Table, row: Row, key: str, pretrain: str, runs_of: Callable[..., dict[int, str]]) -> Cell:
    """Return the cell of an evaluation, with the runs of each value that its best is selected from."""
    column = table.columns[key]
    cell = partial(Cell, table.table, row.label, key, pretrain, table.eval_of(row, key) or "", column.metric)
    if column.best_of is None:
        return cell(runs_of())
    overrides = [f"{column.best_of.key}={value:g}" for value in column.best_of.values]
    runs_by_override = {override: runs_of(override) for override in overrides}
    return cell(runs_by_override[overrides[0]], runs_by_override, column.best_of.metric)


def public_weights(table: Table, row: Row) -> ReleasedWeights | None:
    """Return the zoo's entry for a row: the one that names the row, or that of its experiment; None without either."""
    zoo = entries.load_entries()
    naming = [item for item in zoo.values() if item.table_rows.get(table.table) == row.label]
    return naming[0] if naming else zoo.get(row.pretrain or "")


def preprocessing_overrides(item: ReleasedWeights, evaluation: str) -> list[str]:
    """Return the Hydra overrides that prepare images for an evaluation as public weights need them.

    Weights that take one of several normalizations get the protocol's own.
    """
    normalizations = entries.accepted_normalizations(item)
    overrides = [] if len(normalizations) > 1 else [f"normalize={item.normalize}"]
    path = CONF_DIR / "eval" / f"{evaluation}.yaml"
    protocol = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)["protocol"]
    return overrides + list(itertools.chain.from_iterable(entries.center_crop_overrides(item, protocol).values()))


@dataclass
class _RunBuilder:
    """Adds the runs behind a number to `runs`."""

    request: Request
    configs: ConfigCache
    runs: dict[str, Run]
    run_overrides: list[str]
    """Overrides that are no part of a run's name: where its data is, how it is logged."""

    def runs_of(self, experiment: str, evaluation: str = "", num_runs: int = 1, override: str = "") -> dict[int, str]:
        """Return the run ids of an experiment's evaluation, or of the experiment itself, by seed.

        If the paper averages an evaluation over `num_runs` runs, each pretraining has that many evaluations, with seeds
        of their own: 0 to 4 for the pretraining of seed 0, 5 to 9 for that of seed 1. `override` changes the config.
        """
        return {
            seed: self._last_run(experiment, evaluation, override, pretrained, seed).run_id
            for pretrained in self.request.seeds
            for seed in _own_seeds(pretrained, num_runs)
        }

    def released_runs_of(
        self, item: ReleasedWeights, evaluation: str, num_runs: int = 1, override: str = ""
    ) -> dict[int, str]:
        """Return the run ids of an evaluation of public weights, by seed."""
        weights = [f"checkpoint='{entries.PREFIX}{item.name}'", *preprocessing_overrides(item, evaluation)]
        found = {}
        for seed in (seed for requested in self.request.seeds for seed in _own_seeds(requested, num_runs)):
            overrides = [f"eval={evaluation}", *weights, *self.request.overrides(), f"seed={seed}", *_as_list(override)]
            run = self.configs.run("evaluate", overrides, self.run_overrides)
            run = dataclasses.replace(run, parent_name=", ".join([f"{entries.PREFIX}{item.name}", *_as_list(override)]))
            found[seed] = self.runs.setdefault(run.run_id, run).run_id
        return found

    def measurements_of(self, network: str, measurement: str, architecture: str | None = None) -> dict[int, str]:
        """Return the run ids of a measurement of a network, by seed: an experiment's, or one that has a name."""
        experiment = UNTRAINED if architecture else network
        overrides = [f"experiment={experiment}", f"measurement={measurement}", f"name={measurement}_{network}"]
        overrides += [f"network.architecture={architecture}"] if architecture else []
        common = self.request.overrides()
        runs = {
            seed: self.configs.run("measure", [*overrides, *common, f"seed={seed}"], self.run_overrides)
            for seed in self.request.seeds
        }
        self.runs.update((run.run_id, run) for run in runs.values())
        return {seed: run.run_id for seed, run in runs.items()}

    def _last_run(self, experiment: str, evaluation: str, override: str, pretrained: int, seed: int) -> Run:
        common = self.request.overrides()
        first = [f"experiment={experiment}", *common, f"seed={pretrained}"]
        pretraining = self.configs.run("pretrain", first, self.run_overrides)
        self.runs.setdefault(pretraining.run_id, pretraining)
        if not evaluation:
            return pretraining
        overrides = [
            f"eval={evaluation}",
            f"checkpoint={pretraining.run_id}",
            *common,
            f"seed={seed}",
            *_as_list(override),
        ]
        run = self.configs.run("evaluate", overrides, self.run_overrides, pretraining)
        run = dataclasses.replace(run, parent_name=", ".join([run.parent_name, *_as_list(override)]))
        return self.runs.setdefault(run.run_id, run)


def _own_seeds(pretrained: int, num_runs: int) -> range:
    """Return the seeds of the `num_runs` evaluations of the pretraining of seed `pretrained`."""
    return range(pretrained * num_runs, (pretrained + 1) * num_runs)


def _as_list(override: str) -> list[str]:
    return [override] if override else []


def single_run_plan(
    request: Request, kind: RunKind, choice: str, checkpoint: str = "", overrides: tuple[str, ...] = ()
) -> Plan:
    """Plan one run by itself, with the run_id that a table would give it. `overrides` are Hydra's, and come last."""
    configs = ConfigCache(request)
    data_root, generated_data_dir = data_folders(request, configs.data(request.overrides()))
    what = (
        [f"experiment={choice}"] if kind == "pretrain" else [f"eval={choice}", f"checkpoint={hydra_quote(checkpoint)}"]
    )
    run = configs.run(
        kind, [*what, *request.overrides(), f"seed={request.seeds[0]}", *overrides], _run_overrides(data_root)
    )
    plan = Plan(request, {}, {run.run_id: run}, [], data_root, generated_data_dir, False, cluster=configs.cluster)
    if not overrides and (kind == "pretrain" or is_fixed_checkpoint(checkpoint)):
        configs.save()
    return plan


def _run_overrides(data_root: str, table: str = "", scale: str = "") -> list[str]:
    where = [f"paths.data_root={hydra_quote(data_root)}"] if data_root else []
    return [*where, f"logging.wandb_group={table}-{scale}"] if table else where


def _in_place_of_generated(data: dict[str, str], data_root: str, generated_data_dir: str) -> bool:
    """Return whether DATA has images of its own where generated ones are expected, which leave a manifest."""
    if data["name"] != "generated" or generated_data_dir:
        return False
    try:
        found = read_json(Path(data_root) / "manifest.json")
    except (UserError, OSError):
        return True
    return not isinstance(found, dict) or found.get("version") != data["source"]


def data_folders(request: Request, data: dict[str, str]) -> tuple[str, str]:
    """Return the folder of the images ("" without DATA), and the folder to generate them in ("" to generate none).

    Without DATA, generated images go below `.cache`, in a folder named after the generator's version.
    """
    if data["name"] != "generated":
        return request.data or "", ""
    folder = request.data or str(CACHE / "data" / data["source"])
    below_cache = CACHE.resolve() in Path(folder).resolve().parents
    return folder, folder if below_cache else ""
