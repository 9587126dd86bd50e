"""Features are read from disk only if the same device and products would compute them again."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from evals import features
from evals.context import CenterCropConfig


def cache_key(kind: str = "pooled") -> dict[str, Any]:
    context: Any = SimpleNamespace(
        run=SimpleNamespace(provenance={"checkpoint_sha256": "c"}),
        normalize=SimpleNamespace(mean=[0.5], std=[0.2]),
        cfg=SimpleNamespace(precision="fp32"),
    )
    images: Any = SimpleNamespace(sha256=lambda: "i", paths=["a.jpg"])
    return features._cache_key(images, kind, CenterCropConfig(256, 224), context)


def test_device_and_products_are_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu = cache_key()
    assert on_cpu["device"] == "cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    before = torch.backends.cuda.matmul.allow_tf32
    keys = []
    for allowed in (False, True):
        torch.backends.cuda.matmul.allow_tf32 = allowed
        keys.append(cache_key())
    torch.backends.cuda.matmul.allow_tf32 = before
    assert [key["device"] for key in keys] == ["cuda", "cuda"]
    assert [key["matmul"] for key in keys] == ["fp32", "tf32"]
    assert len({repr(key) for key in (on_cpu, *keys)}) == 3


def test_pooled_features_are_not_read_as_the_heads() -> None:
    assert cache_key("pooled") != cache_key("head")


@pytest.mark.parametrize("library", ["torch", "torchvision", "PIL"])
def test_features_of_another_version_of_a_library_are_not_read(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = features.FeatureStore(tmp_path, "knn-s0-1")
    before = store._folder_of(cache_key())
    monkeypatch.setattr(f"{library}.__version__", "0.1")
    assert store._folder_of(cache_key()) != before
