"""Connect the launchers of a run's machines, so that a crash on one stops and restarts the ranks on all.

Without it, ranks that wait for a dead one on another machine notice at the timeout of their collective. The launcher of
the first machine listens at the port after the ranks'; messages are lines of JSON. Where no connection is possible,
each machine acts alone.

Any machine may be lost and replaced, the first one too. Both ends of a link that breaks begin the next round, once per
attempt. A replacement starts in round 0; when it connects, both sides take the later of their rounds.
"""

import contextlib
import json
import socket
import sys
import threading
from collections.abc import Iterator

MEET_SECONDS = 600.0
"""How long a restart waits for the launchers of the other machines, one of which may be replaced meanwhile."""
CONNECT_SECONDS = 5.0
RETRY_SECONDS = 1.0
KEEPALIVE_IDLE_SECONDS, KEEPALIVE_INTERVAL_SECONDS, KEEPALIVE_PROBES = 30, 10, 3
"""A machine that went down without closing its connections is lost after a minute; the default is two hours."""


class Peers:
    """The launchers of one run. `round` counts the failures so far; it is the same on all machines, after a moment."""

    def __init__(self, node_rank: int, num_nodes: int, host: str, port: int) -> None:
        """Listen at `port` on the first machine, or connect to `host`; a run on one machine does neither."""
        self.round = 0
        self.final_status = 0
        """Exit status of a failure elsewhere that a restart would only repeat; 0 if there is none."""
        self.left_status: int | None = None
        """Exit status of a launcher that has ended, without which no restart is possible; None if all go on."""
        self._node_rank, self._num_nodes = node_rank, num_nodes
        self._changed = threading.Condition()
        self._links: dict[int, socket.socket] = {}
        self._expected: set[int] = set()
        """Machines that have connected and not left; a link that broke is expected to come back."""
        self._ready: set[int] = set()
        """Machines that are ready for the current round; the first machine counts them."""
        self._meets = False
        self._attempt = 0
        """The round that the ranks of this machine started in."""
        self._round_to_start = 0
        """The last round that all machines were ready for; nobody waits for round 0."""
        self._closed = threading.Event()
        if num_nodes > 1:
            task, arguments = (self._listen, (port,)) if node_rank == 0 else (self._connect, (host, port))
            threading.Thread(target=task, args=arguments, daemon=True).start()

    def fail(self, round_: int, status: int = 0) -> None:
        """Tell the others that an attempt failed which began in `round_`; `status` is not 0 if it would fail again.

        Waits for a moment if another launcher, at the start, has not connected yet.
        """
        num_links = self._num_nodes - 1 if self._node_rank == 0 else 1
        with self._changed:
            self._changed.wait_for(lambda: self._num_nodes == 1 or len(self._links) >= num_links, CONNECT_SECONDS)
            if self._node_rank == 0:
                self._note_failure(round_, status)
            else:
                self._send(0, "failed", round_, status)

    def meet(self, round_: int) -> int:
        """Wait until all launchers are ready for a round after `round_`, and return that round.

        Waits for machines that have connected, for at most `MEET_SECONDS`, and not if one has left (`left_status`).
        """
        with self._changed:
            self._meets = True
            self._declare_ready()
            self._changed.wait_for(
                lambda: (
                    self._round_to_start > round_ or self.left_status is not None or not (self._links or self._expected)
                ),
                MEET_SECONDS,
            )
            if self._round_to_start <= round_:
                self._round_to_start = self.round  # without the others
            self._meets, self._attempt = False, self._round_to_start
            return self._attempt

    def close(self, status: int) -> None:
        """Leave with the exit status of this launcher, whose end by itself is no failure."""
        self._closed.set()
        with self._changed:
            for node in list(self._links):
                self._send(node, "done", 0, status)

    def _listen(self, port: int) -> None:
        try:
            server = socket.create_server(("", port))
        except OSError as error:
            print(
                f"warning: can't listen at port {port} for the other machines ({error.strerror}): if one fails, "
                "the others notice it at the next collective's timeout",
                file=sys.stderr,
            )
            return
        with server:
            while not self._closed.is_set():
                link, _ = server.accept()
                threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: socket.socket) -> None:
        """Follow the launcher of another machine, on the first."""
        _keep_alive(link)
        node, is_done = -1, False
        for event, number, status in _messages(link):
            with self._changed:
                if event == "hello":
                    node, their_round = number, status
                    if their_round > self.round:  # they lost this machine's predecessor, or the link, and noticed first
                        self._begin_round(their_round, 0)
                    if node in self._links:  # the one that replaces a machine comes before its old link has ended
                        self._note_loss()
                    self._links[node] = link
                    self._expected.add(node)
                    self._send(node, "round", self.round, self.final_status)
                    self._changed.notify_all()
                elif event == "ready" and status == self.round:
                    self._note_ready(number)
                elif event == "failed":
                    self._note_failure(number, status)
                elif event == "done":
                    self._note_end(status)
                is_done = event == "done"
        link.close()
        with self._changed:
            if self._links.get(node) is link:
                del self._links[node]
                self._ready.discard(node)
                if is_done:
                    self._expected.discard(node)
                elif not self._closed.is_set():
                    self._note_loss()
                self._changed.notify_all()

    def _connect(self, host: str, port: int) -> None:
        """Follow the launcher of the first machine, on another."""
        while not self._closed.is_set():
            may_be_lost = False
            with contextlib.suppress(OSError), socket.create_connection((host, port), CONNECT_SECONDS) as link:
                link.settimeout(None)
                _keep_alive(link)
                with self._changed:
                    self._links[0] = link
                    self._send(0, "hello", self._node_rank, self.round)
                    self._changed.notify_all()
                for event, number, status in _messages(link):
                    with self._changed:
                        if event in ("failed", "round"):
                            self.round, self.final_status = number, status
                            self._expected.add(0)
                            may_be_lost = True
                            self._declare_ready()
                        elif event == "go":
                            self._round_to_start = number
                        elif event == "done":
                            self._note_end(status)
                            self._expected.clear()
                            may_be_lost = False
                        self._changed.notify_all()
            with self._changed:
                if may_be_lost and not self._closed.is_set():
                    self._note_loss()
                self._links.clear()
                self._changed.notify_all()
            self._closed.wait(RETRY_SECONDS)

    def _note_failure(self, round_: int, status: int) -> None:
        """Begin a new round, on the first machine, unless the failure is a consequence of an earlier one."""
        if round_ == self.round:
            self._begin_round(self.round + 1, status)

    def _note_end(self, status: int) -> None:
        self.left_status = status
        self._changed.notify_all()

    def _note_loss(self) -> None:
        """Begin a new round because a link broke, unless the attempt had failed already and none began since."""
        if self.round == self._round_to_start:
            self._begin_round(self.round + 1, 0)

    def _begin_round(self, round_: int, status: int) -> None:
        self.round, self.final_status = round_, status
        if self._node_rank == 0:
            self._ready.clear()
            self._broadcast("failed", round_, status)
            self._declare_ready()
        self._changed.notify_all()

    def _declare_ready(self) -> None:
        """Let the first machine count this one if its ranks wait for the current round, or started in it."""
        if not self._meets and self._attempt != self.round:
            return
        if self._node_rank == 0:
            self._note_ready(0)
        else:
            self._send(0, "ready", self._node_rank, self.round)

    def _note_ready(self, node: int) -> None:
        self._ready.add(node)
        if len(self._ready) == self._num_nodes:
            self._round_to_start = self.round
            self._broadcast("go", self.round, 0)
        self._changed.notify_all()

    def _broadcast(self, event: str, number: int, status: int) -> None:
        for node in list(self._links):
            self._send(node, event, number, status)

    def _send(self, node: int, event: str, number: int, status: int) -> None:
        if node in self._links:
            with contextlib.suppress(OSError):
                self._links[node].sendall(json.dumps([event, number, status]).encode() + b"\n")


def _messages(link: socket.socket) -> Iterator[tuple[str, int, int]]:
    """Yield the messages of a connection until it ends: event, number, status."""
    with contextlib.suppress(OSError, ValueError), link.makefile() as lines:
        for line in lines:
            event, number, status = json.loads(line)
            yield str(event), int(number), int(status)


def _keep_alive(link: socket.socket) -> None:
    """Let a connection end soon after the machine at its other end went down without a word."""
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_SECONDS)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_SECONDS)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    # While a message waits for its acknowledgement, nothing is probed, but the message is sent again: for 15 minutes.
    lost_after_seconds = KEEPALIVE_IDLE_SECONDS + KEEPALIVE_PROBES * KEEPALIVE_INTERVAL_SECONDS
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, lost_after_seconds * 1000)
