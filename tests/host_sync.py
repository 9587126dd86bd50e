"""What would make a step wait for its device."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "is_nonzero")
"""Operations whose result the host needs, such as `.item()`, `bool()` and `float()`."""
INDEXING = ("index", "index_put", "index_put_", "_unsafe_index")
"""Operations that count a mask among their indices on the host."""
MASKS = (torch.bool, torch.uint8)


class NoHostSync(TorchDispatchMode):
    """A context in which an operation that waits for the device fails, on a CPU, too.

    It reads a value, indexes by a mask, or copies to another device without `non_blocking`.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, options = func.overloadpacket.__name__, kwargs or {}
        waits = name in READS
        if name in INDEXING:
            waits = any(index is not None and index.dtype in MASKS for index in args[1])
        if name == "_to_copy" and options.get("device"):
            waits = options["device"] != args[0].device and not options.get("non_blocking")
        assert not waits, f"{func} waits for the device"
        return func(*args, **options)
