"""torch's conditions for its multi-tensor kernels on a GPU, checked on a CPU; without them each tensor has its own."""

from typing import Any

import torch
from torch import Tensor
from torch._prims_common import is_non_overlapping_and_dense_or_false
from torch.utils._python_dispatch import TorchDispatchMode

VIEWS = ("as_strided", "detach", "expand", "unbind", "unsqueeze", "view", "_unsafe_view", "_reshape_alias")
"""Operations without a kernel."""


class ForeachFastPath(TorchDispatchMode):
    """A context in which a multi-tensor operation fails if a GPU would run it tensor by tensor; counts kernels.

    The tensors at one place of all lists must have the same dtype, shape and strides, and fill their memory (torch's
    `can_use_fast_route` in ATen/native/ForeachUtils.h).
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.num_operations += name not in VIEWS
        if name.startswith("_foreach"):
            lists = [argument for argument in args if isinstance(argument, list | tuple)]
            for tensors in zip(*lists, strict=True):
                assert len({_layout(each) for each in tensors}) == 1, f"{func} leaves the fast path: {tensors}"
        return func(*args, **(kwargs or {}))


def _layout(tensor: Tensor) -> tuple[torch.dtype, torch.Size, tuple[int, ...]]:
    assert is_non_overlapping_and_dense_or_false(tensor)
    return tensor.dtype, tensor.shape, tensor.stride()
