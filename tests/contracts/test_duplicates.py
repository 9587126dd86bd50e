"""No two cells of a scale's tables are the same computation under two names: that would count one number twice."""

import json
from collections.abc import Iterable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from evals.finetune import LabeledSubset, select_labeled
from reproduce.config import RunKind
from reproduce.config.compose import compose
from reproduce.config.identity import identity
from reproduce.data.datasets.image_folder import ImageList
from reproduce.data.prepare.synthetic import CLASS_SETS
from reproduce.harness.plan import build
from reproduce.harness.plan.model import Plan, Request
from reproduce.harness.spec import tables

TITLES = ("name", "crops.name")
"""Keys that are in a run's name and say nothing of what it computes."""
NO_PART_OF_A_RUN = ("checkpoint=", "paths.", "logging.", "cluster=", "cluster.")


@cache
def resolved(kind: RunKind, overrides: tuple[str, ...]) -> str:
    """Return what a run computes, apart from the network that it evaluates, as JSON."""
    checkpoint = ["checkpoint=x"] if kind == "evaluate" else []
    found = identity(compose(kind, [*overrides, *checkpoint]))
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


def computation(plan: Plan, run_id: str) -> tuple[str, ...]:
    """Return what a run and those behind it compute, whatever they are called."""
    run = plan.runs[run_id]
    overrides = tuple(item for item in run.overrides if not item.startswith(NO_PART_OF_A_RUN))
    return (resolved(run.kind, overrides), *(part for parent in run.parents for part in computation(plan, parent)))


def duplicates(plan: Plan, run_ids: Iterable[str]) -> set[tuple[str, str, str]]:
    """Return the scale and the names of every two different runs that are the same computation."""
    found: dict[tuple[str, ...], set[str]] = {}
    for run_id in run_ids:
        found.setdefault(computation(plan, run_id), set()).add(run_id)
    groups = [sorted(plan.runs[run_id].name for run_id in same) for same in found.values()]
    return {(plan.request.scale, one, other) for names in groups for one, other in pairwise(names)}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, composed: Path) -> dict[str, set[tuple[str, str, str]]]:
    """The duplicates of each scale."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(composed.parent)
        plans = [build.build_plan(Request(tuple(tables.names(scale)), scale)) for scale in tables.scales()]
    return {plan.request.scale: duplicates(plan, {n for cell in plan.cells for n in cell.run_ids}) for plan in plans}


@pytest.mark.parametrize("scale", tables.scales())
def test_every_cell_is_a_computation_of_its_own(scale: str, found: dict[str, set[tuple[str, str, str]]]) -> None:
    assert found[scale] == set()


def test_a_duplicate_is_found_by_what_it_computes() -> None:
    same = ("eval=knn", "name=another")
    assert resolved("evaluate", ("eval=knn",)) == resolved("evaluate", same)
    assert resolved("evaluate", ("eval=knn",)) != resolved("evaluate", (*same, "protocol.temperature=0.2"))
    assert resolved("evaluate", ("eval=knn",)) != resolved("evaluate", ("eval=knn", "seed=1"))
    generated = {"source": "generated-2", "name": "imagenet"}
    (images,) = [each for each in CLASS_SETS if each.name == "imagenet"]
    number = max(round(0.1 * images.num_train), 13)
    assert labeled({"fraction": 0.1}, generated) == labeled({"images_per_class": number}, generated)
    assert labeled({"fraction": 0.1}, generated) != labeled({"images_per_class": number - 1}, generated)
