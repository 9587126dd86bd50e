"""Runs as Indexed Jobs of Kubernetes: their manifests, and one run's Job from its start to its end.

Snakemake has an executor for Kubernetes, but its pods have no shared volume, no /dev/shm, no secret by reference and no
second try. So Snakemake walks the graph here, as on one machine, and the process that it starts for a run is this one:

python -m reproduce.harness.execute.kubernetes PLAN RUN_ID
"""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from reproduce.errors import ERROR_PREFIX, EXIT_TRAINING_FAILED, EXIT_USAGE, REQUEUE, UserError, run_cli
from reproduce.files import write_atomic

PORT = 29500
"""Where the pods of a run meet, at the first of them."""
FAILURES = 6
"""Pods of a run that may crash before it counts as failed; those that were preempted do not count."""
GRACE_SECONDS = 120
"""Time to save for a pod that is to end."""
POLL_SECONDS = 5.0
FOUND = "batch.kubernetes.io/job-name"
LABELS = {"app.kubernetes.io/name": "reproduce"}
INDEX = "batch.kubernetes.io/job-completion-index"


def name_of(run_id: str) -> str:
    """The run_id as Kubernetes takes names: at most 63 small letters, digits and dashes, with the pod's number."""
    readable, _, code = run_id.rpartition("-")
    return f"{re.sub('[^a-z0-9]+', '-', readable.lower())[:45].strip('-')}-{code}"


def manifests(run: Mapping[str, Any], cluster: Mapping[str, Any], data: str) -> list[dict[str, Any]]:
    """The run's Job, and before it, where its pods must find each other, their headless Service.

    `run` is one of a plan.json, `cluster` the config's section, `data` the folder of the pictures.
    """
    site, name, nodes = cluster["kubernetes"], name_of(run["run_id"]), run["num_nodes"]
    meta = {"name": name, "namespace": site["namespace"], "labels": LABELS}
    pod = {
        "metadata": {"labels": LABELS},
        "spec": {
            "restartPolicy": "Never",  # a pod that failed is replaced, by the policy below
            "terminationGracePeriodSeconds": GRACE_SECONDS,
            "automountServiceAccountToken": False,  # a run asks nothing of the cluster
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
            "containers": [_container(run, cluster, data)],
            "volumes": list(_volumes(site)),
        },
    }
    ends = [
        {"action": "FailJob", "onExitCodes": _exit_codes(EXIT_USAGE, EXIT_TRAINING_FAILED)},  # it would come again
        {"action": "Ignore", "onExitCodes": _exit_codes(REQUEUE)},  # it has saved, and goes on in the next pod
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
            "backoffLimit": FAILURES,
            "podFailurePolicy": {"rules": ends},
            "template": pod,
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta,
        # A pod's name must stand before the pod is ready: it becomes so only with the others.
        "spec": {"clusterIP": "None", "selector": {FOUND: name}, "publishNotReadyAddresses": True},
    }
    return [service, job] if nodes > 1 else [job]


def _container(run: Mapping[str, Any], cluster: Mapping[str, Any], data: str) -> dict[str, Any]:
    site, nodes = cluster["kubernetes"], run["num_nodes"]
    name = name_of(run["run_id"])
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
        mounts.append({"name": "data", "mountPath": str(place / data), "readOnly": True})
    return {
        "name": "run",
        "image": site["image"],
        "workingDir": str(place),
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "args": [cluster["image_python"], *run["command"][1:]],
        **({"env": [{"name": key, "value": value} for key, value in meet]} if meet else {}),
        **({"envFrom": [{"secretRef": {"name": site["secret"]}}]} if site["secret"] else {}),
        "resources": {
            "requests": {"cpu": str(cpus(run, cluster)), **memory},
            "limits": {**memory, **({site["gpu_resource"]: gpus} if gpus else {})},
        },
        "volumeMounts": mounts,
    }


def cpus(run: Mapping[str, Any], cluster: Mapping[str, Any]) -> int:
    """Cores of each pod."""
    return int(cluster["num_threads"]) * max(1, run["num_processes"] // run["num_nodes"])


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
    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  # what stands in two places is written twice
        return True


def as_text(objects: list[dict[str, Any]]) -> str:
    """Manifests as YAML."""
    return yaml.dump_all(objects, Dumper=_Plain, sort_keys=False, width=120)


def render(plan: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write every run's manifest, numbered so that what a run builds on comes before it.

    Nothing else stays in the folder: all of it can be applied at once.
    """
    refuse_incomplete(plan["cluster"])
    written = []
    for number, run in enumerate(plan["runs"]):
        path = folder / f"{number:03}-{name_of(run['run_id'])}.yaml"
        write_atomic(path, as_text(manifests(run, plan["cluster"], plan["data_root"])))
        written.append(path)
    for other in set(folder.glob("*.yaml")) - set(written):
        other.unlink()
    return written


def refuse_incomplete(cluster: Mapping[str, Any]) -> None:
    """Raise `UserError` where the config does not say what every pod needs."""
    site = cluster["kubernetes"]
    missing = [f"kubernetes.{key}" for key in ("image", "results_claim") if not site[key]]
    if missing:
        raise UserError(
            f"CLUSTER=kubernetes needs {' and '.join(missing)}, as CLUSTER_OPTIONS='{missing[0]}=...' "
            "(python -m reproduce: --cluster-options); docs/clusters.md says what each is"
        )


def check(cluster: Mapping[str, Any]) -> None:
    """Raise `UserError` where no Job could be started from here."""
    refuse_incomplete(cluster)
    if shutil.which("kubectl") is None:
        raise UserError(
            "CLUSTER=kubernetes starts Jobs by kubectl, which can't be found here: install it, or only write the "
            "manifests (make render-table3; python -m reproduce render)"
        )


class _Asked(Exception):
    """This process was asked to end."""


class _Job:
    """One run's Job in the cluster, by kubectl."""

    def __init__(self, name: str, namespace: str) -> None:
        self.name = name
        self._words = ["kubectl", "--namespace", namespace]
        self._followed: set[str] = set()
        self._log: subprocess.Popen[bytes] | None = None

    def ending(self) -> dict[str, Any] | None:
        """The condition that ended the Job; None where it goes on."""
        conditions = (self._get("job", self.name) or {}).get("status", {}).get("conditions", [])
        ended = [one for one in conditions if one["type"] in ("Complete", "Failed") and one["status"] == "True"]
        return ended[0] if ended else None

    def start(self, objects: list[dict[str, Any]]) -> None:
        """Create the Job, unless a harness that was killed left it running; one that has ended makes room."""
        if self._get("job", self.name) and self.ending():
            self.delete()
        self._call("apply", "--filename", "-", given=as_text(objects))

    def delete(self) -> None:
        """Remove the Job, and wait until its pods have ended."""
        self._call("delete", "job,service", self.name, "--ignore-not-found", "--cascade=foreground", "--wait")

    def follow(self) -> bool:
        """Pass on what the first pod says: the present one, or the one that replaced it. Whether there is any."""
        if self._log is not None and self._log.poll() is None:
            return True
        for pod in self._pods():
            first = pod["metadata"].get("annotations", {}).get(INDEX, "0") == "0"
            name, phase = pod["metadata"]["name"], pod["status"].get("phase")
            if first and name not in self._followed and phase not in (None, "Pending"):
                self._followed.add(name)
                self._log = subprocess.Popen([*self._words, "logs", "--follow", name], stdin=subprocess.DEVNULL)
                return True
        return False

    def heard_out(self) -> None:
        """Wait until all is said that the first pods, which have ended, said."""
        while self.follow():
            assert self._log is not None
            try:
                self._log.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self._log.kill()

    def status(self) -> int:
        """Exit status of a Job that failed: that of the pod that ended it, where it is one that counts."""
        states = [state for pod in self._pods() for state in pod["status"].get("containerStatuses", [])]
        codes = {state.get("state", {}).get("terminated", {}).get("exitCode") for state in states}
        return next((code for code in (EXIT_USAGE, EXIT_TRAINING_FAILED) if code in codes), 1)

    def _pods(self) -> list[dict[str, Any]]:
        found = self._get("pods", "--selector", f"{FOUND}={self.name}") or {}
        return sorted(found.get("items", []), key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))

    def _get(self, *what: str) -> dict[str, Any] | None:
        told = self._call("get", *what, "--ignore-not-found", "--output", "json")
        return dict(json.loads(told)) if told.strip() else None

    def _call(self, *words: str, given: str = "") -> str:
        done = subprocess.run([*self._words, *words], input=given, capture_output=True, text=True, check=False)
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise UserError(f"kubectl {words[0]} of {self.name}: {said[-1].removeprefix('error: ')}")
        return done.stdout


def main(plan_file: str, run_id: str) -> int:
    """Do one run as a Job; the exit status is the run's own. Asked to end, it ends the Job."""
    plan = json.loads(Path(plan_file).read_text())
    (run,) = [run for run in plan["runs"] if run["run_id"] == run_id]
    job = _Job(name_of(run_id), plan["cluster"]["kubernetes"]["namespace"])

    def ask(_signal: int, _frame: FrameType | None) -> None:
        raise _Asked

    signal.signal(signal.SIGTERM, ask)
    try:
        job.start(manifests(run, plan["cluster"], plan["data_root"]))
        while not (ending := job.ending()):
            job.follow()
            time.sleep(POLL_SECONDS)
    except _Asked:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        job.delete()
        return 128 + signal.SIGTERM
    job.heard_out()
    if ending["type"] == "Complete":
        return 0
    print(f"{ERROR_PREFIX}the Job {job.name} failed: {ending.get('message') or ending.get('reason')}", file=sys.stderr)
    return job.status()


if __name__ == "__main__":
    raise SystemExit(run_cli(lambda: main(sys.argv[1], sys.argv[2])))
