"""Batches are copied to a GPU one ahead, beside the step; CUDA's streams are replaced by a record of what they do."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from reproduce.data.pipeline import upload

GPU = torch.device("cuda", 0)


class Stream:
    """A stream that remembers what is done on it or with it."""

    def __init__(self, name: str, record: list[str]) -> None:
        self.name, self.record = name, record

    def record_event(self) -> str:
        return f"event after {self.record[-1]}"

    def wait_event(self, event: str) -> None:
        self.record.append(f"{self.name} waits for {event}")


class Pinned:
    """A pinned tensor, and its copy."""

    def __init__(self, name: str, record: list[str], streams: list[Stream]) -> None:
        self.name, self.record, self.streams = name, record, streams

    def to(self, target: torch.device, *, non_blocking: bool) -> "Pinned":
        assert target == GPU
        assert non_blocking
        self.record.append(f"copy of {self.name} on {self.streams[-1].name}")
        return Pinned(f"copy of {self.name}", self.record, self.streams)

    def record_stream(self, stream: Stream) -> None:
        self.record.append(f"{stream.name} uses {self.name}")


def test_the_next_copy_starts_before_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    record: list[str] = []
    streams = [Stream("main", record)]

    @contextlib.contextmanager
    def on(stream: Stream) -> Iterator[None]:
        streams.append(stream)
        yield
        streams.pop()

    monkeypatch.setattr("torch.cuda.Stream", lambda _: Stream("side", record))
    monkeypatch.setattr("torch.cuda.stream", on)
    monkeypatch.setattr("torch.cuda.current_stream", lambda _: streams[-1])
    given: Any = [Pinned(name, record, streams) for name in "abc"]
    for batch, tensors in upload.upload_ahead(given, lambda batch: [batch], GPU):
        record.append(f"step of {batch.name} with {tensors[0].name}")  # type: ignore[attr-defined]

    def received(name: str) -> list[str]:
        copy = f"copy of {name}"
        return [f"main waits for event after {copy} on side", f"main uses {copy}", f"step of {name} with {copy}"]

    assert record == [
        *("copy of a on side", "copy of b on side"),
        *received("a"),
        *("copy of c on side",),
        *received("b"),
        *received("c"),
    ]


def test_a_cpu_gets_each_batch_when_it_is_read() -> None:
    read: list[int] = []

    def batches() -> Iterator[int]:
        for number in range(3):
            read.append(number)
            yield number

    found = upload.upload_ahead(batches(), lambda number: [torch.tensor(number)], torch.device("cpu"))
    for number, (batch, (tensor,)) in enumerate(found):
        assert batch == tensor.item() == number
        assert read == list(range(number + 1))
