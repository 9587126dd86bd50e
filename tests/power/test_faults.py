"""Whatever is wrong in a recipe leaves its recorded first steps: faults are planted one at a time, and preflight names
the number that noticed.

`make power` runs them under an arithmetic that no tolerance was measured under.
"""

from pathlib import Path

import pytest

from reproduce.harness.preflight.rehearsals import Rehearsal
from reproduce.harness.spec import golden
from reproduce.harness.spec.golden import Golden
from tests.power.faults import FAULTS, NO_FAULTS, Fault
from tests.rehearsed import cut, plan, random_trunk, take

pytestmark = pytest.mark.power


@pytest.fixture(scope="session")
def planned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rehearsal]:
    return plan(tmp_path_factory.mktemp("images"), sorted({each.recipe for each in (*FAULTS, *NO_FAULTS)}))


@pytest.fixture(scope="session")
def trunk(planned: dict[str, Rehearsal], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_trunk(planned, tmp_path_factory.mktemp("trunk"))


@pytest.fixture(scope="session")
def recorded() -> dict[str, Golden]:
    return golden.load("smoke").rehearsals


def differences(
    fault: Fault, planned: dict[str, Rehearsal], trunk: Path, recorded: dict[str, Golden], results: Path
) -> list[golden.Difference]:
    """What leaves its tolerance with the fault planted."""
    rehearsal = planned[fault.recipe]
    with fault.plant():
        found = take(rehearsal, trunk, results, fault.num_steps, fault.config)
    return golden.compare_recorded(found, cut(recorded[rehearsal.name], fault.num_steps)).differences


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_is_named(
    fault: Fault, planned: dict[str, Rehearsal], trunk: Path, recorded: dict[str, Golden], tmp_path: Path
) -> None:
    found = differences(fault, planned, trunk, recorded, tmp_path)
    assert found, "nothing noticed"
    print(f"| {fault.name} | {fault.recipe} | {found[0].quantity} | {found[0].step} |")
    assert found[0].quantity.startswith(fault.noticed_by), str(found[0])


@pytest.mark.parametrize("honest", NO_FAULTS, ids=lambda fault: fault.name)
def test_what_is_no_fault_is_not_named(
    honest: Fault, planned: dict[str, Rehearsal], trunk: Path, recorded: dict[str, Golden], tmp_path: Path
) -> None:
    """Recipes as they are, and the helpers of faults that plant the right formula."""
    found = differences(honest, planned, trunk, recorded, tmp_path)
    assert not found, str(found[0])
