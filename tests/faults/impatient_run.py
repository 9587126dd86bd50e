"""A pretraining that waits only a moment for W&B."""

import sys

from reproduce import pretrain
from reproduce.engine.runs import tracking
from reproduce.errors import run_cli

if __name__ == "__main__":
    tracking.TIMEOUT_SECONDS = 2.0
    sys.exit(run_cli(pretrain.main))
