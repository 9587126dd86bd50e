"""gpu-bench runs at a tiny size on any device, and its tables say what was measured and what was not."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from reproduce.files import read_json, write_json
from reproduce.system import REPO_ROOT
from tests.benchmarks.gpu import __main__ as bench
from tests.benchmarks.gpu import parts, steps
from tests.benchmarks.gpu.sizes import TINY
from tests.benchmarks.gpu.table import NOT_MEASURED, page_section, render


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("bench") / "gpu-bench.json"
    content = bench.run("tiny", "", out)
    assert read_json(out) == content
    return content


def test_every_measurement_is_made(device: torch.device, measured: dict[str, Any]) -> None:
    assert not measured["failed"]
    assert all(value > 0 for name, value in measured["measured"].items() if not name.endswith("idle_share"))
    text = render([measured])
    missing = [line for line in text.splitlines() if NOT_MEASURED in line]
    allowed = 0 if device.type == "cuda" else 2 * len(TINY.num_images)  # launches and idle share
    assert len(missing) == allowed + (importlib.util.find_spec("detectron2") is None), text
    assert measured["hardware"] in text


def test_a_measurement_that_fails_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("CUDA out of memory.\nMore lines.")

    monkeypatch.setattr(steps, "matrix_product_flops", fail)
    monkeypatch.setattr(bench, "step_measurements", lambda *_: iter(()))
    for name in ("optimizers", "checkpoint_halt", "detr", "faster_rcnn", "knn"):
        monkeypatch.setattr(parts, name, fail)
    content = bench.run("tiny", "", tmp_path / "out.json")
    assert content["failed"]["matrix product"] == "RuntimeError: CUDA out of memory."
    assert content["measured"].keys() == {"features_fp32_per_second", "features_bf16_per_second"}
    assert "matrix product (RuntimeError: CUDA out of memory.)" in render([content])


def test_no_measurement_begins_after_the_time_is_up(tmp_path: Path) -> None:
    content = bench.run("tiny", "", tmp_path / "out.json", seconds=0)
    assert content["measured"] == {}
    assert set(content["failed"].values()) == {"there was no time left"}


def test_the_table_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {
        "step_64_resident_seconds": 0.05, "step_64_loader_16_seconds": 0.0625, "step_64_flops": 3e12,
        "matrix_product_flops": 8e14, "loader_images_per_second_per_worker": 76.0, "step_64_idle_share": 0.125,
    }  # fmt: skip
    content = {
        "size": "paper", "hardware": "1 x A GPU", "cores": 16, "torch": "2.14.1", "python": "3.11.7",
        "date": "2026-11-29", "git_commit": "0123456789", "pictures": "photographs", "measured": values, "failed": {},
    }  # fmt: skip
    write_json(tmp_path / "one.json", content)
    assert bench.main(["--table", str(tmp_path / "one.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1 x A GPU, 16 cores, torch 2.14.1, Python 3.11.7, 2026-11-29, commit 0123456, photographs:"
    unknown = " | ".join([NOT_MEASURED] * 3)
    assert f"| normalized crops on the GPU (the bound) | 1,280 | 50.0 | 100% | {unknown} |" in lines
    assert f"| + JPEG files, 16 workers | 1,024 | 62.5 | 80% | {unknown} |" in lines
    assert f"| + augmentation | {unknown} | {unknown} |" in lines
    assert "| CPU cores for 95% of the bound at 64 images | 16.0 |" in lines  # .95 * 1280 / 76
    assert "| GPU idle, 16 workers, 64 images | 12% |" in lines
    product = "a bf16 product of 8192-square matrices"
    assert f"| speed of a step at 64 images, as a share of {product} | 8% |" in lines  # 6e13 of 8e14
    assert f"| {product} | 800 TFLOP/s |" in lines
    assert any(line.startswith("| kNN") and NOT_MEASURED in line for line in lines)


def test_busy_share_counts_overlaps_once() -> None:
    assert steps.busy_share([(0, 4), (1, 2), (3, 5), (8, 10)]) == pytest.approx(0.7)


def test_the_page_shows_what_was_recorded() -> None:
    assert page_section() in (REPO_ROOT / "docs/performance.md").read_text()


def test_without_a_gpu_the_paper_size_is_refused(device: torch.device, capsys: pytest.CaptureFixture[str]) -> None:
    if device.type == "cuda":
        pytest.skip("there is a GPU")
    assert bench.main([]) == 2
    assert "gpu-bench needs a CUDA GPU" in capsys.readouterr().out
