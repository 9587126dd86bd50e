"""Write the trunk of a checkpoint as files that other code loads.

Usage: python -m reproduce.export CHECKPOINT FOLDER DEPTH STEM
"""

import io
import sys
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from models.networks.resnet import STEMS, ResNet
from models.zoo import entries
from models.zoo.layouts import SamePool
from models.zoo.load import load_trunk
from reproduce.errors import UserError, run_cli
from reproduce.files import write_atomic, write_json

SAFETENSORS, TORCH, SHAPE = "trunk.safetensors", "trunk.pth", "trunk.json"


def export_trunk(checkpoint: str, folder: Path, depth: int | None = None, stem: str | None = None) -> None:
    """Write a trunk's tensors, by torchvision's names, in two formats, and its shape.

    `checkpoint` is a file or `released:NAME`, `depth` and `stem` its trunk's; None is a ResNet-50's. `folder` gets
    `trunk.safetensors`, `trunk.pth` (a state dict for `torch.load(..., weights_only=True)`) and `trunk.json`. Raises
    `UserError` if the checkpoint has no such trunk.
    """
    if checkpoint.startswith(entries.PREFIX):
        entry = entries.get_entry(checkpoint.removeprefix(entries.PREFIX))
        trunk = load_trunk(entries.fetch(entry), entry.layout)
    else:
        trunk = load_trunk(Path(checkpoint), depth=depth, stem=stem)
    if not isinstance(trunk, ResNet):
        raise UserError(f"{checkpoint} is no ResNet, and only ResNets are exported: take the publisher's own file")
    tensors: dict[str, Tensor] = {name: value.detach().contiguous() for name, value in trunk.state_dict().items()}
    write_atomic(folder / SAFETENSORS, save(tensors, metadata={"format": "pt"}))
    content = io.BytesIO()
    torch.save(tensors, content)
    write_atomic(folder / TORCH, content.getvalue())
    write_json(folder / SHAPE, shape_of(trunk))


def shape_of(trunk: ResNet) -> dict[str, object]:
    """Return what builds the trunk again, `ResNet(width, blocks, stem=stem)`, its max-pooling's padding, its sizes."""
    stages = (trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4)
    return {
        "width": trunk.num_features / 2048,
        "blocks": [len(stage) for stage in stages],
        "stem": next(name for name, stem in STEMS.items() if trunk.conv1.kernel_size[0] == stem.kernel_px),
        "padding": "SAME" if isinstance(trunk.maxpool, SamePool) else "torch",
        "num_features": trunk.num_features,
        "num_parameters": sum(each.numel() for each in trunk.parameters()),
    }


def main() -> int:
    """Export the checkpoint of the command line."""
    if len(sys.argv) != 5 or not sys.argv[3].isdecimal():
        raise UserError("usage: python -m reproduce.export CHECKPOINT FOLDER DEPTH STEM")
    export_trunk(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
