"""Canaries: the authors' own checkpoint must give the authors' numbers under our evaluation before ours count."""

from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from models.zoo import entries
from models.zoo.entries import PREFIX
from reproduce.config.compose import compose
from reproduce.config.identity import identity
from reproduce.errors import UserError
from reproduce.harness import results
from reproduce.harness.plan.model import Run
from reproduce.harness.spec import canaries
from reproduce.harness.spec.tables import BestOf
from reproduce.harness.verdict import stats
from reproduce.harness.verdict.notes import CanaryMeasurement, CanaryResult, CanaryState

Result = dict[str, Any]


def check_canaries(run: Run) -> CanaryResult:
    """Compare results of the run's evaluation on the authors' checkpoint with what the paper prints.

    Every result must agree by itself: a mean would let one error hide another. If the authors took the best of several
    variants of the evaluation, the best variant counts here too. A file is the authors' by its SHA-256, not by its
    name: a network of our own is refused, and so is any other file if theirs is known. As long as it is not, the result
    is `unverified`.
    """
    wanted = [target for target in canaries.targets(canaries.load()) if target.evaluation == run.name]
    if not wanted:
        return CanaryResult("missing", run.name)
    measured, agreed, shas, refused = [], True, set[str](), set[str]()
    known = [_known_sha256(target.checkpoint) for target in wanted]
    own = _own_checkpoints(Path(run.folder).parent)
    for target, pinned in zip(wanted, known, strict=True):
        found = []
        for result in _results(run, target.checkpoint, target.column.best_of):
            sha256 = _checkpoint_sha256(result)
            if sha256 and sha256 in own:
                refused.add(f"{result['run_id']} is of our own {own[sha256]}")
            elif pinned and sha256 != pinned:
                refused.add(f"{result['run_id']} is of a file with another SHA-256 than the authors'")
            else:
                found.append(result)
        if not found:
            return CanaryResult("missing", run.name, target.checkpoint, refused=tuple(sorted(refused)))
        metric, margin = target.column.metric, target.margin.points
        for value in sorted({float(result["metrics"][metric]) for result in found}):
            agreed &= abs(value - target.printed) <= margin + stats.ROUNDING
            measured.append(CanaryMeasurement(metric, value, target.printed, margin))
        shas |= {_checkpoint_sha256(result)[:12] or "unknown" for result in found}
    state: CanaryState = "disagreed" if not agreed else "agreed" if all(known) else "unverified"
    return CanaryResult(
        state, run.name, wanted[0].checkpoint, tuple(sorted(shas)), tuple(measured), tuple(sorted(refused))
    )


def _known_sha256(checkpoint: str) -> str | None:
    """Return the SHA-256 of the zoo's file of this name, or None as long as nobody has downloaded it."""
    named = [item for item in entries.load_entries().values() if Path(item.url or "").name == checkpoint]
    return next((sha256 for item in named if (sha256 := entries.known_sha256(item))), None)


def _own_checkpoints(folder: Path) -> dict[str, str]:
    """Return the run_ids of our pretrainings beside a run, by the SHA-256 of their checkpoints."""
    found = (results.load(path, path.parent.name) for path in sorted(folder.glob("*/result.json")))
    return {_checkpoint_sha256(result): result["run_id"] for result in found if result.get("kind") == "pretrain"}


def _checkpoint_sha256(result: Result) -> str:
    return str(result.get("provenance", {}).get("checkpoint_sha256") or "")


def _mean(found: list[Result], metric: str) -> float:
    return stats.mean([float(result["metrics"][metric]) for result in found])


def _results(run: Run, checkpoint: str, best_of: BestOf | None) -> list[Result]:
    """Return results of the run's evaluation, with the same protocol, on a checkpoint of this file name.

    With `best_of`, return those of the best variant, or none before every variant has a result.
    """
    key = best_of.key if best_of else ""
    by_variant: dict[str, list[Result]] = {}
    ours: dict[str, Any] | None = None
    for path in sorted(Path(run.folder).parent.glob(f"{run.name}-s*-*/result.json")):
        result, config_file = results.load(path, path.parent.name), path.with_name("config.yaml")
        if result.get("parents") or not config_file.exists():
            continue
        theirs = _config(config_file)
        if Path(_url(str(theirs.checkpoint))).name != checkpoint:
            continue
        variant = str(OmegaConf.select(theirs, key)) if key else ""
        if best_of and variant not in map(str, best_of.values):
            continue
        ours = ours or _protocol(compose("evaluate", run.overrides), key)
        if _protocol(theirs, key) == ours:
            by_variant.setdefault(variant, []).append(result)
    if best_of is None or len(by_variant) < len(best_of.values):
        return [] if best_of else by_variant.get("", [])
    return max(by_variant.values(), key=lambda found: _mean(found, best_of.metric))


def _config(path: Path) -> DictConfig:
    try:
        found = OmegaConf.load(path)
    except (yaml.YAMLError, UnicodeDecodeError):
        found = None
    if not isinstance(found, DictConfig) or "checkpoint" not in found:
        raise UserError(f"{path} is damaged. Delete its folder, and evaluate the authors' checkpoint again.")
    return found


def _url(checkpoint: str) -> str:
    """Return the URL of a checkpoint of the zoo; return any other checkpoint as it is."""
    if not checkpoint.startswith(PREFIX):
        return checkpoint
    return entries.get_entry(checkpoint.removeprefix(PREFIX)).url or ""


def _protocol(cfg: DictConfig, variant_key: str) -> dict[str, Any]:
    """Return the config of an evaluation without its checkpoint, seed and variant.

    How pixels are normalised belongs to the checkpoint. `variant_key` is the key that variants differ in, or "".
    """
    cfg.checkpoint, cfg.seed = "", 0
    if variant_key:
        OmegaConf.update(cfg, variant_key, None)
    return {key: value for key, value in identity(cfg).items() if key != "normalize"}
