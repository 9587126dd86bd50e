"""Run one run of a plan as an Indexed Job of Kubernetes, from its start to its end.

Snakemake has an executor for Kubernetes, but its pods have no shared volume, no /dev/shm, no secret by reference and no
second attempt. So Snakemake walks the graph here, as on one machine, and starts this process for a run:

python -m reproduce.harness.execute.kubernetes PLAN RUN_ID
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from reproduce.errors import ERROR_PREFIX, EXIT_TRAINING_FAILED, EXIT_USAGE, RetryableError, UserError, run_cli
from reproduce.harness.execute.kubernetes_manifests import JOB_NAME_LABEL, as_text, check_complete, job_name, manifests

POLL_CLUSTER_SECONDS = 5.0
PATIENCE_SECONDS = 600.0
"""How long a cluster may give no answer before a run is given up, to be tried again."""
DRAIN_SECONDS = 120.0
"""How long the log of a pod that has ended may take to arrive."""
INDEX = "batch.kubernetes.io/job-completion-index"


def check_available(cluster: Mapping[str, Any]) -> None:
    """Raise `UserError` if no Job can be started from this machine."""
    check_complete(cluster)
    if shutil.which("kubectl") is None:
        raise UserError(
            "CLUSTER=kubernetes starts Jobs by kubectl, which can't be found here: install it, or only write the "
            "manifests (make render-table3; python -m reproduce render)"
        )


class _StopRequested(Exception):
    """This process received SIGTERM."""


class _Job:
    """The Job of one run, handled by kubectl."""

    def __init__(self, name: str, namespace: str) -> None:
        self.name = name
        self._words = ["kubectl", "--namespace", namespace]
        self._patience_seconds = 0.0
        """How long the cluster may give no answer; none before the Job is there, because the request may be wrong."""
        self._followed: set[str] = set()
        self._log: subprocess.Popen[bytes] | None = None

    def ending(self) -> dict[str, Any] | None:
        """Return the condition that ended the Job; None while it runs.

        Raises `RetryableError` if it is gone, or is being deleted: nobody would wait for its end.
        """
        found = self._get("job", self.name)
        if found is None or _is_being_deleted(found):
            raise RetryableError(f"somebody has deleted the Job {self.name}")
        conditions = found.get("status", {}).get("conditions", [])
        ended = [one for one in conditions if one["type"] in ("Complete", "Failed") and one["status"] == "True"]
        return ended[0] if ended else None

    def start(self, objects: list[dict[str, Any]]) -> None:
        """Create the Job, unless a killed harness left it running; what is left of an ended one is deleted first."""
        found = self._get("job", self.name)
        if found and (_is_being_deleted(found) or self.ending()):
            self.delete()
        self._call("apply", "--filename", "-", given=as_text(objects))
        self._patience_seconds = PATIENCE_SECONDS

    def delete(self) -> None:
        """Delete the Job, and wait until its pods have ended."""
        self._call("delete", "job,service", self.name, "--ignore-not-found", "--cascade=foreground", "--wait")

    def follow(self) -> bool:
        """Follow the log of the first pod, or of the pod that replaced it; return whether there is one."""
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

    def drain_logs(self) -> None:
        """Wait until the logs of the first pods, which have ended, are complete."""
        while self.follow():
            assert self._log is not None
            try:
                self._log.wait(timeout=DRAIN_SECONDS)
            except subprocess.TimeoutExpired:
                self._log.kill()

    def exit_status(self) -> int:
        """Return the exit status of a failed Job: a final one of a pod, or else 1."""
        states = [state for pod in self._pods() for state in pod["status"].get("containerStatuses", [])]
        codes = {state.get("state", {}).get("terminated", {}).get("exitCode") for state in states}
        return next((code for code in (EXIT_USAGE, EXIT_TRAINING_FAILED) if code in codes), 1)

    def _pods(self) -> list[dict[str, Any]]:
        found = self._get("pods", "--selector", f"{JOB_NAME_LABEL}={self.name}") or {}
        return sorted(found.get("items", []), key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))

    def _get(self, *what: str) -> dict[str, Any] | None:
        deadline = time.monotonic() + self._patience_seconds
        while True:
            try:
                output = self._call("get", *what, "--ignore-not-found", "--output", "json")
            except UserError as error:
                if not self._patience_seconds:
                    raise
                if time.monotonic() > deadline:
                    raise RetryableError(f"{error}, for {self._patience_seconds / 60:.0f} minutes") from error
                time.sleep(POLL_CLUSTER_SECONDS)
            else:
                return dict(json.loads(output)) if output.strip() else None

    def _call(self, *words: str, given: str = "") -> str:
        done = subprocess.run([*self._words, *words], input=given, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise UserError(f"kubectl {words[0]} of {self.name}: {lines[-1].removeprefix('error: ')}")
        return done.stdout


def _is_being_deleted(found: dict[str, Any]) -> bool:
    return "deletionTimestamp" in found.get("metadata", {})


def main(plan_file: str, run_id: str) -> int:
    """Run one run as a Job and return its exit status. SIGTERM deletes the Job."""
    plan = json.loads(Path(plan_file).read_text())
    (run,) = [run for run in plan["runs"] if run["run_id"] == run_id]
    job = _Job(job_name(run_id), plan["cluster"]["kubernetes"]["namespace"])

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise _StopRequested

    signal.signal(signal.SIGTERM, stop)
    try:
        job.start(manifests(run, plan["cluster"], plan["data_root"]))
        while not (ending := job.ending()):
            job.follow()
            time.sleep(POLL_CLUSTER_SECONDS)
    except _StopRequested:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        job.delete()
        return 128 + signal.SIGTERM
    job.drain_logs()
    if ending["type"] == "Complete":
        return 0
    print(f"{ERROR_PREFIX}the Job {job.name} failed: {ending.get('message') or ending.get('reason')}", file=sys.stderr)
    return job.exit_status()


if __name__ == "__main__":
    raise SystemExit(run_cli(lambda: main(sys.argv[1], sys.argv[2])))
