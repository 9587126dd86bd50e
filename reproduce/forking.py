"""Start Python programs by forking a process that has imported their libraries. Uses only the standard library.

On a CPU, importing torch and what comes with it takes longer than a short evaluation. A server imports it once and
forks for each program. It keeps nothing of this checkout's code: a fork imports it as it is by then.
"""

import json
import os
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from reproduce.system import RUN_CODE_FOLDERS

FORK_SERVER = "REPRODUCE_FORK_SERVER"
"""Environment variable with the path of the server's socket."""
SERVER_MODULE = "reproduce.engine.runs.fork_server"
END_SECONDS = 5
"""Time for a server to end after its programs."""


@contextmanager
def fork_server(folder: Path, environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Have a server while this context lasts; yield the environment variable by which its clients find it.

    Its socket and its log are in `folder`, best a relative path: the kernel allows 107 bytes. A program that asks
    before the server is ready waits. Raises `OSError` if there can be no socket.
    """
    path = folder / "fork_server.socket"
    path.unlink(missing_ok=True)  # left by a killed harness
    with socket.socket(socket.AF_UNIX) as listener, open(folder / "fork_server.log", "wb") as log:
        listener.bind(str(path))
        path.chmod(0o600)  # whoever may connect may run programs
        listener.listen()
        server = subprocess.Popen(
            [sys.executable, "-m", SERVER_MODULE, str(listener.fileno())],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=(listener.fileno(),),
            start_new_session=True,  # Ctrl-C reaches us alone
        )
    try:
        yield {FORK_SERVER: str(path)}
    finally:
        path.unlink(missing_ok=True)
        assert server.stdin is not None
        server.stdin.close()
        try:
            server.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


class ForkedProcess:
    """A program in a process group of its own, as `subprocess.Popen` with `start_new_session`, but not our child."""

    def __init__(
        self, socket_path: str, module: str, arguments: Sequence[str], environment: Mapping[str, str], log: BinaryIO
    ) -> None:
        """Run `python -m module arguments` here, its output in `log`. Raises `OSError` if no server answers."""
        self.returncode: int | None = None
        """The exit status; minus its number if a signal ended it."""
        program = {"module": module, "arguments": [*arguments], "environment": {**environment}, "folder": os.getcwd()}
        self._connection = socket.socket(socket.AF_UNIX)
        try:
            self._connection.connect(socket_path)
            socket.send_fds(self._connection, [b"\n"], [log.fileno()])
            self._connection.sendall(json.dumps(program).encode())
            self._connection.shutdown(socket.SHUT_WR)
            self._answers = self._connection.makefile("r")
            if not (answer := self._answers.readline()):
                raise ConnectionAbortedError("the fork server ended before it forked")
            self.pid = int(answer)
        except OSError:
            self._connection.close()
            raise

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status; raise `subprocess.TimeoutExpired` if the program still runs after `timeout` s."""
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            with self._connection, self._answers:
                answer = self._answers.readline()
            if answer:
                self.returncode = int(answer)
            else:  # the server died, perhaps for want of memory, and nobody else can wait for the program
                with suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGKILL)
                self.returncode = -signal.SIGKILL
        return self.returncode


@dataclass(frozen=True)
class Program:
    """What a forked process becomes."""

    module: str
    arguments: list[str]
    environment: dict[str, str]
    folder: str

    def run(self, log: int) -> NoReturn:
        """Run it in this process, as if Python had been started for it, with its output in the open file `log`."""
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.close(log)
        os.environ.clear()
        os.environ.update(self.environment)
        os.chdir(self.folder)
        sys.argv, sys.path[0] = [self.module, *self.arguments], self.folder
        for name in [name for name in sys.modules if name.partition(".")[0] in RUN_CODE_FOLDERS]:
            del sys.modules[name]
        runpy.run_module(self.module, run_name="__main__", alter_sys=True)
        raise SystemExit(0)


def serve(listener: socket.socket) -> None:
    """Fork for every program that a client of `listener` asks for, until stdin ends and all of them have ended.

    In a forked process, this runs the program and does not return.
    """
    os.close(os.pidfd_open(os.getpid()))  # where the kernel has none, this ends before anything was forked
    running: dict[int, tuple[int, socket.socket]] = {}  # process and client, by the descriptor that tells its end
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(0, selectors.EVENT_READ)
        while running or listener.fileno() >= 0:
            for key, _ in selector.select():
                if key.fd == 0:
                    selector.unregister(0)
                    selector.unregister(listener)
                    listener.close()
                elif key.fd in running:
                    process, client = running.pop(key.fd)
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
                    with client, suppress(BrokenPipeError, ConnectionResetError):
                        client.sendall(f"{status}\n".encode())
                elif key.fileobj is listener and listener.fileno() >= 0:
                    client, _ = listener.accept()
                    process = os.fork()
                    with suppress(OSError):  # here and in the fork: whoever comes first, its pid is a group by now
                        os.setpgid(process, 0)
                    if process == 0:
                        selector.close()
                        listener.close()
                        for descriptor, (_, other) in running.items():
                            os.close(descriptor)
                            other.close()
                        program, log = _receive(client)
                        program.run(log)
                    ended = os.pidfd_open(process)
                    running[ended] = process, client
                    selector.register(ended, selectors.EVENT_READ)
                    with suppress(BrokenPipeError, ConnectionResetError):
                        client.sendall(f"{process}\n".encode())


def _receive(client: socket.socket) -> tuple[Program, int]:
    """Return the program that a client asks for, and its open log."""
    with client:
        _, (log,), _, _ = socket.recv_fds(client, 1, 1)
        with client.makefile("rb") as request:
            return Program(**json.load(request)), log
