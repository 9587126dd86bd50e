"""Copies to the training device during which neither the host nor, at best, the device waits."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Batch = TypeVar("Batch")


def upload(array: np.ndarray, target: torch.device) -> Tensor:
    """Copy an array to a device; to a GPU from pinned memory, so that the host does not wait for the copy."""
    tensor = torch.from_numpy(array)
    return (tensor.pin_memory() if target.type == "cuda" else tensor).to(target, non_blocking=True)


def upload_ahead(
    batches: Iterable[Batch], tensors_of: Callable[[Batch], list[Tensor]], target: torch.device
) -> Iterator[tuple[Batch, list[Tensor]]]:
    """Yield each batch with its tensors on `target`.

    On a GPU the copy of the next batch starts before a batch is yielded, on a stream of its own: it runs beside the
    step. `tensors_of` returns a batch's tensors, which must be pinned.
    """
    if target.type != "cuda":
        for batch in batches:
            yield batch, [tensor.to(target) for tensor in tensors_of(batch)]
        return
    stream = torch.cuda.Stream(target)
    copies: deque[tuple[Batch, list[Tensor], torch.cuda.Event]] = deque()
    for batch in batches:
        with torch.cuda.stream(stream):
            tensors = [tensor.to(target, non_blocking=True) for tensor in tensors_of(batch)]
            copies.append((batch, tensors, stream.record_event()))
        if len(copies) > 1:
            yield _receive(*copies.popleft(), target)
    while copies:
        yield _receive(*copies.popleft(), target)


def _receive(
    batch: Batch, tensors: list[Tensor], copied: torch.cuda.Event, target: torch.device
) -> tuple[Batch, list[Tensor]]:
    """Let the current stream wait for a copy; its tensors' memory is reused only after what that stream does next."""
    stream = torch.cuda.current_stream(target)
    stream.wait_event(copied)
    for tensor in tensors:
        tensor.record_stream(stream)
    return batch, tensors
