"""Stands in for kubectl and a cluster of one machine: a Job's pods are processes, replaced as its failure policy says.

What it keeps lies in $FAKE_CLUSTER. `apply` starts a process that is the cluster, and lives as long as the Job.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

CLUSTER = Path(os.environ["FAKE_CLUSTER"])


def action(job: dict[str, Any], code: int) -> str:
    for rule in job["spec"]["podFailurePolicy"]["rules"]:
        if code in rule.get("onExitCodes", {}).get("values", []):
            return str(rule["action"])
    return "Count"


def live(name: str) -> None:
    """The Job's life."""
    file = CLUSTER / f"{name}.json"
    job = json.loads(file.read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    pods: list[dict[str, Any]] = []
    crashes = 0

    def keep(*conditions: dict[str, str]) -> None:
        temporary = file.with_suffix(".new")
        temporary.write_text(json.dumps({**job, "pods": pods, "status": {"conditions": list(conditions)}}))
        temporary.rename(file)

    while crashes <= job["spec"]["backoffLimit"]:
        pod: dict[str, Any] = {
            "metadata": {"name": f"{name}-0-{len(pods)}", "creationTimestamp": f"{len(pods):03}"},
            "status": {},
        }
        pods.append(pod)
        with open(CLUSTER / pod["metadata"]["name"], "wb") as log:
            process = subprocess.Popen(container["args"], stdout=log, stderr=subprocess.STDOUT)
            pod["status"] = {"phase": "Running"}
            keep()
            code = process.wait()
        ended = {"state": {"terminated": {"exitCode": code}}}
        pod["status"] = {"phase": "Failed" if code else "Succeeded", "containerStatuses": [ended]}
        if code == 0:
            return keep({"type": "Complete", "status": "True"})
        done = action(job, code)
        if done == "FailJob":
            return keep({"type": "Failed", "status": "True", "message": f"a pod ended with {code}"})
        crashes += done == "Count"
    return keep({"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"})


def main(words: list[str]) -> None:
    if words[0] == "live":
        return live(words[1])
    verb, *rest = words[2:]  # after --namespace NAME
    CLUSTER.mkdir(exist_ok=True)
    if verb == "apply":
        job = list(yaml.safe_load_all(sys.stdin))[-1]
        name = job["metadata"]["name"]
        (CLUSTER / f"{name}.json").write_text(json.dumps(job))
        lives = subprocess.Popen(
            [sys.executable, __file__, "live", name], start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,  # else whoever reads `apply` waits for the Job's end
        )  # fmt: skip
        (CLUSTER / f"{name}.pid").write_text(str(lives.pid))
    elif verb == "delete":
        os.killpg(int((CLUSTER / f"{rest[1]}.pid").read_text()), signal.SIGKILL)
        (CLUSTER / f"{rest[1]}.json").unlink()
    elif verb == "get" and rest[0] == "job":
        file = CLUSTER / f"{rest[1]}.json"
        print(file.read_text() if file.exists() else "")
    elif verb == "get":
        job = json.loads((CLUSTER / f"{rest[2].partition('=')[2]}.json").read_text())
        print(json.dumps({"items": job.get("pods", [])}))
    elif verb == "logs":
        print((CLUSTER / rest[-1]).read_text(), end="")
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
