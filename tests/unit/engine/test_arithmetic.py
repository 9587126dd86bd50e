"""TF32, cuDNN's benchmark and determinism: set in one place, and recorded. A CPU build of torch has the switches."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from reproduce import pretrain
from reproduce.config.compose import compose
from reproduce.config.identity import run_id
from reproduce.engine import arithmetic
from reproduce.engine.runs.result import translate_error
from reproduce.errors import UserError
from reproduce.files import read_json
from tests.runs import REPO_ROOT, TINY, call, losses

SWAV = ("experiment=swav_800ep", "scale=smoke")


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(arithmetic.CUBLAS_WORKSPACE, "")
    yield
    arithmetic.configure_torch(compose("pretrain", [*SWAV]))


def configured(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> dict[str, object]:
    """What the provenance of a result says on a GPU."""
    arithmetic.configure_torch(compose("pretrain", [*SWAV, *overrides]))
    with monkeypatch.context() as patch:
        patch.setattr("torch.cuda.is_available", lambda: True)
        patch.setattr("torch.backends.cudnn.version", lambda: 91200)
        return arithmetic.describe()


def test_products_are_in_tf32_only_if_the_precision_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = {
        "matmul": "fp32",
        "convolutions": "fp32",
        "cudnn": 91200,
        "cudnn_benchmark": True,
        "deterministic": False,
    }
    for precision in ("fp32", "bf16", "fp16"):
        assert configured(monkeypatch, f"precision={precision}") == exact
    found = configured(monkeypatch, "precision=tf32")
    assert found == {**exact, "matmul": "tf32", "convolutions": "tf32"}
    with torch.backends.cudnn.flags(enabled=True):  # torch's own readers agree, too
        assert torch.get_float32_matmul_precision() == "high"
    assert run_id(compose("pretrain", [*SWAV, "precision=tf32"])) != run_id(compose("pretrain", [*SWAV]))


def test_determinism_excludes_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    found = configured(monkeypatch, "cluster.deterministic=true")
    assert (found["deterministic"], found["cudnn_benchmark"]) == (True, False)
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ[arithmetic.CUBLAS_WORKSPACE] == ":4096:8"
    assert configured(monkeypatch, "cluster.cudnn_benchmark=false")["cudnn_benchmark"] is False
    assert not torch.are_deterministic_algorithms_enabled()


def test_detectors_do_not_benchmark() -> None:
    chosen = {name: compose("evaluate", [f"eval={name}", "checkpoint=x"]).cluster.cudnn_benchmark
              for name in ("knn", "linear_imagenet", "coco_detr", "voc_detection")}  # fmt: skip
    assert chosen == {"knn": True, "linear_imagenet": True, "coco_detr": False, "voc_detection": False}


def test_a_deterministic_run_says_so_and_repeats(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for name in ("first", "second"):
        where = (f"paths.data_root={data}", f"paths.results={tmp_path / name}")
        status, said = call(pretrain.main, monkeypatch, *TINY, "cluster.deterministic=true", *where)
        assert status == 0, said
        (result,) = (tmp_path / name).glob("*/*/result.json")
        assert read_json(result)["provenance"]["arithmetic"] == {"deterministic": True}
        found.append(losses(tmp_path / name))
    assert found[0] == found[1]


def test_an_operation_without_a_deterministic_version_ends_the_run_in_one_sentence() -> None:
    torch.use_deterministic_algorithms(True)
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(3, 3, dtype=torch.float).put_(torch.zeros(1, dtype=torch.int64), torch.ones(1), accumulate=False)
    translated = translate_error(caught.value)
    assert isinstance(translated, UserError)
    assert "cluster.deterministic=true is not possible here: torch's put_ has no deterministic" in str(translated)


def test_nothing_else_sets_how_torch_computes() -> None:
    switch = re.compile(r"cudnn\.\w+ =|allow_tf32|fp32_precision|use_deterministic|matmul_precision|set_num_threads")
    sources = [path for room in ("reproduce", "models", "evals") for path in (REPO_ROOT / room).rglob("*.py")]
    setting = {path.name for path in sources if switch.search(path.read_text())}
    assert setting == {"arithmetic.py"}


def test_products_are_read_after_either_of_torchs_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests of GPUs use the newer one, after which torch's older getters raise."""
    configured(monkeypatch)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    for precision, found in (("ieee", "fp32"), ("tf32", "tf32")):
        conv.fp32_precision = precision
        assert arithmetic.products() == {"matmul": "fp32", "convolutions": found}
