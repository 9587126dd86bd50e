"""What would make a step wait for its device."""

from typing import Any, Self

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "is_nonzero")
"""Operations whose result the host needs, such as `.item()`, `bool()` and `float()`."""
INDEXING = ("index", "index_put", "index_put_", "_unsafe_index")
"""Operations that count a mask among their indices on the host."""
MASKS = (torch.bool, torch.uint8)
UPLOADS = (torch.tensor, torch.as_tensor, torch.asarray)
"""Functions that upload the host's numbers from memory that is not pinned, if they are given a device."""


class NoHostSync(TorchDispatchMode):
    """A context in which an operation that waits for the device fails, on a CPU, too.

    It reads a value, indexes by a mask, makes a tensor of the host's numbers on a given device, or copies to another
    device without `non_blocking`. Exactly `num_waits` such operations are expected.
    """

    def __init__(self, num_waits: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._left = num_waits
        self._uploads = _Uploads(self._note_wait)

    def __enter__(self) -> Self:
        """Watch functions, which make tensors, as well as operations."""
        self._uploads.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        """Also fail if there were fewer waits than expected."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._uploads.__exit__(*error)  # type: ignore[no-untyped-call]
        assert error[0] or not self._left, f"{self._left} of the expected waits for the device were not needed"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, options = func.overloadpacket.__name__, kwargs or {}
        waits = name in READS
        if name in INDEXING:
            waits = any(index is not None and index.dtype in MASKS for index in args[1])
        if name == "_to_copy" and options.get("device"):
            waits = options["device"] != args[0].device and not options.get("non_blocking")
        if waits:
            self._note_wait(func)
        return func(*args, **options)

    def _note_wait(self, func: Any) -> None:
        assert self._left > 0, f"{func} waits for the device"
        self._left -= 1


class _Uploads(TorchFunctionMode):
    """Calls `note_wait` with each function that uploads numbers, which no operation shows on a CPU."""

    def __init__(self, note_wait: Any) -> None:
        super().__init__()
        self._note_wait = note_wait

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func is torch.Tensor.new_tensor or (func in UPLOADS and options.get("device") is not None):
            self._note_wait(func)
        return func(*args, **options)
