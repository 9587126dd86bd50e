"""Equal runs are one; a change of a config makes new runs of what depends on it, and of nothing else."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from models.zoo import entries
from reproduce.config import RunKind
from reproduce.config.compose import compose
from reproduce.config.identity import run_dir, run_id
from reproduce.errors import UserError
from reproduce.harness.plan import build, config_cache
from reproduce.harness.plan.config_cache import FILE_NAME, ConfigCache
from reproduce.harness.plan.model import CACHE, Plan, Request, Source
from reproduce.harness.plan.run_state import RunState, run_states
from reproduce.system import REPO_ROOT
from tests.unit.harness.verdicts import Finish


def test_both_tables_share_their_pretrainings(smoke: Plan) -> None:
    assert Counter((run.kind, run.name) for run in smoke.runs.values()) == {
        ("pretrain", "swav_800ep"): 1,
        ("pretrain", "random"): 1,
        ("evaluate", "linear_places205"): 2,
        ("evaluate", "voc07_svm"): 2,
        ("evaluate", "linear_inat18"): 2,
        ("evaluate", "voc_detection"): 2,
        ("evaluate", "knn_head"): 2,
        ("evaluate", "coco_detr"): 2,
    }
    assert len(smoke.cells) == 14
    swav = next(run for run in smoke.runs.values() if run.name == "swav_800ep")
    assert smoke.cells_of(swav.run_id) == 7
    knn = next(run for run in smoke.runs.values() if run.name == "knn_head" and run.parent_name == "swav_800ep")
    assert smoke.cells_of(knn.run_id) == 2  # both columns of Table 7
    assert knn.parents == [swav.run_id]


def test_planned_run_ids_are_those_of_the_runs(smoke: Plan) -> None:
    for run in smoke.runs.values():
        cfg = compose(run.kind, run.overrides)
        assert (run_id(cfg), str(run_dir(cfg))) == (run.run_id, run.folder)


def test_each_seed_has_its_own_pretraining(checkout: Path) -> None:
    plan = build.build_plan(Request(("table7",), "smoke", seeds=(0, 1, 2)))
    assert len(plan.runs) == 12
    assert all(sorted(cell.runs) == [0, 1, 2] for cell in plan.cells)
    assert all(plan.runs[run.parents[0]].seed == run.seed for run in plan.runs.values() if run.parents)


@pytest.mark.parametrize("source", ["scratch", "released"])
def test_averaged_evaluations_have_that_many_seeds_per_pretraining(checkout: Path, source: Source) -> None:
    plan = build.build_plan(Request(("table3",), "paper", seeds=(0, 1), source=source))
    (cell,) = [cell for cell in plan.cells if cell.column == "voc0712_ap50" and cell.row == "SwAV"]
    runs = [plan.runs[name] for name in cell.runs.values()]
    assert list(cell.runs) == [run.seed for run in runs] == list(range(10))
    networks = [plan.runs[run.parents[0]].seed for run in runs if run.parents]
    assert networks == ([0] * 5 + [1] * 5 if source == "scratch" else [])
    other = next(cell for cell in plan.cells if cell.column == "voc07")
    assert list(other.runs) == [0, 1]
    for run in runs:
        run.result.parent.mkdir(parents=True)
        run.result.write_text("{}")
    assert build.plan_for_other_seeds(plan) is None


def test_dashes_and_other_papers_rows_need_no_runs(checkout: Path) -> None:
    plan = build.build_plan(Request(("table3",), "paper"))
    planned: dict[str, set[str]] = {}
    for cell in plan.cells:
        planned.setdefault(cell.row, set()).add(cell.column)
    transfer, detection = {"places205", "voc07", "inat18"}, {"voc0712_ap50", "coco_ap"}
    assert all(planned[row] == transfer | detection for row in ("Supervised", "MoCov2", "SwAV"))
    assert planned["MoCo"] == {*transfer, "voc0712_ap50"}
    assert planned["RotNet"] == {"places205", "voc07"}
    assert "SimCLR" not in planned  # its networks are public weights
    assert plan.data_root == ""  # not said yet, and planning does not need it


def test_generated_images_go_below_the_cache(checkout: Path) -> None:
    plan = build.build_plan(Request(("table7",), "smoke"))
    assert plan.generated_data_dir == plan.data_root and plan.data_root.startswith(".cache/")
    assert build.build_plan(Request(("table7",), "smoke", data=str(checkout / "mine"))).generated_data_dir == ""


def test_a_data_folder_with_special_characters_is_quoted(checkout: Path) -> None:
    odd = "my pictures, all=of them's/\\x\\'\\\\" + "\\"
    plan = build.build_plan(Request(("table7",), "smoke", data=odd))
    for run in plan.runs.values():
        assert compose(run.kind, run.overrides).paths.data_root == odd


def test_a_single_run_is_the_tables_run(smoke: Plan) -> None:
    request = Request((), "smoke")
    swav = next(run for run in smoke.runs.values() if run.name == "swav_800ep")
    assert list(build.single_run_plan(request, "pretrain", "swav_800ep").runs) == [swav.run_id]
    (alone,) = build.single_run_plan(request, "evaluate", "knn_head", checkpoint=swav.run_id).runs
    assert alone in smoke.runs


def test_an_unknown_data_config_is_refused(checkout: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'generated'"):
        build.build_plan(Request(("table7",), "smoke", data_config="generatd"))


@pytest.mark.parametrize(
    ("file", "before", "after", "changed"),
    [
        ("eval/knn_head.yaml", "num_neighbors: [20, 200]", "num_neighbors: [20, 199]", {"knn_head"}),
        (
            "experiment/swav_800ep.yaml",
            "name: swav_800ep",
            "name: swav_800ep\nprecision: bf16",
            {"swav_800ep", "knn_head", "linear_places205", "linear_inat18", "voc07_svm", "voc_detection", "coco_detr"},
        ),
        ("cluster/local.yaml", "num_processes: 1", "num_processes: 1\nnum_workers: 3", set()),
    ],
)
def test_a_changed_config_makes_new_runs_of_what_depends_on_it(
    smoke: Plan, finish: Finish, monkeypatch: pytest.MonkeyPatch, file: str, before: str, after: str, changed: set[str]
) -> None:
    for run in smoke.runs.values():
        finish(run)
    shutil.copytree(REPO_ROOT / "reproduce" / "conf", Path("code/reproduce/conf"))
    shutil.copytree(REPO_ROOT / "reproduce" / "config", Path("code/reproduce/config"))
    monkeypatch.setattr(config_cache, "REPO_ROOT", Path("code").resolve())
    own_conf = Path("code/reproduce/conf").resolve()
    monkeypatch.setattr("reproduce.config.compose.CONF_DIR", own_conf)
    conf = own_conf / file
    assert before in conf.read_text()
    conf.write_text(conf.read_text().replace(before, after))
    again = build.build_plan(smoke.request)
    new = [again.runs[name] for name, state in run_states(again).items() if state != RunState.DONE]
    assert {run.name for run in new} == changed
    if file.startswith("experiment"):
        assert {run.parent_name for run in new} == {"", "swav_800ep"}  # the random trunk's evaluations stand


def test_cached_configs_are_composed_again_if_the_zoo_changes(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost of evaluating public weights depends on their width."""
    before = ConfigCache(Request((), "smoke")).fingerprint
    (checkout / "released.yaml").write_text(entries.ZOO.read_text().replace("width: 1,", "width: 2,"))
    monkeypatch.setattr(entries, "ZOO", checkout / "released.yaml")
    assert ConfigCache(Request((), "smoke")).fingerprint != before


def test_evaluations_of_a_run_to_do_are_to_do(smoke: Plan, finish: Finish) -> None:
    for run in smoke.runs.values():
        finish(run)
    assert set(run_states(smoke).values()) == {RunState.DONE}
    swav = next(run for run in smoke.runs.values() if run.name == "swav_800ep")
    swav.result.unlink()
    swav.failure.write_text("{}")
    states = run_states(smoke)
    assert states[swav.run_id] == RunState.FAILED
    assert {smoke.runs[name].parent_name for name, state in states.items() if state == RunState.TO_DO} == {"swav_800ep"}
    finish(swav, provenance={"checkpoint_sha256": "0" * 64})  # not what was measured
    assert sum(state == RunState.TO_DO for state in run_states(smoke).values()) == 6


@pytest.mark.parametrize(
    ("command", "heavy"), [("plan", {"torch", "wandb", "sklearn", "matplotlib"}), ("check", {"torch"})]
)
def test_the_harness_imports_no_torch(checkout: Path, command: str, heavy: set[str]) -> None:
    script = (
        f"import sys; from reproduce.__main__ import main; main([{command!r}, 'table3', 'table7']);"
        f" sys.exit(', '.join({heavy!r} & set(sys.modules)) or 0)"
    )
    environment = os.environ | {"PYTHONPATH": str(REPO_ROOT), "WANDB_MODE": "disabled"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("table", ["table10", "claims"])
def test_a_collapse_is_settled_only_if_the_paper_prints_it(checkout: Path, table: str) -> None:
    plan = build.build_plan(Request((table,), "paper"))
    for name in ("swav_400ep_sinkhorn1", "swav_400ep_sinkhorn30", "swav_400ep_hard"):
        for run in plan.runs.values():
            if run.name == name:
                run.failure.parent.mkdir(parents=True)
                run.failure.write_text('{"status": "collapsed"}')
    states = {run.label: run_states(plan)[run.run_id] for run in plan.runs.values()}
    assert states["swav_400ep_sinkhorn1, seed 0"] == RunState.COLLAPSED
    assert states["linear_imagenet of swav_400ep_sinkhorn1, seed 0"] == RunState.COLLAPSED
    others = {label: found for label, found in states.items() if "sinkhorn1," not in label}
    assert set(others.values()) == {RunState.FAILED, RunState.TO_DO}
    for run in plan.runs.values():
        if run.name == "swav_400ep_sinkhorn1":
            run.failure.write_text('{"status": "failed"}')
            assert run_states(plan)[run.run_id] == RunState.FAILED  # out of memory, say: that the paper does not print


DAMAGES: dict[str, Callable[[str], str]] = {
    "cut short": lambda cached: cached[:-40],
    "without its last line": lambda cached: cached[: cached.rindex("\n", 0, -1) + 1],
    "empty": lambda _: "",
    "no text": lambda _: "\0\0\0",
    "too deep": lambda _: "[" * 100_000,
    "JSON": lambda _: json.dumps({"fingerprint": "0", "configs": {}}),
    "one line": lambda cached: cached.replace("\n", "\t"),
    "another value": lambda cached: cached.replace('"own"', '"theirs"'),
    "no UTF-8": lambda cached: cached.replace('"own"', '"\udcff"'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_config_cache_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    composed: list[list[str]] = []

    def compose_data(overrides: list[str]) -> dict[str, str]:
        composed.append(overrides)
        return {"name": "own", "source": "ILSVRC2012"}

    def plan_once() -> str:
        configs = ConfigCache(Request(("table7",), "smoke"))
        assert configs.data(["scale=smoke"]) == {"name": "own", "source": "ILSVRC2012"}
        configs.save()
        return capsys.readouterr().err

    monkeypatch.setattr(config_cache, "_data", compose_data)
    monkeypatch.chdir(tmp_path)
    assert [plan_once(), plan_once(), len(composed)] == ["", "", 1]
    file = CACHE / FILE_NAME
    file.write_text(DAMAGES[damage](file.read_text()), errors="surrogateescape")
    assert plan_once() == f"warning: {file} is damaged; its configs are composed again\n"
    assert [plan_once(), len(composed)] == ["", 2]


@pytest.mark.parametrize("overrides", [["seed=2"], ["seed=1", "seed=3"], ["seed='2'"], ["seed=1", "++seed=2"], []])
def test_cached_configs_equal_configs_composed_one_by_one(checkout: Path, overrides: list[str]) -> None:
    configs = ConfigCache(Request(("table7",), "smoke"))
    asked: list[tuple[RunKind, list[str]]] = [
        ("pretrain", ["experiment=swav_800ep"]),
        ("evaluate", ["eval=knn", "checkpoint=swav_800ep-s0-0123456789"]),
        ("evaluate", ["eval=knn", "checkpoint=swav_800ep-s1-0123456789"]),
        ("evaluate", ["eval=knn", "checkpoint='released:swav_800ep'"]),
        ("evaluate", ["eval=knn", "normalize=none", "checkpoint=0"]),
        ("evaluate", ["eval=knn", "normalize=swav", "checkpoint=0"]),
        ("evaluate", ["eval=knn", "normalize=none", "normalize.mean=[0.5,0,0]", "checkpoint=0"]),
        ("evaluate", ["eval=knn", "normalize=none", "normalize=imagenet", "checkpoint=0"]),
        ("evaluate", ["eval=knn", "checkpoint=0"]),
    ]
    for kind, what in asked:
        run = configs.run(kind, [*what, "scale=smoke", *overrides], [])
        cfg = compose(kind, [*what, "scale=smoke", *overrides])
        assert (run.run_id, run.seed, run.folder) == (run_id(cfg), cfg.seed, str(run_dir(cfg)))


def test_a_training_is_expected_to_fail_only_if_all_its_cells_are(checkout: Path) -> None:
    plan = build.build_plan(Request(("table10",), "paper"))
    (run,) = [run for run in plan.runs.values() if run.name == "swav_400ep_sinkhorn1"]
    assert plan.expected_to_fail(run)
    (printed,) = [cell for cell in plan.cells if cell.pretrain == "swav_400ep_sinkhorn10" and cell.column]
    (failing,) = [cell for cell in plan.cells if cell.pretrain == run.name]
    also = dataclasses.replace(printed, runs=failing.runs)
    assert not dataclasses.replace(plan, cells=[*plan.cells, also]).expected_to_fail(run)
    assert not plan.expected_to_fail(plan.runs[next(iter(printed.runs.values()))])


def test_a_row_that_may_fail_accepts_a_failure(checkout: Path) -> None:
    plan = build.build_plan(Request(("table10",), "lite"))
    pretrainings = [run for run in plan.runs.values() if run.kind == "pretrain"]
    assert [run.name for run in pretrainings if plan.expected_to_fail(run)] == ["swav_400ep_sinkhorn1"]


@pytest.mark.parametrize(
    ("table", "column", "rows"),
    [
        (
            "table3",
            "voc0712_ap50",
            {
                "Supervised": "_supervised",
                "NPID++": "_pirl",
                "MoCo": "_moco",
                "PIRL": "_pirl",
                "MoCov2": "_moco",
                "SwAV": "",
            },
        ),
        (
            "table4",
            "ap75",
            {
                "Supervised": "_supervised",
                "NPID++": "_pirl",
                "MoCov1": "_moco",
                "PIRL": "_pirl",
                "MoCov2": "_moco",
                "SwAV": "",
            },
        ),
    ],
)
def test_a_row_is_evaluated_by_the_protocol_of_its_number(
    checkout: Path, table: str, column: str, rows: dict[str, str]
) -> None:
    """Only SwAV's detector has a learning rate of .1; the others are quoted from papers with protocols of their own."""
    plan = build.build_plan(Request((table,), "paper", source="released"))
    cells = {cell.row: cell for cell in plan.cells if cell.column == column}
    assert {row: cell.eval for row, cell in cells.items()} == {row: f"voc_detection{end}" for row, end in rows.items()}
    for cell in cells.values():
        assert {plan.runs[name].name for name in cell.run_ids} == {cell.eval}


composed_here: list[list[str]] = []
"""What `counted` composed in this process; those that it forks have lists of their own."""


def counted(kind: RunKind, overrides: list[str]) -> DictConfig:
    composed_here.append(overrides)
    return compose(kind, overrides)


def test_configs_composed_ahead_by_several_processes_make_the_same_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reproduce.config.compose.compose", counted)
    plans = []
    for cores in (1, 3):
        (tmp_path / str(cores)).mkdir()
        monkeypatch.chdir(tmp_path / str(cores))
        monkeypatch.setattr(config_cache, "available_cores", lambda cores=cores: cores)
        composed_here.clear()
        plans.append(build.build_plan(Request(("table3",), "smoke", seeds=(0, 1))))
        assert (len(composed_here) == 2) == (cores > 1)  # the data and the cluster
        assert config_cache.STAND_IN.run_id not in plans[-1].runs
    assert plans[0] == plans[1]
    assert Path(CACHE / FILE_NAME).read_bytes() == (tmp_path / "1" / CACHE / FILE_NAME).read_bytes()


def test_a_wrong_request_is_one_sentence_wherever_it_is_composed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    request = Request(("table3",), "smoke", cluster_options=("num_gpus=3",))
    found = []
    for cores in (1, 3):
        monkeypatch.setattr(config_cache, "available_cores", lambda cores=cores: cores)
        with pytest.raises(UserError, match=r"there is no config key 'cluster\.num_gpus'") as error:
            build.build_plan(request)
        found.append(str(error.value))
    assert found[0] == found[1]


def test_a_checkpoint_that_was_named_before_it_existed_is_planned_by_its_content(checkout: Path) -> None:
    """Else the plan would look for the result in another folder than the run's, as long as the cache lives."""
    request, own = Request((), "smoke"), str(checkout / "own.pt")
    names = []
    for content in (None, b"one", b"two"):
        if content:
            Path(own).write_bytes(content)
        (run,) = build.single_run_plan(request, "evaluate", "knn", own).runs.values()
        assert run.run_id == run_id(compose("evaluate", run.overrides))
        names.append(run.run_id)
    assert len(set(names)) == 3


def test_a_second_plan_composes_only_what_the_first_did_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan at scale paper is priced beside the same from public weights, whose evaluations have the same configs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config_cache, "available_cores", lambda: 1)
    monkeypatch.setattr("reproduce.config.compose.compose", counted)
    trained = build.build_plan(Request(("table7",), "paper"))
    composed_here.clear()
    released = build.plan_from_released(trained)
    assert released.runs and not composed_here
    (tmp_path / CACHE / FILE_NAME).unlink()
    assert build.build_plan(released.request).runs == released.runs  # each composed by itself
