"""`reproduce.evaluate` in double precision, where the order of sums no longer shows."""

import sys
from pathlib import Path

import torch

from models.resnet import ResNet
from models.weights import load_trunk
from reproduce import evaluate
from reproduce.errors import exit_status


def load_double(path: Path) -> ResNet:
    """The trunk in double precision, whatever its pictures come in."""
    trunk = load_trunk(path)
    trunk.register_forward_pre_hook(lambda _, images: tuple(x.double() for x in images))
    return trunk


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    vars(evaluate)["load_trunk"] = load_double
    sys.exit(exit_status(evaluate.main))
