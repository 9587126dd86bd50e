"""The golden values of tests/golden on a GPU; `make test` compares them on the CPU already."""

import pytest

from tests.golden.test_methods import test_ten_losses  # noqa: F401
from tests.golden.test_reference import (  # noqa: F401
    test_larc,
    test_loss_and_its_gradients,
    test_sinkhorn,
    test_trajectory_of_twelve_steps,
    test_trunk_features,
)

pytestmark = pytest.mark.usefixtures("gpu")
