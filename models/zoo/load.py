"""From a checkpoint, ours or a released one, to a trunk."""

import argparse
import codecs
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.networks.resnet import ResNet
from models.zoo import tensor_bundle
from models.zoo.layouts import LAYOUTS, SamePool, simclr_tensorflow
from reproduce.engine import checkpoint
from reproduce.errors import UserError

NUMPY_SCALAR: Callable[..., Any] = np.float64().__reduce__()[0]  # type: ignore[assignment]
PLAIN_VALUES: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    codecs.encode,
    np.dtype,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
    np.dtypes.Int64DType,
    (NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
]
"""What training scripts put beside the tensors, options and measured numbers: data, which runs nothing when read."""


OF_A_TRUNK = re.compile(r"(conv1|bn1|layer\d+)\.")


def load_trunk(path: Path, layout: str | None = None) -> ResNet:
    """The trunk of a checkpoint, at the width that its tensors have, in evaluation mode.

    `layout` is a name in `models.zoo.layouts.LAYOUTS`; without one, that which finds a trunk in the file. Raises
    `UserError` listing what is missing where a weight or running statistic of the trunk is not there, since a trunk
    that loads nothing evaluates quietly to 10%, and what is too much where the network is deeper than a ResNet-50. The
    head and prototypes are left out.
    """
    content = _read(path)
    names = [layout] if layout else list(LAYOUTS)
    found = {name: LAYOUTS[name](content) for name in names}
    layout = next((name for name in names if "conv1.weight" in found[name]), None)
    if layout is None:
        raise UserError(
            f"checkpoint {path} holds no trunk: there is no 'conv1.weight' in the layout of {' or '.join(names)} among "
            f"{_few(content)}"
        )
    weights = found[layout]
    trunk = ResNet(width=weights["conv1.weight"].shape[0] / 64)
    own = trunk.state_dict()
    fitting = {name: weights[name] for name in own if name in weights and weights[name].shape == own[name].shape}
    # Counters of batches aside (old checkpoints lack them), a tensor left at random would spoil every number.
    missing = {name: None for name in own if name not in fitting and not name.endswith("num_batches_tracked")}
    if missing:
        raise UserError(
            f"checkpoint {path} matches {len(fitting)} of the trunk's {len(own)} tensors; missing or of another shape: "
            f"{_few(missing)}"
        )
    # A deeper network has all that a ResNet-50 has, and would be cut to one.
    surplus = {name: None for name in weights if OF_A_TRUNK.match(name) and name not in own}
    if surplus:
        raise UserError(f"checkpoint {path} is no ResNet-50's: {len(surplus)} tensors too many: {_few(surplus)}")
    trunk.load_state_dict(fitting, strict=False)
    if LAYOUTS[layout] is simclr_tensorflow:
        trunk.maxpool = SamePool(kernel_size=3, stride=2)
    return trunk.eval()


def _read(path: Path) -> Mapping[str, Any]:
    """A file's content; nothing in it is run."""
    if tensor_bundle.is_archive(path):
        return tensor_bundle.read_archive(path)
    try:
        with torch.serialization.safe_globals(PLAIN_VALUES):
            content = checkpoint.load(path)
    except UserError as error:
        if isinstance(error.__cause__, pickle.UnpicklingError):
            raise UserError(
                f"checkpoint {path} is damaged, or holds more than tensors and plain values: the rest could run code "
                f"when read, and is refused ({_refused(error.__cause__)})"
            ) from error
        raise
    if not isinstance(content, Mapping):
        raise UserError(f"checkpoint {path} holds no trunk: it is a {type(content).__name__}, not named tensors")
    return content


def _refused(error: pickle.UnpicklingError) -> str:
    """What torch refuses, by its name where it says it. (The rest is how to read the file all the same.)"""
    name = re.search(r"GLOBAL ([\w.]+)", str(error))
    return name[1] if name else "it is none of torch's files"


def _few(names: Mapping[str, object]) -> str:
    listed = list(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
