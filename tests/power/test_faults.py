"""Whatever is wrong in a recipe leaves its recorded first steps: faults are planted one at a time, and preflight names
the number that noticed.

`make power` runs them under an arithmetic that no tolerance was measured under.
"""

import dataclasses
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from reproduce import rehearse
from reproduce.config.identity import run_dir
from reproduce.data.prepare import synthetic
from reproduce.harness.preflight.rehearsals import TRUNK, Rehearsal, rehearsals
from reproduce.harness.spec import golden
from reproduce.harness.spec.golden import Golden, Values
from reproduce.rehearsal import RANDOM_TRUNK, Request
from tests.power.faults import FAULTS, Fault

pytestmark = pytest.mark.power
HONEST = ("swav_100ep", "simclr_1000ep", "knn", "linear_places205")


@pytest.fixture(scope="session")
def planned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rehearsal]:
    images = tmp_path_factory.mktemp("images")
    synthetic.generate(images, size="rehearsal_smoke")
    names = {fault.recipe for fault in FAULTS} | {TRUNK, *HONEST}
    found = {each.name: each for each in rehearsals("smoke", str(images), ("fp64", "fp32"), only=names)}
    return {name: found.get(f"{name}.fp64") or found.get(f"{name}.fp32") or found[name] for name in names}


@pytest.fixture(scope="session")
def trunk(planned: dict[str, Rehearsal], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random trunk that evaluations evaluate."""
    results = tmp_path_factory.mktemp("trunk")
    rehearsal = planned[TRUNK].request()
    rehearse.rehearse(Request(**rehearsal), results)
    cfg = OmegaConf.create({**rehearsal["config"], "paths": {"results": str(results)}})
    return run_dir(cfg) / "checkpoint.pt"


@pytest.fixture(scope="session")
def recorded() -> dict[str, Golden]:
    return golden.load("smoke").rehearsals


def first_steps(fault: Fault, rehearsal: Rehearsal, trunk: Path, results: Path) -> Values:
    """What the rehearsal computes with the fault planted."""
    cfg = OmegaConf.create(rehearsal.config)
    for key, value in fault.config.items():
        OmegaConf.update(cfg, key, value)
    if cfg.get("checkpoint") == RANDOM_TRUNK:
        cfg.checkpoint = str(trunk)
    config = {str(key): value for key, value in (OmegaConf.to_container(cfg) or {}).items()}  # type: ignore[union-attr]
    asked = Request(rehearsal.name, rehearsal.kind, config, num_steps=fault.num_steps, ends_early=True)
    with fault.plant():
        return rehearse.rehearse(asked, results)


def _comes_last(quantity: str) -> bool:
    return quantity.startswith(("state of", "metric")) or "first detections" in quantity


def cut(recorded: Golden, num_steps: int) -> Golden:
    """The first of the recorded steps; numbers that are no steps stay."""
    num_recorded = len(recorded.values.get("learning rate 0", ()))
    series = {name for name, values in recorded.values.items() if num_recorded and len(values) == num_recorded}
    is_cut = num_steps < num_recorded
    after_all = {name for name in recorded.values if is_cut and _comes_last(name)}

    def first(of: dict[str, list[float]]) -> dict[str, list[float]]:
        return {
            name: values[:num_steps] if name in series else values
            for name, values in of.items()
            if name not in after_all
        }

    return dataclasses.replace(recorded, values=first(recorded.values), tolerances=first(recorded.tolerances))  # type: ignore[arg-type]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_is_named(
    fault: Fault, planned: dict[str, Rehearsal], trunk: Path, recorded: dict[str, Golden], tmp_path: Path
) -> None:
    rehearsal = planned[fault.recipe]
    values = first_steps(fault, rehearsal, trunk, tmp_path)
    expected = cut(recorded[rehearsal.name], fault.num_steps)
    values = {name: each for name, each in values.items() if name in expected.values or not _comes_last(name)}
    found = golden.compare(values, expected).differences
    assert found, "nothing noticed"
    print(f"| {fault.name} | {fault.recipe} | {found[0].quantity} | {found[0].step} |")
    assert found[0].quantity.startswith(fault.noticed_by), str(found[0])


@pytest.mark.parametrize("name", HONEST)
def test_honest_recipes_are_not_flagged(
    name: str, planned: dict[str, Rehearsal], trunk: Path, recorded: dict[str, Golden], tmp_path: Path
) -> None:
    values = first_steps(Fault("none", name, "", num_steps=12), planned[name], trunk, tmp_path)
    assert not golden.compare(values, cut(recorded[planned[name].name], 12)).differences
