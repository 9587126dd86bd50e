"""Where a checkout is: braces and spaces in its path are none of Snakemake's wildcards, and its disk has room."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from reproduce.errors import UserError
from reproduce.harness.execute import workflow
from reproduce.harness.execute.status_printer import StatusPrinter
from reproduce.harness.plan import build, plan_file
from reproduce.harness.plan.model import CACHE, Request
from reproduce.system import REPO_ROOT


def test_a_path_with_braces_and_spaces(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Snakemake finds every run of the plan, and what it would start names the run's own folder."""
    odd = checkout / "a {b} c"
    (odd / CACHE).mkdir(parents=True)
    monkeypatch.chdir(odd)
    plan = build.build_plan(Request(("table1",), "paper"))
    arguments = workflow._snakemake_command(plan_file.write(plan).resolve(), ["--cores", "1"], 0)
    done = subprocess.run(
        [*arguments, "--dry-run", "--printshellcmds"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPO_ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for run in plan.runs.values():
        assert f"'{odd}/{plan_file.path_of('paper')}' {run.run_id} " in done.stdout + done.stderr


def test_a_disk_without_room_is_noticed_before_anything_runs(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = build.build_plan(Request(("table7",), "smoke"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12, 10**6))
    with pytest.raises(UserError, match=r"results/smoke has 0.0 GB free, and the runs to do write about [0-9.]+ GB"):
        workflow.execute_plan(plan, 1, {}, StatusPrinter())
