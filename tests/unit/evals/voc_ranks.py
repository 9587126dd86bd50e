"""BatchNorm's precise statistics from this process' batches; rank 0 writes every rank's, and its seed of proposals.

Started by test_voc_detection.py by our launcher: `voc_ranks.py OUTPUT`.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[3]))

from evals.voc_detection import protocol as voc_detection
from evals.voc_detection.compatibility import get_cfg
from evals.voc_detection.trainer import proposal_seed
from reproduce.engine.batchnorm import wrap_for_distributed
from reproduce.engine.distributed.collectives import all_gather, is_main, process_group, rank

BATCHES = (((0.0, 2.0), (1.0, 2.0, 3.0, 4.0, 5.0, 9.0)), ((4.0, 6.0, 1.0, 5.0), (7.0, 8.0, 9.0, 2.0)))
"""By rank and step: what its boxes give. Ranks have other numbers of them, as in the detector's head."""


def main(output: str) -> None:
    torch.set_num_threads(1)
    with process_group():
        norm = nn.BatchNorm1d(1)
        net = wrap_for_distributed(norm)
        mine = [torch.tensor(batch)[:, None] for batch in BATCHES[rank()]]
        voc_detection.batches = lambda *_: iter(mine)  # type: ignore[assignment]
        cfg = get_cfg()
        cfg.TEST.PRECISE_BN.NUM_ITER = len(mine)
        context: Any = SimpleNamespace(cfg=SimpleNamespace(seed=0, precision="fp32"))
        voc_detection.recompute_bn_stats(net, [], cfg, context)
        assert norm.running_mean is not None
        found = {
            "means": all_gather(norm.running_mean),
            "seeds": all_gather(torch.tensor(proposal_seed(seed=3, step=5))),
        }
        if is_main():
            torch.save(found, output)


if __name__ == "__main__":
    main(sys.argv[1])
