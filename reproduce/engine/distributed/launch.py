"""Start the processes of one run, watch over them, and end as the run ends.

python -m reproduce.engine.distributed.launch --processes 8 reproduce.pretrain experiment=swav_800ep ...

On several machines the same command is started on each, with `--nodes 4 --node 0 --main HOST:PORT` (the first machine's
name and a free port of it) and its own `--node`. What a scheduler tells by environment variables need not be given: the
number as NODE_RANK, SLURM_PROCID or JOB_COMPLETION_INDEX, the place to meet as MASTER_ADDR and MASTER_PORT.

A process that crashes (SIGKILL, say) takes the others with it, and all start again from the last checkpoint, a few
times. What would end in the same way again (a wrong request, a training that collapsed) and what is to be requeued ends
at once, with the run's own exit status and one sentence.

torch.distributed.run would do, but for what is asked here: it turns every exit status into 1 under a long traceback,
restarts what can't go better, and lets a SIGUSR1 kill it.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType

from reproduce.errors import ERROR_PREFIX, EXIT_TRAINING_FAILED, EXIT_USAGE, REQUEUE, describe_signal

NODE_NUMBER = ("NODE_RANK", "SLURM_PROCID", "JOB_COMPLETION_INDEX")
"""What schedulers call a machine's number among those of the run."""

MAX_RESTARTS = 3
GRACE_SECONDS = 30
"""Time for the other processes to end once one has; a save under way is finished in it."""
POLL_SECONDS = 0.1


class Rank:
    """One process of the run. What it says on stderr is passed on, but for its last sentence, which is kept."""

    def __init__(self, command: Sequence[str], number: int, local: int, environment: dict[str, str]) -> None:
        self.number = number
        self.sentence = ""
        self.last_line = ""
        self.process = subprocess.Popen(
            command,
            env={**os.environ, **environment, "RANK": str(number), "LOCAL_RANK": str(local)},
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line.startswith(ERROR_PREFIX):
                self.sentence = line.removeprefix(ERROR_PREFIX).rstrip("\n")
            else:
                said = line.removeprefix(f"[rank{self.number}]: ").strip()  # how torch begins a traceback's lines
                self.last_line = said or self.last_line
                sys.stderr.write(line)
                sys.stderr.flush()

    def heard_out(self) -> None:
        """Wait until all that it said has come through; not for long, children of its own may hold the pipe."""
        self._listener.join(timeout=5)

    def death(self) -> str:
        """How it crashed, in words."""
        code = self.process.returncode
        if code < 0:
            return f"was ended by {describe_signal(-code)}"
        return f"crashed: {self.sentence or self.last_line or f'exit status {code}'}"


class Launcher:
    """The processes of this machine, through all restarts."""

    def __init__(self, start: Callable[[], list[Rank]], world_size: int) -> None:
        self._start, self._world_size = start, world_size
        self._ranks: list[Rank] = []
        self._asked = False

    def run(self) -> int:
        """From the first start to the exit status that counts."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._pass_on)
        for restart in range(MAX_RESTARTS + 1):
            self._ranks = self._start()
            if self._asked:  # while they were being started
                self._send(signal.SIGTERM)
            dead = self._wait()
            codes = {rank.process.returncode for rank in self._ranks}
            for status in (EXIT_USAGE, EXIT_TRAINING_FAILED):
                if status in codes:
                    print(f"{ERROR_PREFIX}{self._sentence(status)}", file=sys.stderr)
                    return status
            if codes == {0}:
                return 0
            if self._asked or REQUEUE in codes:
                return REQUEUE
            culprit = min(dead, key=lambda rank: rank.process.returncode > 0)  # who was killed, before who missed him
            death = f"rank {culprit.number} of {self._world_size} {culprit.death()}"
            if restart < MAX_RESTARTS:
                again = f"all start again from the last checkpoint (restart {restart + 1} of {MAX_RESTARTS})"
                print(f"warning: {death}; {again}", file=sys.stderr, flush=True)
        print(f"{ERROR_PREFIX}{death}; the same command goes on from the last checkpoint", file=sys.stderr)
        code = culprit.process.returncode
        return code if code > 0 else 128 - code

    def _wait(self) -> list[Rank]:
        """Wait until all processes have ended; returns those that failed first. The others are ended with them."""
        while True:
            running = [rank for rank in self._ranks if rank.process.poll() is None]
            dead = [rank for rank in self._ranks if rank.process.returncode]
            if dead or not running:
                break
            time.sleep(POLL_SECONDS)
        deadline = time.monotonic() + GRACE_SECONDS
        if all(rank.process.returncode != REQUEUE for rank in dead):
            self._send(signal.SIGTERM)
        for rank in running:
            try:
                rank.process.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                rank.process.kill()
                rank.process.wait()
        for rank in self._ranks:
            rank.heard_out()
        return dead

    def _sentence(self, status: int) -> str:
        """Why the run ended with `status`, and by which rank, where they don't all say the same."""
        said = {rank.number: rank.sentence for rank in self._ranks if rank.process.returncode == status}
        rank, sentence = min(said.items())
        return (
            sentence
            if set(said.values()) == {sentence} and len(said) == len(self._ranks)
            else f"rank {rank}: {sentence}"
        )

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        self._asked = True
        self._send(signal.SIGUSR1 if number == signal.SIGUSR1 else signal.SIGTERM)

    def _send(self, number: int) -> None:
        for rank in self._ranks:
            rank.process.send_signal(number)  # to one that has ended, Popen sends nothing


def main() -> int:
    """Entry point; see the head of this file."""
    parser = argparse.ArgumentParser(prog="python -m reproduce.engine.distributed.launch", description=__doc__)
    parser.add_argument("--processes", type=int, required=True, help="processes on this machine, one for each GPU")
    parser.add_argument("--nodes", type=int, default=1, help="number of machines")
    told = os.environ
    number = next((told[name] for name in NODE_NUMBER if name in told), None)
    place = f"{told['MASTER_ADDR']}:{told['MASTER_PORT']}" if {"MASTER_ADDR", "MASTER_PORT"} <= told.keys() else ""
    parser.add_argument("--node", type=int, default=number, help="this machine's number, from 0")
    parser.add_argument("--main", default=place, metavar="HOST:PORT", help="where the machines find each other")
    parser.add_argument("module", help="what each process runs, e.g. reproduce.pretrain")
    parser.add_argument("overrides", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if options.nodes == 1:
        options.node, options.main = 0, ""
    elif options.node is None or not options.main:
        parser.error("--nodes needs --node, and --main HOST:PORT: the first machine's name and a free port of it")
    world_size = options.processes * options.nodes
    command = [sys.executable, "-m", options.module, *options.overrides]

    def start() -> list[Rank]:
        host, _, port = (options.main or f"127.0.0.1:{_free_port()}").rpartition(":")
        environment = {"MASTER_ADDR": host, "MASTER_PORT": port, "WORLD_SIZE": str(world_size)}
        first = options.node * options.processes
        return [Rank(command, first + local, local, environment) for local in range(options.processes)]

    return Launcher(start, world_size).run()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
