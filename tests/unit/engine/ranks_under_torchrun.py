"""`ranks.py` on two processes that torchrun's agent starts, as forks: `ranks_under_torchrun.py OUTPUT`."""

import sys

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from tests.nccl_conditions import impose_conditions
from tests.unit.engine import ranks


def rank(output: str) -> None:
    """Do what one process does."""
    impose_conditions()
    ranks.main(output)


if __name__ == "__main__":
    config = LaunchConfig(  # as `torchrun --standalone --nproc-per-node=2`
        1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", start_method="fork", monitor_interval=0.1
    )
    elastic_launch(config, rank)(sys.argv[1])
