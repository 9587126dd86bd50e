"""Canaries: does the authors' own checkpoint give their number under our evaluation? If not, nothing else would."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from reproduce import config
from reproduce.data import released
from reproduce.data.released import PREFIX
from reproduce.files import read_json
from reproduce.harness import statistics, tables
from reproduce.harness.plan import Run
from reproduce.harness.tables import Margin

FOOTNOTE = "° not preceded by its canary (tables/canaries.yaml): it does not count as reproduced."
"""Below cells that are marked so."""

State = Literal["agreed", "disagreed", "missing"]


@dataclass(frozen=True)
class Canary:
    """A printed number that the authors' checkpoint should give, and how closely."""

    table: str
    row: str
    column: str
    margin: Margin


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
    found: File = tables.read(File, tables.TABLES / "canaries.yaml")
    return found


def listen(run: Run) -> Song:
    """What the canaries of an evaluation say, by results of the same evaluation of the authors' checkpoint."""
    file = load()
    known = [song for song in _expectations(file) if song[1] == run.name]
    if not known:
        return Song("missing", f"tables/canaries.yaml names none for {run.name}")
    found = list(_results(run, file.checkpoint))
    if not found:
        return Song("missing", f"no result of {run.name} on the authors' {file.checkpoint}")
    words, agreed = [], True
    for canary, _, metric, expected in known:
        value = statistics.mean([float(result["metrics"][metric]) for result in found])
        agreed &= abs(value - expected) <= canary.margin.points + statistics.ROUNDING
        words.append(f"{metric} {value:.2f} where {expected:g} is printed (margin {canary.margin.points:g})")
    shas = {str(result.get("provenance", {}).get("checkpoint_sha256"))[:12] for result in found}
    whose = f"the authors' {file.checkpoint} (sha256 {', '.join(sorted(shas))}) gave {'; '.join(words)}"
    return Song("agreed" if agreed else "disagreed", whose)


def _expectations(file: File) -> Iterator[tuple[Canary, str, str, float]]:
    """Each canary with its evaluation and metric, and what is printed."""
    for canary in file.canaries:
        table = tables.load(canary.table, "paper")
        column = table.columns[canary.column]
        (row,) = [row for row in table.rows if row.label == canary.row]
        expected = tables.number(row.cells[canary.column])
        assert column.eval and expected is not None
        yield canary, column.eval, column.metric, expected


def _results(run: Run, checkpoint: str) -> Iterator[dict[str, Any]]:
    """Results of `run`'s evaluation, config and all, on a file of this name."""
    same: dict[str, Any] | None = None
    for path in sorted(Path(run.folder).parent.glob(f"{run.name}-s*-*/result.json")):
        result = read_json(path)
        if result.get("parents") or not (path.parent / "config.yaml").exists():
            continue
        theirs = OmegaConf.load(path.parent / "config.yaml")
        assert isinstance(theirs, DictConfig)
        if Path(_address(str(theirs.checkpoint))).name != checkpoint:
            continue
        same = same or _protocol(config.compose("evaluate", run.overrides))
        if _protocol(theirs) == same:
            yield result


def _address(given: str) -> str:
    """Where a checkpoint of the zoo comes from; any other is its own address."""
    return released.entry(given.removeprefix(PREFIX)).address or "" if given.startswith(PREFIX) else given


def _protocol(cfg: DictConfig) -> dict[str, Any]:
    """What an evaluation is, whatever it evaluates. (How pixels are normalised belongs to the checkpoint.)"""
    cfg.checkpoint, cfg.seed = "", 0
    return {key: value for key, value in config.identity(cfg).items() if key != "normalize"}
