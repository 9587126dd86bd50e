"""Batches reach a GPU from pinned memory; pinning, which takes CUDA, is replaced by a copy that is remembered."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data._utils.pin_memory import pin_memory

from evals.coco_detr import transforms
from evals.coco_detr.transforms import Sample
from reproduce.data.pipeline.multicrop import MultiCropSample, collate_multicrop


def multicrop_batch() -> Any:
    views = [(torch.rand(num, 3, 4, 4), torch.rand(num, 11)) for num in (2, 3)]
    return collate_multicrop([MultiCropSample(views, label, ["a.jpg: broken"]) for label in range(2)])


def detr_batch() -> Any:
    boxes, labels = np.ones((2, 4), dtype=np.float32), np.arange(2)
    return transforms.collate([(Sample(np.ones((3, 5, size), np.uint8), boxes, labels), ["a.jpg"]) for size in (4, 6)])


def tensors_of(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors_of(getattr(value, field.name))
    elif isinstance(value, list):
        for each in value:
            yield from tensors_of(each)


@pytest.mark.parametrize(("make", "num_tensors"), [(multicrop_batch, 5), (detr_batch, 6)])
def test_every_tensor_of_a_batch_is_pinned(make: Any, num_tensors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    copies: set[int] = set()
    held: list[Tensor] = []

    def pin(self: Tensor) -> Tensor:
        held.append(self.clone())
        copies.add(id(held[-1]))
        return held[-1]

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    batch = make()
    pinned = pin_memory(batch)
    assert type(pinned) is type(batch)
    assert pinned.unreadable == batch.unreadable
    found, given = list(tensors_of(pinned)), list(tensors_of(batch))
    assert len(found) == len(given) == num_tensors
    assert all(id(each) in copies for each in found)
    assert all(torch.equal(one, other) for one, other in zip(found, given, strict=True))
