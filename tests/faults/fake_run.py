"""Stands in for a run: fake_run.py FOLDER SECONDS MODE [NUMBER]. It appends its name to starts.txt (and its GPUs, if
told any, to devices.txt), and ends as MODE says, with NUMBER for each of its metrics:

ok; wrong (a UserError: exit status 2); collapsed (exit status 3); crash-once (dies, and does better at the next
attempt); silent (no result); preempted-once (ends with status 75 the first time, and does better then);
preempted-when-asked (75 at SIGTERM).
"""

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

folder, seconds, mode = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
alive = open(folder / "fake.lock", "w")  # noqa: SIM115  # held as long as this process lives
fcntl.flock(alive, fcntl.LOCK_EX)
if hasattr(sys, "of_fork_server"):  # a fork of the harness's server
    Path("server.txt").write_text(str(os.getppid()))
with open("starts.txt", "a") as starts:
    starts.write(f"{folder.name}\n")
Path("tunables.txt").write_text(os.environ.get("GLIBC_TUNABLES", ""))


def tell_device(what: str) -> None:
    if os.environ.get("CUDA_VISIBLE_DEVICES"):
        with open("devices.txt", "a") as devices:
            devices.write(f"{what} {os.environ['CUDA_VISIBLE_DEVICES']}\n")


tell_device("begin")
crashed = folder / "crashed"
if mode == "crash-once" and not crashed.exists():
    crashed.touch()
    raise SystemExit("out of luck")
if mode == "preempted-once" and not crashed.exists():
    crashed.touch()
    raise SystemExit(75)
if mode == "preempted-when-asked":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
if mode == "silent":
    raise SystemExit(0)
if mode in ("wrong", "collapsed"):
    status, number, message = {
        "wrong": ("failed", 2, "the pictures are gone"),
        "collapsed": ("collapsed", 3, "the loss stays at ln K"),
    }[mode]
    failure = {"status": status, "exit_status": number, "message": message, "finished": ""}
    (folder / "failure.json").write_text(json.dumps(failure))
    raise SystemExit(number)
time.sleep(seconds)
metrics = dict.fromkeys(("top1", "top1_best", "map", "ap", "ap50", "knn20", "knn200"), float((*sys.argv, "50")[4]))
result = {"run_id": folder.name, "metrics": metrics, "wall_seconds": seconds, "counts": {"num_test_images": 100}}
temporary = folder / ".result.json"
temporary.write_text(json.dumps(result))
temporary.rename(folder / "result.json")
tell_device("end")
