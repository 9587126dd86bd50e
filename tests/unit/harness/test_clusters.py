"""Runs elsewhere: what is asked of SLURM and Kubernetes for them, and that where a run goes is no part of its name."""

import json
import os
import signal
import socket
import sys
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from reproduce.__main__ import main
from reproduce.errors import RetryableError, UserError
from reproduce.harness.execute import kubernetes, kubernetes_manifests, slurm, workflow
from reproduce.harness.plan import build, plan_file
from reproduce.harness.plan.config_cache import WHOLE_MACHINE, ConfigCache
from reproduce.harness.plan.model import Plan, Request, Run

GOLDEN = Path(__file__).parents[2] / "golden" / "kubernetes.yaml"
EIGHT_NODES = ("num_processes=64", "processes_per_node=8", "num_threads=4")
SITE = (
    "slurm.partition=gpu",
    "slurm.account=vision",
    "slurm.gres='gpu:a100'",
    "slurm.time_limit_hours=24",
    "slurm.memory_gb=500",
)


def planned(cluster: str, *options: str) -> Plan:
    return build.build_plan(Request(("table7",), "paper", cluster=cluster, cluster_options=options))


def named(plan: Plan, name: str) -> Run:
    return next(run for run in plan.runs.values() if run.name == name)


def as_read(plan: Plan, name: str) -> dict[str, Any]:
    """A run as the workflow reads it."""
    (run,) = [run for run in json.loads(plan_file.write(plan).read_text())["runs"] if run["name"] == name]
    return dict(run)


def test_cluster_options_are_no_part_of_the_run_id(checkout: Path) -> None:
    here = planned("local")
    assert here.runs.keys() == planned("slurm", *EIGHT_NODES, *SITE).runs.keys()
    assert here.runs.keys() == planned("kubernetes", "kubernetes.image=x", "num_processes=4").runs.keys()


def test_a_pretraining_spans_machines_and_an_evaluation_takes_one_process(checkout: Path) -> None:
    plan = planned("slurm", *EIGHT_NODES)
    pretraining, evaluation = named(plan, "swav_800ep"), named(plan, "knn_head")
    assert (pretraining.num_nodes, pretraining.num_processes) == (8, 64)
    assert (evaluation.num_nodes, evaluation.num_processes) == (1, 1)
    launcher = [
        "-m",
        "reproduce.engine.distributed.launch",
        "--nproc-per-node",
        "8",
        "--nnodes",
        "8",
        "reproduce.pretrain",
    ]
    assert pretraining.command()[1:8] == launcher


def test_slurm_resources_of_a_pretraining(checkout: Path) -> None:
    plan = planned("slurm", *EIGHT_NODES, *SITE, "slurm.extra_args='--reservation=june'")
    assert slurm.resources(as_read(plan, "swav_800ep"), plan.cluster) == {
        "nodes": 8,
        "cpus_per_task": 64,
        "gres": "gpu:a100:8",
        "mem_mb": 500_000,
        "runtime": 1440,
        "slurm_partition": "gpu",
        "slurm_account": "vision",
        "slurm_extra": "--ntasks-per-node=1 --signal=USR1@120 --reservation=june",
        "mpi": 0,
    }
    without_gpus = planned("slurm", "num_processes=2", "processes_per_node=1", "gpus_per_process=0")
    asked = slurm.resources(as_read(without_gpus, "swav_800ep"), without_gpus.cluster)
    assert (asked["nodes"], asked["tasks"], asked["mem_mb"]) == (2, 2, 0)
    assert asked["cpus_per_task"] == 2
    more_threads = planned("slurm", *EIGHT_NODES, "cores_per_gpu=2")
    assert slurm.resources(as_read(more_threads, "swav_800ep"), more_threads.cluster)["cpus_per_task"] == 32
    assert not asked.keys() & {"gres", "slurm_partition", "slurm_account", "runtime"}


def test_a_sites_limits_reach_the_scheduler(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "_slurm_output", lambda *_: "AccountingStorageType = accounting_storage/none")
    options = ("max_jobs=7", "slurm.signal_before_end_seconds=300", "slurm.poll_seconds=11", "slurm.qos=long")
    plan = planned("slurm", *options)
    executor = " ".join(workflow._executor_args(plan, cores=4, num_gpus=0))
    assert executor.startswith("--executor slurm --jobs 7 ")
    assert executor.endswith(" --slurm-status-command squeue --slurm-init-seconds-before-status-checks 11")
    asked = slurm.resources(as_read(plan, "swav_800ep"), plan.cluster)
    assert (asked["slurm_extra"], asked["qos"]) == ("--ntasks-per-node=1 --signal=USR1@300", "long")
    of_kubernetes = planned("kubernetes", "max_jobs=7", "kubernetes.image=x", "kubernetes.results_claim=y")
    assert workflow._executor_args(of_kubernetes, cores=4, num_gpus=0) == ["--cores", "7"]


def test_a_clusters_own_names_and_sizes_are_in_every_manifest(checkout: Path) -> None:
    """None is the default, which the golden manifests have."""
    site = ("namespace=vision", "image=x", "results_claim=y", "workdir=/srv/swav", "shared_memory_gb=24")
    more = ("gpu_resource=amd.com/gpu", "priority_class=urgent")
    plan = planned("kubernetes", "num_processes=2", *(f"kubernetes.{option}" for option in (*site, *more)))
    (job,) = kubernetes_manifests.manifests(as_read(plan, "swav_800ep"), plan.cluster, "pictures")
    assert job["metadata"]["namespace"] == "vision"
    pod = job["spec"]["template"]["spec"]
    assert pod["priorityClassName"] == "urgent"
    assert pod["tolerations"] == [{"key": "amd.com/gpu", "operator": "Exists"}]
    memory, results = pod["volumes"]
    assert memory["emptyDir"] == {"medium": "Memory", "sizeLimit": "24G"}
    assert results["persistentVolumeClaim"] == {"claimName": "y"}
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"amd.com/gpu": 2}
    assert container["workingDir"] == "/srv/swav"
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == [
        *("/dev/shm", "/srv/swav/results", "/srv/swav/.cache")
    ]


def evaluation(name: str, cluster: str, *options: str) -> Plan:
    request = Request((), "paper", data="/data", cluster=cluster, cluster_options=options)
    return build.single_run_plan(request, "evaluate", name, "any")


@pytest.mark.parametrize(
    ("name", "options", "num_processes", "num_nodes"),
    [
        ("voc_detection", (), 8, 1),
        ("voc_detection_pirl", ("num_processes=64", "processes_per_node=8"), 8, 1),
        ("coco_detr", ("num_processes=64", "processes_per_node=8"), 16, 2),
        ("coco_detr", ("processes_per_node=4", "detector_processes=4"), 4, 1),
        ("knn", ("num_processes=64", "processes_per_node=8", "detector_processes=4"), 1, 1),
    ],
)
def test_detectors_train_on_as_many_processes_as_the_papers(
    checkout: Path, name: str, options: tuple[str, ...], num_processes: int, num_nodes: int
) -> None:
    (run,) = evaluation(name, "slurm", *options).runs.values()
    assert (run.num_processes, run.num_nodes) == (num_processes, num_nodes)
    assert run.run_id in evaluation(name, "local").runs


def test_a_detector_requests_its_gpus_from_each_scheduler(checkout: Path) -> None:
    plan = evaluation("coco_detr", "slurm", "processes_per_node=8")
    read = as_read(plan, "coco_detr")
    asked = slurm.resources(read, plan.cluster)
    assert (asked["nodes"], asked["gres"], asked["cpus_per_task"]) == (2, "gpu:8", 64)
    assert read["command"][3:8] == ["--nproc-per-node", "8", "--nnodes", "2", "reproduce.evaluate"]
    plan = evaluation(
        "coco_detr", "kubernetes", "kubernetes.image=x", "kubernetes.results_claim=y", "processes_per_node=8"
    )
    service, job = kubernetes_manifests.manifests(as_read(plan, "coco_detr"), plan.cluster, plan.data_root)
    assert (service["kind"], job["spec"]["completions"]) == ("Service", 2)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 8


def test_a_detector_that_cannot_be_spread_evenly_names_its_own_option(checkout: Path) -> None:
    with pytest.raises(UserError, match=r"cluster\.detector_processes=8 can't be spread evenly"):
        evaluation("voc_detection", "slurm", "processes_per_node=3")


def test_a_measurement_is_exclusive() -> None:
    run = {"kind": "measure", "cores": WHOLE_MACHINE, "num_nodes": 1, "num_processes": 1}
    cluster = ConfigCache(Request((), "paper", cluster="slurm")).cluster
    asked = slurm.resources(run, cluster)
    assert asked["slurm_extra"].endswith("--exclusive") and asked["cpus_per_task"] == 8


def test_a_run_is_a_step_on_all_machines_of_its_job(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "first")
    plan = planned("slurm", *EIGHT_NODES, "slurm.container_command='apptainer exec --nv swav.sif'")
    words = slurm.command(as_read(plan, "swav_800ep"), plan.cluster)
    assert words[:4] == ["srun", "--nodes=8", "--ntasks=8", "--cpus-per-task=64"]
    assert any(word.startswith("--export=ALL,MASTER_ADDR=first,MASTER_PORT=") for word in words)
    image = words.index("apptainer")
    assert words[image : image + 6] == ["apptainer", "exec", "--nv", "swav.sif", "/app/.venv/bin/python", "-m"]
    alone = slurm.command(as_read(plan, "knn_head"), plan.cluster)
    assert "--ntasks=1" in alone and not any("MASTER_ADDR" in word for word in alone)


@pytest.mark.parametrize(
    ("cluster", "options", "says"),
    [
        ("slrum", (), "did you mean 'slurm'"),
        ("slurm", ("slurm.partion=gpu",), "did you mean 'cluster.slurm.partition'"),
        ("slurm", ("num_processes=9", "processes_per_node=8"), "can't be spread evenly"),
        ("local", ("num_processes=2", "processes_per_node=1"), "try CLUSTER=slurm or kubernetes"),
    ],
)
def test_a_wrong_cluster_is_refused(checkout: Path, cluster: str, options: tuple[str, ...], says: str) -> None:
    with pytest.raises(UserError, match=says):
        planned(cluster, *options)


def test_only_this_checkouts_jobs_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of another checkout run on, and so does what else the user has submitted."""
    lines = [
        f"12|RUNNING|{tmp_path / 'other'}|rule_swav-s0-0123456789",
        f"13|PENDING|{tmp_path / 'link' / 'snakemake'}|rule_knn-s0-0123456789",
        f"14|RUNNING|{tmp_path / 'own' / 'snakemake'}|a job | by hand",
    ]
    (tmp_path / "own" / "snakemake").mkdir(parents=True)
    (tmp_path / "link").symlink_to("own")
    monkeypatch.setattr(slurm, "_slurm_output", lambda *_: "\n".join(lines))
    assert slurm.jobs(tmp_path / "own" / "snakemake") == [slurm.Job("13", "knn-s0-0123456789", "PENDING")]


def test_without_the_schedulers_commands_nothing_is_started(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="sbatch, squeue, scancel, scontrol of SLURM can't be found"):
        main(["run", "table7", "--cluster", "slurm"])
    claims = "kubernetes.image=x kubernetes.results_claim=y"
    with pytest.raises(UserError, match="kubectl, which can't be found"):
        main(["run", "table7", "--cluster", "kubernetes", "--cluster-options", claims])
    assert not Path("results").exists()


KUBERNETES = (
    "kubernetes.image=swav-reproduction",
    "kubernetes.data_claim=pictures",
    "kubernetes.results_claim=results",
    "kubernetes.secret=wandb",
    "kubernetes.node_selector='gpu-model=a100'",
    "kubernetes.memory_gb=200",
    "num_processes=16",
    "processes_per_node=8",
)


def test_manifests_are_the_expected_ones_and_valid(checkout: Path) -> None:
    """`python -m tests.unit.harness.test_clusters` writes the golden file anew."""
    objects = list(yaml.safe_load_all(golden()))
    assert objects == list(yaml.safe_load_all(GOLDEN.read_text()))
    assert [one["kind"] for one in objects] == ["Service", "Job", "Job"]
    for one in objects:
        kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)


def golden() -> str:
    plan = build.build_plan(
        Request(("table7",), "paper", data="/data", cluster="kubernetes", cluster_options=KUBERNETES)
    )
    runs = [as_read(plan, name) for name in ("swav_800ep", "knn_head")]
    return kubernetes_manifests.as_text(
        [one for run in runs for one in kubernetes_manifests.manifests(run, plan.cluster, plan.data_root)]
    )


def test_render_writes_a_file_a_run(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--cluster", "kubernetes", "--cluster-options", "kubernetes.image=x kubernetes.results_claim=y"]
    assert main(["render", "table7", "--scale", "paper", *options]) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [path.name[:3] for path in written] == [f"{number:03}" for number in range(len(written))]
    assert written[0].name.startswith("000-swav-800ep-s0-") and all(path.is_file() for path in written)
    (written[0].parent / "099-of-another-table.yaml").touch()
    assert main(["render", "table7", "--scale", "paper", *options]) == 0
    assert sorted(written[0].parent.iterdir()) == written  # `kubectl apply -f` of the folder starts nothing else
    capsys.readouterr()
    with pytest.raises(UserError, match=r"kubernetes\.image and kubernetes\.results_claim"):
        main(["render", "table7", "--scale", "paper", "--cluster", "kubernetes"])
    with pytest.raises(UserError, match="--cluster kubernetes"):
        main(["render", "table7", "--scale", "paper"])


def test_rendered_manifests_replace_older_ones(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither another table's manifests lie in it, nor those of runs that the same table needed before."""
    options = ["--cluster", "kubernetes", "--cluster-options", "kubernetes.image=x kubernetes.results_claim=y"]
    for request in (["text"], ["table7", "--seeds", "2"], ["table7"]):
        capsys.readouterr()
        assert main(["render", *request, "--scale", "paper", *options]) == 0
        written = [Path(line) for line in capsys.readouterr().out.splitlines()]
        folder = Path("reports/paper/kubernetes", request[0])
        assert sorted(folder.iterdir()) == written != []


POD = """
import sys
from pathlib import Path
folder, codes = Path(), sys.argv[1].split(",")
tries = folder / "tries"
tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
print("try", len(tries.read_text()), flush=True)
code = int(codes[len(tries.read_text()) - 1])
raise SystemExit(code)
"""
"""A run: its first try ends with the first of the codes, and so on."""


def in_fake_cluster(folder: Path, monkeypatch: pytest.MonkeyPatch, program: list[str]) -> str:
    """Stand where a plan.json has one run, for a cluster that is a stand-in; returns its run_id."""
    (folder / "bin").mkdir()
    fake = Path(__file__).parents[2] / "faults" / "fake_kubectl.py"
    (folder / "bin" / "kubectl").write_text(f'#!/bin/sh\nexec {sys.executable} {fake} "$@"\n')
    (folder / "bin" / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_CLUSTER", str(folder / "cluster"))
    monkeypatch.setattr(kubernetes, "POLL_CLUSTER_SECONDS", 0.05)
    monkeypatch.chdir(folder)
    run = {"run_id": "tiny-s0-0123456789", "kind": "pretrain", "num_nodes": 1, "num_processes": 1, "cores": 1}
    options = ("kubernetes.image=x", "kubernetes.results_claim=y", f"image_python='{sys.executable}'")
    cluster = ConfigCache(Request((), "smoke", cluster="kubernetes", cluster_options=options)).cluster
    runs = [{**run, "command": ["python", "-c", *program]}]
    Path("plan.json").write_text(json.dumps({"runs": runs, "cluster": cluster, "data_root": str(folder)}))
    return str(run["run_id"])


def test_a_cluster_that_does_not_answer_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    job = kubernetes._Job("tiny", "default")
    answers = iter(["", None, None, "{}"])

    def call(verb: str, *_: str, **__: str) -> str:
        answer = "" if verb == "apply" else next(answers)
        if answer is None:
            raise UserError("refused")
        return answer

    monkeypatch.setattr(job, "_call", call)
    monkeypatch.setattr(kubernetes, "POLL_CLUSTER_SECONDS", 0)
    job.start([])
    assert job.ending() is None
    monkeypatch.setattr(kubernetes, "PATIENCE_SECONDS", 0.001)
    answers = chain([""], repeat(None))
    job.start([])
    with pytest.raises(RetryableError, match="refused, for 0 minutes"):
        job.ending()
    unstarted = kubernetes._Job("tiny", "default")
    monkeypatch.setattr(unstarted, "_call", call)
    with pytest.raises(UserError, match="refused"):
        unstarted.start([])


@pytest.mark.parametrize("found", [None, {"metadata": {"deletionTimestamp": "2026-12-01T00:00:00Z"}}])
def test_a_deleted_job_is_not_awaited(found: dict[str, object] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    job, done = kubernetes._Job("tiny", "default"), list[str]()
    monkeypatch.setattr(job, "_get", lambda *_: found)
    with pytest.raises(RetryableError, match="somebody has deleted the Job tiny"):
        job.ending()
    monkeypatch.setattr(job, "_call", lambda verb, *_, **__: done.append(verb))
    job.start([])
    assert done == (["delete", "apply"] if found else ["apply"])  # a new one would go with it


def test_a_job_has_ended_only_if_a_condition_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    job, conditions = kubernetes._Job("tiny", "default"), [{"type": "Suspended", "status": "True"}]
    monkeypatch.setattr(job, "_get", lambda *_: {"status": {"conditions": conditions}})
    conditions.append({"type": "Failed", "status": "False"})
    assert job.ending() is None
    conditions.append({"type": "Complete", "status": "True"})
    assert job.ending() == {"type": "Complete", "status": "True"}


def test_sigterm_deletes_the_kubernetes_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = in_fake_cluster(tmp_path, monkeypatch, ["import time; time.sleep(600)"])

    def ask(_job: object) -> bool:
        os.kill(os.getpid(), signal.SIGTERM)
        return True

    runs = tmp_path / "cluster" / f"{name}.json"
    monkeypatch.setattr(kubernetes._Job, "follow", lambda job: "Running" in runs.read_text() and ask(job))
    before = signal.getsignal(signal.SIGTERM)
    assert kubernetes.main("plan.json", name) == 128 + signal.SIGTERM
    signal.signal(signal.SIGTERM, before)
    assert not runs.exists()


@pytest.mark.parametrize(
    ("codes", "status", "says"),
    [("0", 0, ""), ("75,1,75,0", 0, ""), ("75,3", 3, "error: the Job tiny-s0-0123456789 failed")],
)
def test_a_kubernetes_job_is_followed_to_its_end(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    codes: str,
    status: int,
    says: str,
) -> None:
    """The kubectl is a stand-in that carries out a Job's policy with processes."""
    name = in_fake_cluster(tmp_path, monkeypatch, [POD, codes])
    assert kubernetes.main("plan.json", name) == status
    said = capfd.readouterr()
    assert said.out.split() == [word for number in range(len(codes.split(","))) for word in ("try", str(number + 1))]
    assert says in said.err


if __name__ == "__main__":
    GOLDEN.write_text(golden())
