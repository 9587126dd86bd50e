"""What would make a step wait for its device."""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "is_nonzero")
"""Operations whose result the host needs: `.item()`, `bool()`, `float()` and indexing by a mask come down to these."""


class NoHostSync(TorchDispatchMode):
    """A context in which an operation that reads a value of the device fails, on a CPU, too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ not in READS, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))
