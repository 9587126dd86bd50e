"""A forked program is what `python -m` would have been: output, arguments, environment, status, process group."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reproduce.forking import FORK_SERVER, ForkedProcess, fork_server
from reproduce.system import REPO_ROOT

SLEEPS = "import sys, time\nprint('started', flush=True)\ntime.sleep(60)\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The environment variable's value that finds a running server."""
    folder = Path(os.path.relpath(tmp_path_factory.mktemp("server")))
    with fork_server(folder, os.environ | {"PYTHONPATH": str(REPO_ROOT)}) as found:
        yield found[FORK_SERVER]


@pytest.fixture
def start(server, tmp_path, monkeypatch):
    """Start source code as a module in `tmp_path`; return the process and the file with its output."""
    server = os.path.relpath(os.path.abspath(server), tmp_path)
    processes = []

    def start(source, *arguments, **environment):
        monkeypatch.chdir(tmp_path)
        Path("program.py").write_text(source)
        path = tmp_path / f"log{len(processes)}.txt"
        with open(path, "ab", buffering=0) as log:
            processes.append(ForkedProcess(server, "program", arguments, {**os.environ, **environment}, log))
        return processes[-1], path

    yield start
    for process in processes:
        process.wait(60)


def wait_for(text, path):
    deadline = time.monotonic() + 60
    while text not in path.read_text():
        assert time.monotonic() < deadline, path.read_text()
        time.sleep(0.01)


def test_program_sees_what_python_would_show_it(start, tmp_path):
    source = """
import json, os, sys
print(json.dumps({"arguments": sys.argv[1:], "file": sys.argv[0], "folder": os.getcwd(), "name": __name__,
    "spec": __spec__.name, "first": sys.path[0], "given": os.environ.get("GIVEN"),
    "stdin": sys.stdin.read(), "main": sys.modules["__main__"].__dict__ is globals(), "group": os.getpgid(0) == os.getpid()}))
print("problem", file=sys.stderr)
sys.exit(3)
"""
    process, log = start(source, "a b", "--c=d", GIVEN="x")
    assert process.wait(60) == 3
    first, second = log.read_text().splitlines()
    assert second == "problem"
    seen = json.loads(first)
    assert seen == {
        "arguments": ["a b", "--c=d"],
        "file": str(tmp_path / "program.py"),
        "folder": str(tmp_path),
        "name": "__main__",
        "spec": "program",
        "first": str(tmp_path),
        "given": "x",
        "stdin": "",
        "main": True,
        "group": True,
    }


def test_status_of_an_end_an_error_and_a_signal(start):
    assert start("print('done')")[0].wait(60) == 0
    process, log = start("raise ValueError('wrong')")
    assert process.wait(60) == 1 and "ValueError: wrong" in log.read_text()
    process, log = start(SLEEPS)
    wait_for("started", log)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(60) == -signal.SIGTERM
    assert process.wait() == -signal.SIGTERM == process.returncode


def test_libraries_are_there_and_our_code_is_imported_anew(start):
    source = """
import sys
before = {name.partition(".")[0] for name in sys.modules}
import reproduce
print("torch" in before, "reproduce" in before, "models" in before, reproduce.IMPORT_STARTED > float(sys.argv[1]))
"""
    process, log = start(source, str(time.time()))
    assert process.wait(60) == 0
    assert log.read_text().split() == ["True", "False", "False", "True"]


def test_two_programs_run_at_once(start):
    slow, log = start(SLEEPS)
    wait_for("started", log)
    assert start("print('done')")[0].wait(60) == 0
    assert slow.returncode is None
    os.killpg(slow.pid, signal.SIGKILL)
    assert slow.wait(60) == -signal.SIGKILL


def test_no_slow_library_is_left_to_import():
    """Every library that takes a run's time to import is imported by the server, for each entry point."""
    source = """
import sys
import reproduce.engine.runs.fork_server
before = set(sys.modules)
import reproduce.pretrain, reproduce.evaluate
import evals.coco_detr, evals.finetune, evals.knn, evals.linear, evals.voc07_svm
import torch
weight = torch.nn.Parameter(torch.ones(1))
optimizer = torch.optim.SGD([weight], 0.1)
optimizer.step()
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""
    left = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True).stdout.split()
    slow = {"torch", "torchvision", "sklearn", "scipy", "numpy", "wandb", "hydra", "omegaconf", "sympy", "networkx", "PIL"}
    assert not slow & set(left)


def test_a_program_ends_with_its_server(tmp_path, monkeypatch):
    """Nobody could tell its status any more; its job must not take it for running."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "program.py").write_text(SLEEPS)
    environment = os.environ | {"PYTHONPATH": str(REPO_ROOT)}
    with fork_server(Path("."), environment) as found, open("log.txt", "ab", buffering=0) as log:
        process = ForkedProcess(found[FORK_SERVER], "program", [], environment, log)
        wait_for("started", tmp_path / "log.txt")
        parent = int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(parent, signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
        deadline = time.monotonic() + 60
        while Path(f"/proc/{process.pid}").exists() and "Z" not in Path(f"/proc/{process.pid}/stat").read_text().split():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(OSError):
            ForkedProcess(found[FORK_SERVER], "program", [], environment, log)
    assert not Path("fork_server.socket").exists()


def test_only_its_user_may_connect(server):
    assert os.stat(server).st_mode & 0o077 == 0
