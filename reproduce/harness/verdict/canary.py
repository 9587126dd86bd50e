"""Canaries: does the authors' own checkpoint give their number under our evaluation? If not, nothing else would."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import DictConfig, OmegaConf

from models.zoo import entries
from models.zoo.entries import PREFIX
from reproduce.config.compose import compose
from reproduce.config.identity import identity
from reproduce.errors import UserError
from reproduce.harness import results
from reproduce.harness.plan.model import Run
from reproduce.harness.spec import tables
from reproduce.harness.spec.tables import BestOf, Column, Margin
from reproduce.harness.spec.typed_yaml import load_yaml
from reproduce.harness.verdict import stats as statistics

FOOTNOTE = "° not preceded by its canary (tables/canaries.yaml): it does not count as reproduced."
"""Below cells that are marked so."""

State = Literal["agreed", "disagreed", "missing"]
Result = dict[str, Any]


@dataclass(frozen=True)
class Canary:
    """A printed number that the authors' checkpoint should give."""

    table: str
    row: str
    column: str


@dataclass(frozen=True)
class File:
    """`tables/canaries.yaml`: the checkpoint's file name, and its numbers."""

    checkpoint: str
    canaries: list[Canary]


@dataclass(frozen=True)
class Song:
    """What the canaries of one evaluation say."""

    state: State
    reason: str


def load() -> File:
    """Read the canaries. Raises `UserError` for what is wrong in their file."""
    found: File = load_yaml(File, tables.TABLES_DIR / "canaries.yaml")
    return found


@dataclass(frozen=True)
class Expectation:
    """What a canary comes to: the column that measures it, what is printed, and how closely it should come."""

    column: Column
    printed: float
    margin: Margin


def expectations(file: File) -> Iterator[Expectation]:
    """What each canary of a file comes to."""
    for canary in file.canaries:
        table = tables.load(canary.table, "paper")
        column = table.columns[canary.column]
        (row,) = [row for row in table.rows if row.label == canary.row]
        printed, margin = (
            tables.parse_printed(row.cells[canary.column]),
            table.margin(row, canary.column, public_weights=True),
        )
        assert printed is not None and margin is not None
        yield Expectation(column, printed, margin)


def listen(run: Run) -> Song:
    """What the canaries of an evaluation say, by results of the same evaluation of the authors' checkpoint.

    Of an evaluation whose authors took the best of several settings, the best counts here too.
    """
    file = load()
    known = [each for each in expectations(file) if each.column.eval == run.name]
    if not known:
        return Song("missing", f"tables/canaries.yaml names none for {run.name}")
    words, agreed, shas = [], True, set[str]()
    for each in known:
        found = _results(run, file.checkpoint, each.column.best_of)
        if not found:
            return Song("missing", f"no result of {run.name} on the authors' {file.checkpoint}")
        metric, value = each.column.metric, _mean(found, each.column.metric)
        agreed &= abs(value - each.printed) <= each.margin.points + statistics.ROUNDING
        words.append(f"{metric} {value:.2f} where {each.printed:g} is printed (margin {each.margin.points:g})")
        shas |= {str(result.get("provenance", {}).get("checkpoint_sha256"))[:12] for result in found}
    whose = f"the authors' {file.checkpoint} (sha256 {', '.join(sorted(shas))}) gave {'; '.join(words)}"
    return Song("agreed" if agreed else "disagreed", whose)


def _mean(found: list[Result], metric: str) -> float:
    return statistics.mean([float(result["metrics"][metric]) for result in found])


def _results(run: Run, checkpoint: str, best_of: BestOf | None) -> list[Result]:
    """Results of `run`'s evaluation, config and all, on a file of this name: of its best setting, where it has any."""
    chosen = best_of.key if best_of else ""
    by_setting: dict[str, list[Result]] = {}
    same: dict[str, Any] | None = None
    for path in sorted(Path(run.folder).parent.glob(f"{run.name}-s*-*/result.json")):
        result, given = results.load(path, path.parent.name), path.with_name("config.yaml")
        if result.get("parents") or not given.exists():
            continue
        theirs = _config(given)
        if Path(_address(str(theirs.checkpoint))).name != checkpoint:
            continue
        setting = str(OmegaConf.select(theirs, chosen)) if chosen else ""
        same = same or _protocol(compose("evaluate", run.overrides), chosen)
        if _protocol(theirs, chosen) == same:
            by_setting.setdefault(setting, []).append(result)
    if best_of is None or len(by_setting) < len(best_of.values):
        return [] if best_of else by_setting.get("", [])
    return max(by_setting.values(), key=lambda found: _mean(found, best_of.metric))


def _config(path: Path) -> DictConfig:
    try:
        found = OmegaConf.load(path)
    except (yaml.YAMLError, UnicodeDecodeError):
        found = None
    if not isinstance(found, DictConfig) or "checkpoint" not in found:
        raise UserError(f"{path} is damaged: delete its folder, and evaluate the authors' checkpoint again")
    return found


def _address(given: str) -> str:
    """Where a checkpoint of the zoo comes from; any other is its own address."""
    return entries.get_entry(given.removeprefix(PREFIX)).url or "" if given.startswith(PREFIX) else given


def _protocol(cfg: DictConfig, chosen: str) -> dict[str, Any]:
    """What an evaluation is, whatever it evaluates. (How pixels are normalised belongs to the checkpoint.)

    `chosen` is the key of what the best is chosen from, where there is any.
    """
    cfg.checkpoint, cfg.seed = "", 0
    if chosen:
        OmegaConf.update(cfg, chosen, None)
    return {key: value for key, value in identity(cfg).items() if key != "normalize"}
