"""From a checkpoint, ours or a released one, to a trunk."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from models.resnet import ResNet
from reproduce.engine import checkpoint
from reproduce.errors import UserError


def load_trunk(path: Path) -> ResNet:
    """The trunk of a checkpoint, at the width that its tensors have, in evaluation mode.

    Takes ours and the released files: wrapped in "model" or "state_dict" or not, names with `module.` or not.
    Raises `UserError` listing what is missing where a weight or running statistic of the trunk is not there: a trunk
    that loads nothing evaluates quietly to 10%. The head and prototypes are left out.
    """
    weights = _plain(checkpoint.load(path))
    if "conv1.weight" not in weights:
        raise UserError(f"checkpoint {path} holds no trunk: there is no 'conv1.weight' among {_few(weights)}")
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
    trunk.load_state_dict(fitting, strict=False)
    return trunk.eval()


def _plain(content: Mapping[str, object]) -> dict[str, Tensor]:
    """Tensors by their plain names."""
    for wrapper in ("model", "state_dict"):
        inner = content.get(wrapper)
        if isinstance(inner, Mapping):
            content = inner
    return {name.removeprefix("module."): value for name, value in content.items() if isinstance(value, Tensor)}


def _few(names: Mapping[str, object]) -> str:
    listed = list(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
