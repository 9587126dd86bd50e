"""Rehearsals in this process, for tests: of a few recipes, of their first steps, or with a config that is wrong."""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from reproduce import rehearse
from reproduce.config.identity import run_dir
from reproduce.data.prepare import synthetic
from reproduce.harness.preflight.rehearsals import TRUNK, Rehearsal, rehearsals
from reproduce.harness.spec.golden import Golden, Values
from reproduce.rehearsal import RANDOM_TRUNK, Request


def plan(images: Path, recipes: Collection[str]) -> dict[str, Rehearsal]:
    """The rehearsals of some recipes at scale smoke by recipe, in fp64 where there is one; images are generated."""
    synthetic.generate(images, size="rehearsal_smoke")
    found = {each.name: each for each in rehearsals("smoke", str(images), ("fp64", "fp32"), only=recipes)}
    return {name: found.get(f"{name}.fp64") or found.get(f"{name}.fp32") or found[name] for name in (TRUNK, *recipes)}


def random_trunk(planned: Mapping[str, Rehearsal], results: Path) -> Path:
    """Make the trunk that the rehearsals of evaluations evaluate; return its checkpoint."""
    request = Request(**planned[TRUNK].request())
    rehearse.rehearse(request, results)
    return run_dir(OmegaConf.create({**request.config, "paths": {"results": str(results)}})) / "checkpoint.pt"


def take(
    rehearsal: Rehearsal, trunk: Path, results: Path, num_steps: int, changes: Mapping[str, Any] | None = None
) -> Values:
    """Take the first steps of a rehearsal, with some keys of its config changed."""
    cfg = OmegaConf.create(rehearsal.config)
    for key, value in (changes or {}).items():
        OmegaConf.update(cfg, key, value)
    if cfg.get("checkpoint") == RANDOM_TRUNK:
        cfg.checkpoint = str(trunk)
    config: Any = OmegaConf.to_container(cfg)
    ends_early = num_steps < rehearsal.num_steps or rehearsal.ends_early
    try:
        return rehearse.rehearse(
            Request(rehearsal.name, rehearsal.kind, config, num_steps=num_steps, ends_early=ends_early), results
        )
    finally:
        torch.set_default_dtype(torch.float32)


def cut(recorded: Golden, num_steps: int) -> Golden:
    """What is recorded of the first steps: without what comes after the last one, if that is not among them."""
    num_recorded = len(recorded.values.get("learning rate 0", ()))
    if num_steps >= num_recorded:
        return recorded
    kept = [name for name, each in recorded.values.items() if len(each) == num_recorded or name.startswith("initial")]
    some = recorded.restricted_to(kept)
    values, tolerances = (
        {name: each[:num_steps] if len(each) == num_recorded else each for name, each in of.items()}
        for of in (some.values, some.tolerances)
    )
    return dataclasses.replace(some, values=values, tolerances=tolerances)  # type: ignore[arg-type]
