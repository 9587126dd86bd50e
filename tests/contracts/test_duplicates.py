"""No two cells of a scale's tables are the same computation under two names: that would count one number twice."""

import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from evals.finetune import LabeledSubset, select_labeled
from reproduce.config import RunKind
from reproduce.config.compose import compose
from reproduce.config.identity import identity
from reproduce.data.datasets.image_folder import ImageList
from reproduce.data.prepare.synthetic import CLASS_SETS
from reproduce.harness.plan import build, config_cache
from reproduce.harness.plan.model import Plan, Request
from reproduce.harness.spec import tables

SCALES = [scale for scale in tables.scales() if scale != "paper"]
"""Scales that scale the paper's recipes down, which can make two of them one."""
TITLES = ("name", "crops.name", "checkpoint")
"""Keys that are in a run's name and say nothing of what it computes; of a checkpoint, its run does."""
Duplicates = dict[str, set[tuple[str, str, str]]]


def resolved(cfg: DictConfig) -> str:
    """Return what a run computes, apart from the network that it evaluates, as JSON."""
    found = identity(cfg)
    for title in TITLES:
        section, _, key = title.rpartition(".")
        (found.get(section, {}) if section else found).pop(key, None)
    if "subset" in found.get("protocol", {}):
        found["protocol"]["subset"] = labeled(found["protocol"]["subset"], found["dataset"])
    return json.dumps(found, sort_keys=True)


def labeled(subset: dict[str, Any], dataset: dict[str, Any]) -> Any:
    """Return which generated images a subset has: a share and a number per class may select the same ones."""
    if not dataset["source"].startswith("generated"):
        return subset
    (images,) = [each for each in CLASS_SETS if each.name == dataset["name"]]
    classes = sorted(images.textures)
    paths = [f"{name}/{number:04d}" for name in classes for number in range(images.num_train)]
    labels = [label for label in range(len(classes)) for _ in range(images.num_train)]
    return select_labeled(ImageList(paths, labels, classes), LabeledSubset(**subset), Path()).sha256()


def computation(plan: Plan, computed: dict[str, str], run_id: str) -> tuple[str, ...]:
    """Return what a run and those behind it compute, whatever they are called."""
    parents = plan.runs[run_id].parents
    return (computed[run_id], *(part for parent in parents for part in computation(plan, computed, parent)))


def duplicates(plan: Plan, computed: dict[str, str], run_ids: Iterable[str]) -> set[tuple[str, str, str]]:
    """Return the scale and the names of every two different runs that are the same computation."""
    found: dict[tuple[str, ...], set[str]] = {}
    for run_id in run_ids:
        found.setdefault(computation(plan, computed, run_id), set()).add(run_id)
    groups = [sorted(plan.runs[run_id].name for run_id in same) for same in found.values()]
    return {(plan.request.scale, one, other) for names in groups for one, other in pairwise(names)}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Duplicates:
    """The duplicates of each scale. The planner composes every config once; what each computes is taken from it."""
    computed: dict[str, str] = {}
    summary_of = config_cache._summary

    def keep(kind: RunKind, cfg: DictConfig) -> dict[str, Any]:
        summary = summary_of(kind, cfg)
        computed[summary["run_id"]] = resolved(cfg)
        return summary

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("nothing-composed"))
        patch.setattr(config_cache, "_summary", keep)
        plans = [build.build_plan(Request(tuple(tables.names(scale)), scale)) for scale in SCALES]
    return {
        plan.request.scale: duplicates(plan, computed, {name for cell in plan.cells for name in cell.run_ids})
        for plan in plans
    }


@pytest.mark.parametrize("scale", SCALES)
def test_every_cell_is_a_computation_of_its_own(scale: str, found: Duplicates) -> None:
    assert found[scale] == set()


def test_a_duplicate_is_found_by_what_it_computes() -> None:
    knn, another, warmer, seed = (
        resolved(compose("evaluate", ["eval=knn", *overrides]))
        for overrides in (
            ["checkpoint=x"],
            ["checkpoint=y", "name=another"],
            ["checkpoint=x", "protocol.temperature=0.2"],
            ["checkpoint=x", "seed=1"],
        )
    )
    assert knn == another and len({knn, warmer, seed}) == 3


def test_a_share_and_a_number_per_class_may_select_the_same_images() -> None:
    generated = {"source": "generated-2", "name": "imagenet"}
    (images,) = [each for each in CLASS_SETS if each.name == "imagenet"]
    number = max(round(0.1 * images.num_train), 13)
    assert labeled({"fraction": 0.1}, generated) == labeled({"images_per_class": number}, generated)
    assert labeled({"fraction": 0.1}, generated) != labeled({"images_per_class": number - 1}, generated)
    assert labeled({"fraction": 0.1}, {"source": "ILSVRC2012", "name": "imagenet"}) == {"fraction": 0.1}
