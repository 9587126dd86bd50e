"""Load a trunk, or the projection head on it, from a checkpoint, ours or a released one."""

import argparse
import codecs
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.networks.heads import build_projection_head
from models.networks.resnet import BLOCKS_R50, STEM_R50, STEMS, ResNet, blocks_of_depth, require_stem
from models.networks.trunk import Trunk
from models.zoo import tensor_bundle
from models.zoo.layouts import LAYOUTS, SamePool, block_counts, simclr_tensorflow
from models.zoo.other_networks import OTHER_NETWORKS
from reproduce.engine import checkpoint
from reproduce.errors import UserError, few

NUMPY_SCALAR: Callable[..., Any] = np.float64().__reduce__()[0]  # type: ignore[assignment]
SAFE_GLOBALS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    codecs.encode,
    np.dtype,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
    np.dtypes.Int64DType,
    (NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
]
"""Classes of options and numbers that training scripts save beside the tensors; unpickling them runs no code."""

HEAD = "projection_head."
TRUNK_TENSOR = re.compile(r"(conv1|bn1|layer\d+)\.")


def load_trunk(path: Path, layout: str | None = None, depth: int | None = None, stem: str | None = None) -> Trunk:
    """Load the trunk of a checkpoint in evaluation mode. Its sizes follow from the tensors.

    `layout` is a key of `models.zoo.layouts.LAYOUTS` or of `models.zoo.other_networks.OTHER_NETWORKS`; None tries all
    of them. Head and prototypes are ignored. A ResNet is a ResNet-50, or has `depth` layers or the stem `stem`: a 3x3
    convolution does not say its stride, so it has to be expected.

    Raises `UserError` if a weight or running statistic of the trunk is missing, has another shape or is not finite (it
    would silently evaluate to chance), or if there are more: the network is deeper than ours.
    """
    weights, layout = _read_tensors(path, layout)
    if layout in OTHER_NETWORKS:
        other = OTHER_NETWORKS[layout].build(weights)
        _fill(other, weights, path, f"a network of layout {layout}")
        return other.eval()
    return load_resnet(path, weights, layout, depth, stem)


def load_resnet(
    path: Path, weights: Mapping[str, Tensor], layout: str, depth: int | None, stem: str | None = None
) -> ResNet:
    """Build a ResNet from a checkpoint's tensors by our names, see `load_trunk`."""
    own = blocks_of_depth(depth)
    first = weights["conv1.weight"]
    own_stem = require_stem(stem)
    trunk = ResNet(
        len(first) / 64,
        own if block_counts(weights) == own else BLOCKS_R50,
        stem=own_stem if first.shape[-1] == STEMS[own_stem].kernel_px else STEM_R50,
    )
    _fill(trunk, {name: value for name, value in weights.items() if TRUNK_TENSOR.match(name)}, path, "a ResNet-50")
    if LAYOUTS[layout] is simclr_tensorflow:
        trunk.maxpool = SamePool(kernel_size=3, stride=2)
    return trunk.eval()


def _fill(trunk: Trunk, weights: Mapping[str, Tensor], path: Path, what: str) -> None:
    """Copy a checkpoint's tensors into a trunk. Raises `UserError` unless all of both fit, see `load_trunk`."""
    expected = trunk.state_dict()
    fitting = {
        name: weights[name] for name in expected if name in weights and weights[name].shape == expected[name].shape
    }
    # Old checkpoints lack the batch counters, which evaluation does not use. All else must be there.
    missing = [name for name in expected if name not in fitting and not name.endswith("num_batches_tracked")]
    if missing:
        raise UserError(
            f"checkpoint {path} matches {len(fitting)} of the trunk's {len(expected)} tensors; missing or of another "
            f"shape: {few(missing)}"
        )
    # A deeper network has all tensors of a ResNet-50 and would be cut down to one.
    unexpected = [name for name in weights if name not in expected]
    if unexpected:
        raise UserError(
            f"checkpoint {path} is not {what}; it has {len(unexpected)} unexpected tensors: {few(unexpected)}"
        )
    _require_finite(fitting, path)
    trunk.load_state_dict(fitting, strict=False)


def load_projection_head(path: Path, layout: str | None = None) -> nn.Sequential | None:
    """Load the projection head of a checkpoint in evaluation mode; return None if the checkpoint has none.

    It maps features `(N, num_features)` to embeddings `(N, embedding_dim)`, which are not normalized. Its sizes follow
    from the tensors. Raises `UserError` if the file has tensors of a head that is built otherwise, or numbers that are
    not finite.
    """
    weights, _ = _read_tensors(path, layout)
    tensors = {name.removeprefix(HEAD): value for name, value in weights.items() if name.startswith(HEAD)}
    if not tensors:
        return None
    _require_finite(tensors, path)
    try:
        batchnorm = "1.running_mean" in tensors
        last = "3" if "3.weight" in tensors else "0"
        hidden_dim = len(tensors["0.weight"]) if last == "3" else None
        embedding_dim, num_features = len(tensors[f"{last}.weight"]), tensors["0.weight"].shape[1]
        head = build_projection_head(num_features, hidden_dim, embedding_dim, batchnorm)
        if batchnorm:
            tensors.setdefault("1.num_batches_tracked", torch.tensor(0))  # old checkpoints lack it
        head.load_state_dict(tensors)
    except (KeyError, IndexError, RuntimeError) as error:
        raise UserError(
            f"the projection head of checkpoint {path} is not one or two linear layers with BatchNorm between them: it "
            f"has {few(tensors)}"
        ) from error
    return head.eval()


def _require_finite(weights: Mapping[str, Tensor], path: Path) -> None:
    """Raise `UserError` if a weight or running statistic is NaN or infinite."""
    broken = [name for name, value in weights.items() if not value.isfinite().all()]
    if broken:
        raise UserError(
            f"checkpoint {path} has NaN or infinite numbers in {len(broken)} of its {len(weights)} tensors "
            f"({few(broken)}): its training diverged or the file is damaged; take another checkpoint"
        )


def _read_tensors(path: Path, layout: str | None) -> tuple[dict[str, Tensor], str]:
    """Return a checkpoint's tensors by our names, and its layout. Raises `UserError` if there is no trunk."""
    content = _read(path)
    layouts = LAYOUTS | {name: other.layout for name, other in OTHER_NETWORKS.items()}
    markers = dict.fromkeys(LAYOUTS, "conv1.weight") | {name: other.marker for name, other in OTHER_NETWORKS.items()}
    names = [layout] if layout else list(layouts)
    for name in names:
        found = layouts[name](content)
        if markers[name] in found:
            return found, name
    raise UserError(
        f"checkpoint {path} has no trunk: in the layout of {' or '.join(names)} there is no "
        f"{' or '.join(dict.fromkeys(repr(markers[name]) for name in names))} among {few(content)}"
    )


def _read(path: Path) -> Mapping[str, Any]:
    """Read a checkpoint file without running code from it."""
    checkpoint.require_file(path)
    if tensor_bundle.is_archive(path):
        return tensor_bundle.read_archive(path)
    try:
        with torch.serialization.safe_globals(SAFE_GLOBALS):
            content = checkpoint.load(path)
    except UserError as error:
        if isinstance(error.__cause__, pickle.UnpicklingError):
            raise UserError(
                f"checkpoint {path} is damaged, or holds more than tensors and plain values; loading the rest could "
                f"run code and is refused ({_refused_class(error.__cause__)})"
            ) from error
        raise
    if not isinstance(content, Mapping):
        raise UserError(f"checkpoint {path} has no trunk: it holds a {type(content).__name__}, not named tensors")
    return content


def _refused_class(error: pickle.UnpicklingError) -> str:
    """Extract the class that torch refused to load; the rest of torch's message explains how to load it anyway."""
    name = re.search(r"GLOBAL ([\w.]+)", str(error))
    return name[1] if name else "torch did not write it"
