"""The command line: every wrong request is one sentence and exit status 2, before anything runs."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from reproduce.__main__ import main
from reproduce.errors import EXIT_INTERRUPTED, UserError, run_cli
from reproduce.harness.execute import workflow
from reproduce.harness.plan.model import Plan


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["plan", "tabel3"], "did you mean 'table3'"),
        (["record-baseline", "tabel3"], "tabel3 cannot be recorded: did you mean 'table3'"),
        (["plan", "table3", "--scale", "smol"], "no scale 'smol': did you mean 'smoke'"),
        (["run", "table3", "--cluster", "slrum"], "no cluster 'slrum': did you mean 'slurm'"),
        (["run", "table3", "--cluster", "slurm", "--cluster-options", "gpu"], "takes KEY=VALUE KEY=VALUE"),
        (["run", "table3", "--from", "released"], "give it --scale paper"),
        (["run", "table3", "--seeds", "0"], "count from 1"),
        (["run", "table3", "--cores", "many"], "invalid int value: 'many'"),
        (["run", "table3", "--data", "nowhere"], "the folder nowhere given as DATA is not there"),
        (["run", "table3", "--data", "tables/claims.yaml"], "the folder tables/claims.yaml given as DATA is no folder"),
        (["run", "table3", "--scale", "paper"], "needs DATA"),
        (["reproduce", "table3", "--scale", "paper", "--data", "nowhere"], "the folder nowhere given as DATA"),
        (["run", "table3", "--data-config", "generatd"], "did you mean 'generated'"),
        (["run"], "the following arguments are required: TABLE"),
        (["rum", "table3"], "invalid choice: 'rum'"),
        (["pretrain", "swav_80ep"], "no experiment 'swav_80ep': did you mean 'swav_800ep'"),
        (["evaluate", "knnn", "--checkpoint", "x"], "no evaluation 'knnn': did you mean 'knn'"),
        (["evaluate", "knn"], "required: --checkpoint (for make: CHECKPOINT=); `python -m reproduce evaluate --help`"),
        (["export"], "required: --checkpoint (for make: CHECKPOINT=)"),
        (["evaluate", "knn", "--checkpoint", "x", "protocol.temprature=1"], "no config key 'protocol.temprature'"),
        (["plan", "table3", "--scale", "smoke", "tabel7"], "did you mean 'table7'"),
        (["plan", "table3", "--scale", "smoke", "--nope", "x"], "unrecognized arguments: --nope x"),
        (["list", "table3"], "unrecognized arguments: table3"),
        (["run", "table3", "--seeds", "1000000000000"], "a plan has 1,000 seeds at most"),
        (["pretrain", "swav_800ep", "--seed", str(2**64)], "it must be 4294967295 or less"),
        (["evaluate", "knn", "--checkpoint", "x", f"seed={2**32}"], "it must be 4294967295 or less"),
        (["data-prepare"], "required: --archives, --data (for make: ARCHIVES= DATA=)"),
        (["pretrain", "swav_800ep", "epoch=3"], "no config key 'epoch'"),
        (["pretrain", "swav_800ep", "scale=paper"], "give it as --scale (make: SCALE=)"),
        (["evaluate", "--checkpoint", "x", "--", "knn", "data=standard"], "give it as --data-config"),
        (["pretrain", "swav_800ep", "++paths.data_root=elsewhere"], "give it as --data (make: DATA=)"),
        (["report", "table3"], "was checked yet"),
    ],
)
def test_a_wrong_request(checkout: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    assert run_cli(lambda: main(arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and says in error
    assert error.count("\n") == 1
    assert not Path("results").exists()


def test_plan_prints_a_line_a_run(smoke: Plan, finish: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    knn = next(run for run in smoke.runs.values() if run.name == "random")
    finish(knn)
    assert main(["plan", "table3", "table7", "--cores", "2"]) == 0
    out = capsys.readouterr().out
    for run in smoke.runs.values():
        assert run.run_id in out
    assert "14 cells need 14 runs, of which 13 are to do" in out


def test_check_ends_with_its_meaning(
    smoke: Plan, finish: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "table3"]) == 3
    assert "a needed run failed or is missing" in capsys.readouterr().out
    for run in smoke.runs.values():
        finish(run)
    assert main(["check", "table3"]) == 4
    out = capsys.readouterr().out
    assert "no baseline" in out and "no number was compared: there is nothing to compare it with" in out
    assert main(["report", "table3"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "report: reports/smoke/index.html"


def test_a_done_run_is_not_done_again(
    smoke: Plan, finish: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    swav = next(run for run in smoke.runs.values() if run.name == "swav_800ep")
    finish(swav)
    assert main(["pretrain", "swav_800ep"]) == 0
    assert f"already done: {swav.result}" in capsys.readouterr().out


def test_list_names_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert "tables at scale smoke: table3, table6, table7, text" in out
    assert "swav_800ep" in out and "voc07_svm" in out


def test_ctrl_c_has_its_own_status(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("reproduce.cli.table_commands.list_names", stop)
    assert run_cli(lambda: main(["list"])) == EXIT_INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"


def test_closed_pipe_is_no_error() -> None:
    command = [sys.executable, "-m", "reproduce", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout and child.stderr
        child.stdout.close()  # before anything is written
        said = child.stderr.read()
    assert (said, child.returncode) == ("", EXIT_INTERRUPTED)


@pytest.fixture
def class_folders(checkout: Path) -> list[str]:
    """What names a folder with half of the data sets that Table 3 reads: VOC and COCO are not there."""
    for dataset in ("imagenet", "places205", "inat18"):
        for split in ("train", "val"):
            (checkout / "data" / dataset / split).mkdir(parents=True)
    return ["table3", "--data", "data"]


def test_a_missing_dataset_is_named(class_folders: list[str]) -> None:
    with pytest.raises(UserError, match=r"coco is missing .* 4 of 10 cells need none of it: SKIP_MISSING_DATA=1"):
        main(["run", *class_folders])


def test_what_needs_no_missing_dataset_can_be_made(
    class_folders: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    carried_out: list[Plan] = []
    monkeypatch.setattr(workflow, "execute_plan", lambda plan, *_, whole: carried_out.extend([plan, whole]))
    assert main(["run", *class_folders, "--skip-missing-data"]) == 3
    plan, whole = carried_out
    assert plan.runs.items() < whole.runs.items()  # what was asked for is written, too
    assert {run.name for run in plan.runs.values()} == {"swav_800ep", "random", "linear_places205", "linear_inat18"}
    assert "coco is missing" in capsys.readouterr().out


def test_nothing_is_trained_that_no_cell_can_use(class_folders: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree("data/places205")
    shutil.rmtree("data/inat18")
    monkeypatch.setattr(workflow, "execute_plan", lambda *_: pytest.fail("imagenet alone makes no cell of Table 3"))
    with pytest.raises(UserError, match=r"^DATA misses .*coco is missing \([^;]*\)$"):
        main(["run", *class_folders, "--skip-missing-data"])


def test_a_missing_list_of_labels_is_named_before_anything_is_trained(
    class_folders: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    carried_out: list[Plan] = []
    monkeypatch.setattr(workflow, "execute_plan", lambda plan, *_, whole: carried_out.extend([plan, whole]))
    Path("data/imagenet/10percent.txt").write_text("")
    asked = ["text", *class_folders[1:], "--data-config", "standard"]
    assert main(["plan", *asked]) == 0
    assert "list data/imagenet/1percent.txt is missing" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(UserError, match=r"imagenet/1percent\.txt is missing.*SKIP_MISSING_DATA=1"):
        main(["run", *asked])
    assert main(["run", *asked, "--skip-missing-data"]) == 3
    left_out = {run.name for run in carried_out[1].runs.values()} - {run.name for run in carried_out[0].runs.values()}
    assert left_out == {"semisup_1pct"}


def test_without_data_only_runs_that_are_not_done_are_missing(
    checkout: Path, finish: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    wholes: list[Plan] = []

    def execute(plan: Plan, *_: object, whole: Plan) -> None:
        wholes.append(whole)
        for run in plan.runs.values():
            finish(run)

    monkeypatch.setattr(workflow, "execute_plan", execute)
    assert main(["run", "table2", "--scale", "paper"]) == 3
    for run in wholes[0].runs.values():
        finish(run)
    assert main(["run", "table2", "--scale", "paper"]) == 0
    assert len(wholes) == 2  # both times a part of the plan


@pytest.mark.parametrize("override", ["cluster=slurm", "cluster.executor=kubernetes"])
def test_where_a_single_run_executes_is_no_override(checkout: Path, override: str) -> None:
    with pytest.raises(UserError, match=r"is no override of this command: give it as --cluster \(make: CLUSTER=\)"):
        main(["pretrain", "swav_800ep", override])


def test_a_misspelt_wandb_mode_is_refused_before_anything_runs(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "dissabled")
    assert run_cli(lambda: main(["run", "table7"])) == 2
    assert "there is no WANDB_MODE 'dissabled': did you mean 'disabled'?" in capsys.readouterr().err
    assert not Path("results").exists()


def test_a_dataset_that_a_data_config_leaves_out_is_missing(
    class_folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {"source": "own", "layout": "folders", "train": "train", "val": "val"}
    Path("own.yaml").write_text(yaml.safe_dump({name: {**kept, "root": name} for name in ("imagenet", "inat18")}))
    own = [*class_folders, "--data-config", "own.yaml"]
    assert main(["plan", *own]) == 0
    out = capsys.readouterr().out
    assert "data places205: not there, data config 'own' has no places205\n" in out and "absent" not in out
    with pytest.raises(UserError, match=r"'own' has no places205; .* 2 of 10 cells need none of it: SKIP_MISSING"):
        main(["run", *own])
    Path("own.yaml").write_text(yaml.safe_dump({"inat18": {**kept, "root": "inat18"}}))
    with pytest.raises(UserError, match=r"data config 'own' has no imagenet$"):
        main(["pretrain", *own[1:], "swav_800ep"])
