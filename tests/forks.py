"""Runs as processes of their own, forked from one that has imported torch and the project: no import, no wait."""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.nccl_conditions import impose_conditions

REPO_ROOT = Path(__file__).parents[1]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["reproduce.pretrain", "reproduce.evaluate", "tests.forks"])


class ForkedRun:
    """`python -m MODULE ...` in the background, with the interface of `subprocess.Popen`. Not for tests of imports."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str]) -> None:
        out, end = CONTEXT.Pipe(duplex=False)
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed by `communicate`
        stderr = f"/proc/{os.getpid()}/fd/{self._stderr.fileno()}"
        self._process = CONTEXT.Process(target=_become, args=(list(words), dict(environment), end, stderr))
        with _environment_of_the_server():
            self._process.start()
        end.close()
        self.stdout = os.fdopen(os.dup(out.fileno()))
        out.close()
        assert self._process.pid
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, negative after a signal; None while the run goes on."""
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process (of several, to their launcher)."""
        os.kill(self.pid, number)

    def communicate(self, timeout: float = 240) -> tuple[str, str]:
        """Wait for the end, which comes after `timeout` seconds at the latest; return stdout and stderr."""
        killer = threading.Timer(timeout, os.killpg, (self.pid, signal.SIGKILL))
        killer.start()
        with self.stdout, self._stderr:
            out = self.stdout.read()
            self._process.join()
            killer.cancel()
            self._stderr.seek(0)
            return out, self._stderr.read()


_Popen = subprocess.Popen


class _ForkedRank(subprocess.Popen[str]):
    """What the launcher starts with `subprocess.Popen`, forked from the launcher."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], **options: Any) -> None:
        def become() -> None:  # in the child, once its stdin, stdout and stderr are in place
            os.closerange(3, 1024)  # among them the pipe that tells Popen that the child goes on
            for number in (signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            vars(subprocess)["Popen"] = _Popen
            _set_environment(env)
            os._exit(_run_module(command[2:]))

        super().__init__(command, env=env, preexec_fn=become, **options)


def _become(words: list[str], environment: dict[str, str], out: Connection, stderr: str) -> None:
    """Turn a fork of the server into the run."""
    multiprocessing.set_start_method("fork", force=True)  # for its own: the default of a new interpreter
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background of a script ignore Ctrl-C
    os.chdir(REPO_ROOT)
    _set_environment(environment)
    os.dup2(out.fileno(), 1)
    out.close()
    with open(stderr, "a") as file:
        os.dup2(file.fileno(), 2)
    if words[0].endswith(".launch"):
        vars(subprocess)["Popen"] = _ForkedRank
    os._exit(_run_module(words))


def _run_module(words: Sequence[str]) -> int:
    """As `python -m MODULE ...` would; returns the exit status."""
    sys.argv = list(words)
    sys.modules.pop(words[0], None)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        impose_conditions()
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        status: Any = 0
    except SystemExit as end:
        status = end.code
    except BaseException:  # noqa: BLE001  # as the interpreter does
        sys.excepthook(*sys.exc_info())
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return int(status or 0)


def _set_environment(environment: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


def _environment_of_the_server() -> Any:
    """The server finds the project, and torch in it takes one thread, wherever the first test that needs it stands."""
    return patch.dict(os.environ, {"PYTHONPATH": str(REPO_ROOT), "OMP_NUM_THREADS": "1"})
