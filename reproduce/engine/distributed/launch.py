"""Launch the processes of one run, restart them after a crash, and exit with the run's own status.

python -m reproduce.engine.distributed.launch --nproc-per-node 8 reproduce.pretrain experiment=swav_800ep ...

For several machines, start the same command on each, with torchrun's options: `--nnodes 4 --node-rank 0
--rdzv-endpoint HOST:PORT`, where HOST is the first machine and PORT a free port of it. Under a scheduler the last two
can be left out: the node rank is read from NODE_RANK, SLURM_PROCID or JOB_COMPLETION_INDEX, and the endpoint from
MASTER_ADDR and MASTER_PORT. The launchers themselves connect at the port after PORT.

If a process crashes (e.g. by SIGKILL), the others, on all machines, are stopped, and all restart from the last
checkpoint, up to `MAX_RESTARTS` times. A wrong request, a failed training and a preemption end the run at once, with
one error message. Ctrl-C stops the run as a preemption does; a second one kills the processes.

torchrun itself does not fit: it turns every exit status into 1 below a long traceback, restarts runs that would only
fail again, and dies of SIGUSR1.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FrameType

from reproduce.engine.distributed.peers import Peers
from reproduce.errors import (
    ERROR_PREFIX,
    EXIT_TRAINING_FAILED,
    EXIT_USAGE,
    REQUEUE,
    ArgumentParser,
    describe_signal,
    run_cli,
)
from reproduce.system import LAUNCHER, POLL_SECONDS, STOP_SIGNALS, free_port, without_launcher

NODE_RANK_VARIABLES = ("NODE_RANK", "SLURM_PROCID", "JOB_COMPLETION_INDEX")
"""Environment variables in which schedulers pass a machine's rank among those of the run."""

MAX_RESTARTS = 3
GRACE_SECONDS = 30
"""Time for the other processes to end once one has ended; long enough to finish a checkpoint."""


class RankProcess:
    """One process of the run. Forwards its stderr, except for the final error message, which is kept."""

    def __init__(self, command: Sequence[str], rank: int, local_rank: int, environment: dict[str, str]) -> None:
        self.rank = rank
        self.error_message = ""
        self.last_line = ""
        self.process = subprocess.Popen(
            command,
            env={
                **without_launcher(os.environ),
                **environment,
                "RANK": str(rank),
                "LOCAL_RANK": str(local_rank),
                LAUNCHER: str(os.getpid()),
            },
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._forward_stderr, daemon=True)
        self._reader.start()

    def _forward_stderr(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line.startswith(ERROR_PREFIX):
                self.error_message = line.removeprefix(ERROR_PREFIX).rstrip("\n")
            else:
                text = line.removeprefix(f"[rank{self.rank}]: ").strip()  # torch's prefix of traceback lines
                self.last_line = text or self.last_line
                sys.stderr.write(line)
                sys.stderr.flush()

    def drain_stderr(self) -> None:
        """Wait until the rest of stderr is forwarded; briefly, because child processes may keep the pipe open."""
        self._reader.join(timeout=5)

    def describe_exit(self) -> str:
        """Describe how the process crashed."""
        code = self.process.returncode
        if code < 0:
            return f"was ended by {describe_signal(-code)}"
        return f"crashed: {self.error_message or self.last_line or f'exit status {code}'}"


class Launcher:
    """The processes of this machine, through all restarts."""

    def __init__(self, start: Callable[[], Iterable[RankProcess]], world_size: int, peers: Peers) -> None:
        self._start, self._world_size, self._peers = start, world_size, peers
        self._ranks: list[RankProcess] = []
        self._stop_requested = self._interrupted = False

    def run(self) -> int:
        """Start the processes, restart them after crashes, and return the exit status of the run.

        Raises `KeyboardInterrupt` at the second Ctrl-C, once the processes are killed.
        """
        for number in STOP_SIGNALS:
            signal.signal(number, self._forward_signal)
        attempt = 0  # a replacement starts in it as well, and restarts its ranks once it learns the others' round
        for restart in range(MAX_RESTARTS + 1):
            self._ranks.clear()
            for process in self._start():
                self._ranks.append(process)
            if self._stop_requested:  # during the start, when no process could receive it
                self._send(signal.SIGTERM)
            failed = self._wait(attempt)
            codes = {rank.process.returncode for rank in self._ranks}
            for status in (EXIT_USAGE, EXIT_TRAINING_FAILED):
                if status in codes:
                    print(f"{ERROR_PREFIX}{self._error_message(status)}", file=sys.stderr)
                    return status
            if codes == {0}:
                return 0
            failed_elsewhere = not failed and self._peers.round != attempt
            if failed_elsewhere and self._peers.final_status:
                return self._peers.final_status  # the other machine says why
            if self._stop_requested or (REQUEUE in codes and not failed_elsewhere):
                return REQUEUE
            crash, code = self._describe_crash(failed)
            if restart < MAX_RESTARTS and self._peers.left_status is None:
                plan = f"restarting all ranks from the last checkpoint (restart {restart + 1} of {MAX_RESTARTS})"
                print(f"warning: {crash}; {plan}", file=sys.stderr, flush=True)
                attempt = self._peers.meet(attempt)
            if self._peers.left_status is not None:
                crash = f"{crash}; the launcher of another machine has ended (status {self._peers.left_status})"
                break
        print(f"{ERROR_PREFIX}{crash}; the same command resumes from the last checkpoint", file=sys.stderr)
        return code if code > 0 else 128 - code

    def _wait(self, attempt: int) -> list[RankProcess]:
        """Wait until all processes have ended and return those that failed first; stops the others after a failure.

        A failure on another machine since `attempt`, the round in which the processes started, stops all.
        """
        while True:
            running = [rank for rank in self._ranks if rank.process.poll() is None]
            failed = [rank for rank in self._ranks if rank.process.returncode]
            if failed or not running or self._peers.round != attempt:
                break
            time.sleep(POLL_SECONDS)
        deadline = time.monotonic() + GRACE_SECONDS
        codes = {rank.process.returncode for rank in failed}
        if REQUEUE not in codes:
            if failed:
                self._peers.fail(attempt, next(iter(codes & {EXIT_USAGE, EXIT_TRAINING_FAILED}), 0))
            self._send(signal.SIGTERM)
        for rank in running:
            try:
                rank.process.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                rank.process.kill()
                rank.process.wait()
        for rank in self._ranks:
            rank.drain_stderr()
        return failed

    def _describe_crash(self, failed: list[RankProcess]) -> tuple[str, int]:
        """Return what crashed and its exit code, given the processes of this machine that failed first."""
        if not failed:
            return "a rank on another machine crashed", 1
        # A process that was killed comes before one that failed because the other was missing.
        culprit = min(failed, key=lambda rank: rank.process.returncode > 0)
        return f"rank {culprit.rank} of {self._world_size} {culprit.describe_exit()}", culprit.process.returncode

    def _error_message(self, status: int) -> str:
        """Return the message of the run's exit status, with its rank unless all ranks have the same message."""
        messages = {rank.rank: rank.error_message for rank in self._ranks if rank.process.returncode == status}
        rank, message = min(messages.items())
        common = set(messages.values()) == {message} and len(messages) == len(self._ranks)
        return message if common else f"rank {rank}: {message}"

    def _forward_signal(self, number: int, _frame: FrameType | None) -> None:
        self._stop_requested = True
        if number == signal.SIGINT and self._interrupted:
            self._send(signal.SIGKILL)
            raise KeyboardInterrupt
        self._interrupted = self._interrupted or number == signal.SIGINT
        self._send(signal.SIGUSR1 if number == signal.SIGUSR1 else signal.SIGTERM)

    def _send(self, number: int) -> None:
        for rank in self._ranks:
            rank.process.send_signal(number)  # Popen ignores processes that have ended


def main() -> int:
    """Parse the command line and launch the run (see the module's docstring). Raises `UserError` for a wrong option."""
    options = _parse_options()
    world_size = options.nproc_per_node * options.nnodes
    command = [sys.executable, "-m", options.module, *options.overrides]

    def start() -> Iterator[RankProcess]:
        host, _, port = (options.rdzv_endpoint or f"127.0.0.1:{free_port()}").rpartition(":")
        environment = {"MASTER_ADDR": host, "MASTER_PORT": port, "WORLD_SIZE": str(world_size)}
        environment["LOCAL_WORLD_SIZE"] = str(options.nproc_per_node)
        first_rank = options.node_rank * options.nproc_per_node
        for local_rank in range(options.nproc_per_node):
            yield RankProcess(command, first_rank + local_rank, local_rank, environment)

    host, _, port = options.rdzv_endpoint.rpartition(":")
    peers = Peers(options.node_rank, options.nnodes, host, int(port or 0) + 1)
    status = 1
    try:
        status = Launcher(start, world_size, peers).run()
    finally:
        peers.close(status)
    return status


def _parse_options() -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m reproduce.engine.distributed.launch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    environment = os.environ
    node_rank = next((environment[name] for name in NODE_RANK_VARIABLES if name in environment), None)
    has_endpoint = {"MASTER_ADDR", "MASTER_PORT"} <= environment.keys()
    endpoint = f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}" if has_endpoint else ""
    text = "processes on this machine, one per GPU"
    parser.add_argument("--nproc-per-node", type=_positive_int, required=True, help=text)
    parser.add_argument("--nnodes", type=_positive_int, default=1, help="number of machines")
    parser.add_argument("--node-rank", type=int, default=node_rank, help="rank of this machine, from 0")
    parser.add_argument("--rdzv-endpoint", default=endpoint, metavar="HOST:PORT", help="first machine and a free port")
    parser.add_argument("module", help="what each process runs, e.g. reproduce.pretrain")
    parser.add_argument("overrides", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if options.nnodes == 1:
        options.node_rank, options.rdzv_endpoint = 0, ""
    elif options.node_rank is None or not options.rdzv_endpoint:
        parser.error("--nnodes needs --node-rank, and --rdzv-endpoint HOST:PORT (the first machine, a free port of it)")
    elif not 0 <= options.node_rank < options.nnodes:
        parser.error(f"argument --node-rank: {options.node_rank} is not one of 0 to {options.nnodes - 1}")
    elif not re.fullmatch(r".+:\d{1,5}", options.rdzv_endpoint):
        parser.error(f"argument --rdzv-endpoint: {options.rdzv_endpoint!r} is not HOST:PORT, such as node0:29500")
    return options


def _positive_int(text: str) -> int:
    """Parse the number of an option, which argparse names in the error."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(run_cli(main))
