"""The projection head of a checkpoint: every layout that has one gives the embeddings of the network that was saved."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks.heads import MultiCropNet
from models.networks.resnet import ResNet
from models.zoo.load import load_projection_head, load_trunk
from reproduce.errors import UserError

WIDTH = 0.0625
MOCO_LAYERS = {"0": "fc.0", "3": "fc.2"}


def network(hidden_dim: int | None, batchnorm: bool) -> MultiCropNet:
    torch.manual_seed(0)
    net = MultiCropNet(WIDTH, hidden_dim, embedding_dim=8, num_prototypes=5, head_batchnorm=batchnorm)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d):
            assert module.running_mean is not None and module.running_var is not None
            for value in (module.weight.data, module.bias.data, module.running_mean):
                value.uniform_(-0.5, 1)
            module.running_var.uniform_(0.5, 2)
    return net.eval()


def as_moco(net: MultiCropNet) -> dict[str, dict[str, Tensor]]:
    """The network as MoCo saves its query encoder, whose head it calls `fc`."""
    linear = len(net.projection_head) == 1
    renamed = {}
    for name, value in net.state_dict().items():
        if name.startswith("projection_head."):
            _, layer, part = name.split(".")
            renamed[f"module.encoder_q.{'fc' if linear else MOCO_LAYERS[layer]}.{part}"] = value
        else:
            renamed[f"module.encoder_q.{name}"] = value
    return {"state_dict": renamed}


@pytest.mark.parametrize(
    ("layout", "hidden_dim", "batchnorm"),
    [
        ("torchvision", 16, True),
        ("torchvision", 16, False),
        ("torchvision", None, False),
        ("moco", 16, False),
        ("moco", None, False),
    ],
)
def test_embeddings_equal_the_saved_networks(
    layout: str, hidden_dim: int | None, batchnorm: bool, tmp_path: Path
) -> None:
    net = network(hidden_dim, batchnorm)
    content = as_moco(net) if layout == "moco" else {"model": net.state_dict()}
    torch.save(content, tmp_path / "w.pt")
    images = torch.randn(2, 3, 64, 64)
    head = load_projection_head(tmp_path / "w.pt", layout)
    assert head is not None and not head.training
    embeddings = F.normalize(head(load_trunk(tmp_path / "w.pt", layout)(images)), dim=1)
    torch.testing.assert_close(embeddings, net([images])[0])


def test_an_old_checkpoint_without_batch_counter_loads(tmp_path: Path) -> None:
    weights = {f"module.{name}": value for name, value in network(16, True).state_dict().items()}
    torch.save({name: value for name, value in weights.items() if "num_batches" not in name}, tmp_path / "w.pt")
    assert load_projection_head(tmp_path / "w.pt") is not None


def test_a_trunk_alone_has_no_head(tmp_path: Path) -> None:
    torch.save(ResNet(WIDTH).state_dict(), tmp_path / "w.pt")
    assert load_projection_head(tmp_path / "w.pt") is None


def test_a_head_of_three_layers_raises(tmp_path: Path) -> None:
    more = {"projection_head.6.weight": torch.randn(8, 8)}
    torch.save(network(16, True).state_dict() | more, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"the projection head of checkpoint .*w\.pt is not one or two linear layers"):
        load_projection_head(tmp_path / "w.pt")
