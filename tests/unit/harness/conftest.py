"""A checkout of one's own for the harness, and runs that are done without doing anything."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from models.zoo import entries
from reproduce.config.compose import compose
from reproduce.harness.plan import build
from reproduce.harness.plan.model import Plan, Request, Run
from reproduce.harness.spec import tables

AUTHORS = "swav_800ep_pretrain.pth.tar"
AUTHORS_SHA256 = "5" * 64
DETECTION = ("ap", "ap50", "ap75")
METRICS = {
    "knn": ("knn20", "knn200"),
    "knn_head": ("knn20", "knn200"),
    "voc07_svm": ("map",),
    "coco_detr": ("ap", "ap50", "ap75", "ap_s", "ap_m", "ap_l"),
    "voc_detection": DETECTION,
    **{f"voc_detection_{paper}": DETECTION for paper in ("moco", "supervised", "bownet", "pirl")},
    "evaluate": ("top1", "top5", "top1_best"),
    "measure": ("params_millions", "hours", "peak_memory_gb"),
}


@pytest.fixture
def checkout(tmp_path: Path, composed_here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the tables of the checkout, nothing recorded, nothing done."""
    shutil.copytree(tables.TABLES_DIR, tmp_path / "tables")
    for path in (tmp_path / "tables").glob("*/recorded.yaml"):
        path.unlink()
    for path in (tmp_path / "tables" / "golden").glob("*_runs.json"):
        path.unlink()
    for path in (tmp_path / "tables" / "smoke").glob("table*.yaml"):  # every run gives the same number here
        path.write_text(path.read_text().replace(", control: Random trunk", ""))
    papers = tmp_path / "tables" / "paper" / "table7.yaml"  # one row with runs is enough for what is tested by it
    papers.write_text(re.sub(r"pretrain: (?!swav).*", "not_run: Not in these tests.", papers.read_text()))
    monkeypatch.setattr(tables, "TABLES_DIR", tmp_path / "tables")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def smoke(checkout: Path) -> Plan:
    """The plan of both smoke tables."""
    return build.build_plan(Request(("table3", "table7"), "smoke"))


@pytest.fixture
def finish() -> Callable[..., None]:
    """Write a run's result.json, parents' before: `finish(run, 50.0)`."""

    def write(run: Run, value: float = 50.0, **more: Any) -> None:
        names = METRICS.get(run.name, METRICS.get(run.kind, ()))
        result = {
            "run_id": run.run_id,
            "kind": run.kind,
            "name": run.name,
            "seed": run.seed,
            "metrics": dict.fromkeys(names, value),
            "counts": {"num_skipped_images": 0, "num_test_images": 50_000 if "paper" in run.folder else 1000},
            "parents": run.parents,
            "finished": "2026-01-01T00:00:00+00:00",
            "wall_seconds": 12.0,
            "peak_memory_gb": 1.5,
            "provenance": {"git_commit": "c" * 40, "git_dirty": False, "packages": {"torch": "2"}},
        } | more
        network = run.run_id if run.kind == "pretrain" else "".join(run.parents)
        if isinstance(result["provenance"], dict) and run.kind != "measure":
            of_network = {"checkpoint_sha256": hashlib.sha256(network.encode()).hexdigest()}
            result["provenance"] = of_network | result["provenance"]
        run.result.parent.mkdir(parents=True, exist_ok=True)
        run.result.write_text(json.dumps(result))

    return write


@pytest.fixture
def sing(finish: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """Write what an evaluation of the authors' checkpoint left: `sing("knn_head", 59.2)`. Its hash is known."""
    monkeypatch.setattr(entries, "known_sha256", lambda _: AUTHORS_SHA256)

    def write(
        evaluation: str, value: float, *overrides: str, checkpoint: str = AUTHORS, sha256: str = AUTHORS_SHA256
    ) -> Run:
        given = f"/far/away/{checkpoint}"
        (run,) = build.single_run_plan(Request((), "paper"), "evaluate", evaluation, given, overrides).runs.values()
        finish(run, value, provenance={"git_commit": "c" * 40, "git_dirty": False, "checkpoint_sha256": sha256})
        (Path(run.folder) / "config.yaml").write_text(
            OmegaConf.to_yaml(compose("evaluate", run.overrides), resolve=True)
        )
        return run

    return write
