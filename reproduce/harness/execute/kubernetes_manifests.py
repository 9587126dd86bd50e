"""The Kubernetes manifests of runs: an Indexed Job for each, and a Service if its pods have to find each other."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from reproduce.errors import EXIT_TRAINING_FAILED, EXIT_USAGE, REQUEUE, UserError
from reproduce.files import write_atomic

PORT = 29500
"""The port of the first pod, at which the pods of a run meet."""
MAX_POD_FAILURES = 6
"""Crashes of pods before a run counts as failed; preempted pods do not count."""
GRACE_SECONDS = 120
"""Time for a pod that is to end to save a checkpoint."""
JOB_NAME_LABEL = "batch.kubernetes.io/job-name"
LABELS = {"app.kubernetes.io/name": "reproduce"}


def job_name(run_id: str) -> str:
    """Return the run_id as a Kubernetes name: lower case letters, digits, dashes, at most 63 with the pod's index."""
    readable, _, code = run_id.rpartition("-")
    return f"{re.sub('[^a-z0-9]+', '-', readable.lower())[:45].strip('-')}-{code}"


def manifests(run: Mapping[str, Any], cluster: Mapping[str, Any], data_root: str) -> list[dict[str, Any]]:
    """Return the run's Job and, if it has several pods, before it the headless Service by which they find each other.

    `run` is an entry of plan.json, `cluster` the section of the config, `data_root` the folder of the images.
    """
    site, name, nodes = cluster["kubernetes"], job_name(run["run_id"]), run["num_nodes"]
    meta = {"name": name, "namespace": site["namespace"], "labels": LABELS}
    pod = {
        "metadata": {"labels": LABELS},
        "spec": {
            "restartPolicy": "Never",  # a pod that failed is replaced, by the policy below
            "terminationGracePeriodSeconds": GRACE_SECONDS,
            "automountServiceAccountToken": False,  # a run does not call the API
            "securityContext": {
                "runAsNonRoot": True,
                "fsGroup": 1000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            **({"subdomain": name} if nodes > 1 else {}),
            **({"nodeSelector": _labels(site["node_selector"])} if site["node_selector"] else {}),
            **({"priorityClassName": site["priority_class"]} if site["priority_class"] else {}),
            **(
                {"tolerations": [{"key": site["gpu_resource"], "operator": "Exists"}]}
                if cluster["gpus_per_process"]
                else {}
            ),
            "containers": [_container(run, cluster, data_root)],
            "volumes": list(_volumes(site)),
        },
    }
    ends = [
        {"action": "FailJob", "onExitCodes": _exit_codes(EXIT_USAGE, EXIT_TRAINING_FAILED)},  # it would fail again
        {
            "action": "Ignore",
            "onExitCodes": _exit_codes(REQUEUE),
        },  # it has saved a checkpoint, and resumes in the next pod
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": meta,
        "spec": {
            "completionMode": "Indexed",
            "completions": nodes,
            "parallelism": nodes,
            "backoffLimit": MAX_POD_FAILURES,
            "podFailurePolicy": {"rules": ends},
            "template": pod,
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta,
        # A pod's name must stand before the pod is ready: it becomes so only with the others.
        "spec": {"clusterIP": "None", "selector": {JOB_NAME_LABEL: name}, "publishNotReadyAddresses": True},
    }
    return [service, job] if nodes > 1 else [job]


def _container(run: Mapping[str, Any], cluster: Mapping[str, Any], data_root: str) -> dict[str, Any]:
    site, nodes = cluster["kubernetes"], run["num_nodes"]
    name = job_name(run["run_id"])
    gpus = run["num_processes"] // nodes * cluster["gpus_per_process"]
    memory = {"memory": f"{site['memory_gb']:g}G"} if site["memory_gb"] else {}
    meet = [("MASTER_ADDR", f"{name}-0.{name}"), ("MASTER_PORT", str(PORT))] if nodes > 1 else []
    place = Path(site["workdir"])
    mounts: list[dict[str, Any]] = [{"name": "shared-memory", "mountPath": "/dev/shm"}]  # noqa: S108  # the pods' own
    if site["results_claim"]:
        mounts += [
            {"name": "results", "mountPath": str(place / kept), "subPath": kept} for kept in ("results", ".cache")
        ]
    if site["data_claim"]:
        mounts.append({"name": "data", "mountPath": str(place / data_root), "readOnly": True})
    return {
        "name": "run",
        "image": site["image"],
        "workingDir": str(place),
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "args": [cluster["image_python"], *run["command"][1:]],
        **({"env": [{"name": key, "value": value} for key, value in meet]} if meet else {}),
        **({"envFrom": [{"secretRef": {"name": site["secret"]}}]} if site["secret"] else {}),
        "resources": {
            "requests": {"cpu": str(cpus_per_pod(run, cluster)), **memory},
            "limits": {**memory, **({site["gpu_resource"]: gpus} if gpus else {})},
        },
        "volumeMounts": mounts,
    }


def cpus_per_pod(run: Mapping[str, Any], cluster: Mapping[str, Any]) -> int:
    """Return the number of cores of each pod: one per thread, or more for the loaders of its GPUs."""
    of_process = max(cluster["num_threads"], cluster["cores_per_gpu"] * cluster["gpus_per_process"])
    return int(of_process * max(1, run["num_processes"] // run["num_nodes"]))


def _volumes(site: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    size = f"{site['shared_memory_gb']:g}G"
    yield {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": size}}
    if site["results_claim"]:
        yield {"name": "results", "persistentVolumeClaim": {"claimName": site["results_claim"]}}
    if site["data_claim"]:
        yield {"name": "data", "persistentVolumeClaim": {"claimName": site["data_claim"], "readOnly": True}}


def _labels(given: str) -> dict[str, str]:
    pairs = [item.partition("=") for item in given.split(",")]
    if wrong := [key for key, equals, _ in pairs if not key or not equals]:
        raise UserError(f"kubernetes.node_selector is LABEL=VALUE,LABEL=VALUE; {wrong[0]!r} is none")
    return {key: value for key, _, value in pairs}


def _exit_codes(*codes: int) -> dict[str, Any]:
    return {"containerName": "run", "operator": "In", "values": list(codes)}


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  # repeat a value instead of referring to it
        return True


def as_text(objects: list[dict[str, Any]]) -> str:
    """Return manifests as YAML."""
    return yaml.dump_all(objects, Dumper=_Plain, sort_keys=False, width=120)


def render(plan: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the manifest of every run, numbered so that parents come first; return the files.

    Other manifests in the folder are deleted, so that the whole folder can be applied at once.
    """
    check_complete(plan["cluster"])
    written = []
    for number, run in enumerate(plan["runs"]):
        path = folder / f"{number:03}-{job_name(run['run_id'])}.yaml"
        write_atomic(path, as_text(manifests(run, plan["cluster"], plan["data_root"])))
        written.append(path)
    for other in set(folder.glob("*.yaml")) - set(written):
        other.unlink()
    return written


def check_complete(cluster: Mapping[str, Any]) -> None:
    """Raise `UserError` if the config lacks what every pod needs."""
    site = cluster["kubernetes"]
    missing = [f"kubernetes.{key}" for key in ("image", "results_claim") if not site[key]]
    if missing:
        raise UserError(
            f"CLUSTER=kubernetes needs {' and '.join(missing)}, as CLUSTER_OPTIONS='{missing[0]}=...' "
            "(python -m reproduce: --cluster-options); docs/clusters.md says what each is"
        )
