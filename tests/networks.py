"""Networks for tests: with weights that nothing starts with, their gradients, and what a forward pass keeps."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from models.networks.resnet import BLOCKS_R50, ResNet


def random_trunk(width: float, blocks: Sequence[int] = BLOCKS_R50) -> ResNet:
    """A trunk in eval mode, with running statistics and BatchNorm weights that nothing starts with."""
    torch.manual_seed(0)
    trunk = ResNet(width, blocks)
    for module in trunk.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)
    return trunk.eval()


class LinearNet(nn.Linear):
    """The smallest network that `PretrainTask` trains: it sees the first crop, and has no prototypes."""

    def forward(self, crops: list[Tensor]) -> tuple[Tensor, None]:  # type: ignore[override]
        return super().forward(crops[0]), None


def gradients_of(net: nn.Module) -> dict[str, Tensor]:
    """Copies of the gradients of the parameters that have one, by name."""
    return {name: value.grad.clone() for name, value in net.named_parameters() if value.grad is not None}


@contextmanager
def kept_for_backward() -> Iterator[dict[int, torch.UntypedStorage]]:
    """What the forward passes of the block keep for their backward passes: storages by address."""
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


def activations_gb(net: nn.Module, kept: dict[int, torch.UntypedStorage]) -> float:
    """The size of what was kept, without the network's own weights and statistics."""
    own = {value.untyped_storage().data_ptr() for value in net.state_dict(keep_vars=True).values()}
    return sum(len(storage) for address, storage in kept.items() if address not in own) / 1e9
