"""What holds for all tests: nothing leaves this machine, nothing depends on the clock or on chance."""

import os

import pytest
from hypothesis import settings

settings.register_profile("steady", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("steady")


@pytest.fixture(autouse=True, scope="session")
def _no_account_and_no_network() -> None:
    """Nobody's W&B key or settings reach a test or a process that it starts."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        del os.environ[name]
    os.environ["WANDB_MODE"] = "offline"
