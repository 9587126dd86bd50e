"""A forked program is what `python -m` would have been: output, arguments, environment, status, process group."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reproduce.forking import FORK_SERVER, ForkedProcess, fork_server
from reproduce.system import REPO_ROOT

Start = Callable[..., tuple[ForkedProcess, Path]]
SLEEPS = "import sys, time\nprint('started', flush=True)\ntime.sleep(60)\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The environment variable's value that finds a running server."""
    folder = Path(os.path.relpath(tmp_path_factory.mktemp("server")))
    with fork_server(folder, os.environ | {"PYTHONPATH": str(REPO_ROOT)}) as found:
        yield found[FORK_SERVER]


@pytest.fixture
def start(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start source code as a module in `tmp_path`; return the process and the file with its output."""
    server = os.path.relpath(os.path.abspath(server), tmp_path)
    processes: list[ForkedProcess] = []

    def start(source: str, *arguments: str, **environment: str) -> tuple[ForkedProcess, Path]:
        monkeypatch.chdir(tmp_path)
        Path("program.py").write_text(source)
        path = tmp_path / f"log{len(processes)}.txt"
        with open(path, "ab", buffering=0) as log:
            processes.append(ForkedProcess(server, "program", arguments, {**os.environ, **environment}, log))
        return processes[-1], path

    yield start
    for process in processes:
        process.wait(60)


def wait_for(text: str, path: Path) -> None:
    deadline = time.monotonic() + 60
    while text not in path.read_text():
        assert time.monotonic() < deadline, path.read_text()
        time.sleep(0.01)


def test_program_sees_what_python_would_show_it(start: Start, tmp_path: Path) -> None:
    source = """
import json, os, sys
print(json.dumps({"arguments": sys.argv[1:], "file": sys.argv[0], "folder": os.getcwd(), "name": __name__,
    "spec": __spec__.name, "first": sys.path[0], "given": os.environ.get("GIVEN"),
    "stdin": sys.stdin.read(), "main": sys.modules["__main__"].__dict__ is globals(),
    "group": os.getpgid(0) == os.getpid()}), flush=True)
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


def test_status_of_an_end_an_error_and_a_signal(start: Start) -> None:
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


def test_libraries_are_there_and_our_code_is_imported_anew(start: Start) -> None:
    source = """
import sys
before = {name.partition(".")[0] for name in sys.modules}
import reproduce
print("torch" in before, "reproduce" in before, "models" in before, reproduce.IMPORT_STARTED > float(sys.argv[1]))
"""
    process, log = start(source, str(time.time()))
    assert process.wait(60) == 0
    assert log.read_text().split() == ["True", "False", "False", "True"]


def test_two_programs_run_at_once(start: Start) -> None:
    slow, log = start(SLEEPS)
    wait_for("started", log)
    assert start("print('done')")[0].wait(60) == 0
    assert slow.returncode is None
    os.killpg(slow.pid, signal.SIGKILL)
    assert slow.wait(60) == -signal.SIGKILL


def test_no_slow_library_is_left_to_import() -> None:
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
    slow = {"torch", "torchvision", "sklearn", "scipy", "numpy", "wandb", "hydra", "omegaconf", "sympy", "PIL"}
    assert not slow & set(left)


def is_running(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def test_a_program_ends_with_its_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        while is_running(process.pid):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(ConnectionError):
            ForkedProcess(found[FORK_SERVER], "program", [], environment, log)
    assert not Path("fork_server.socket").exists()


def test_only_its_user_may_connect(server: str) -> None:
    assert os.stat(server).st_mode & 0o077 == 0
