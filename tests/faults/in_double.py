"""`reproduce.evaluate` in double precision, where sums in another order agree: `-m tests.faults.in_double ...`."""

import sys
from pathlib import Path
from unittest.mock import patch

import torch
from omegaconf import DictConfig

from models.networks.resnet import ResNet
from reproduce import checkpoint_source, evaluate
from reproduce.errors import run_cli

load_checkpoint_trunk = checkpoint_source.load_checkpoint_trunk


def in_double(cfg: DictConfig) -> tuple[Path, ResNet]:
    """The trunk in double precision, whatever its pictures come in."""
    path, net = load_checkpoint_trunk(cfg)
    net.conv1.register_forward_pre_hook(lambda _, images: tuple(x.double() for x in images))
    return path, net


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    with patch.object(evaluate, "load_checkpoint_trunk", in_double):
        sys.exit(run_cli(evaluate.main))
