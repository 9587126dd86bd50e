"""Connect the launchers of a run's machines, so that a crash on one stops and restarts the ranks on all.

Without it, ranks that wait for a dead one on another machine notice at the timeout of their collective. The launcher of
the first machine listens at the port after the ranks'; messages are lines of JSON. Where no connection is possible,
each machine acts alone.
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


class Peers:
    """The launchers of one run. `round` counts the failures so far; it is the same on all machines, after a moment."""

    def __init__(self, node_rank: int, num_nodes: int, host: str, port: int) -> None:
        """Listen at `port` on the first machine, or connect to `host`; a run on one machine does neither."""
        self.round = 0
        self.final_status = 0
        """Exit status of a failure elsewhere that a restart would only repeat; 0 if there is none."""
        self._node_rank, self._num_nodes = node_rank, num_nodes
        self._changed = threading.Condition()
        self._links: dict[int, socket.socket] = {}
        self._ready = {0}
        self._round_to_start = -1
        """The last round that all machines were ready for."""
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

    def meet(self, round_: int) -> None:
        """Wait until all connected launchers are ready for a round after `round_`, for at most `MEET_SECONDS`."""
        with self._changed:
            if self._node_rank == 0:
                self._note_ready(0)
            else:
                self._send(0, "ready", self._node_rank, 0)
            self._changed.wait_for(lambda: self._round_to_start > round_ or not self._links, MEET_SECONDS)

    def close(self) -> None:
        """Leave: the end of this launcher is no failure."""
        self._closed.set()
        with self._changed:
            for node in list(self._links):
                self._send(node, "done", 0, 0)

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
        while not self._closed.is_set():
            link, _ = server.accept()
            threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: socket.socket) -> None:
        """Follow the launcher of another machine, on the first."""
        node, is_done = -1, False
        for event, number, status in _messages(link):
            with self._changed:
                if event == "hello":
                    node = number
                    self._links[node] = link
                    self._send(node, "round", self.round, 0)
                    self._note_ready(node)
                elif event == "ready":
                    self._note_ready(node)
                elif event == "failed":
                    self._note_failure(number, status)
                is_done = event == "done"
        with self._changed:
            if self._links.get(node) is link:
                del self._links[node]
                self._changed.notify_all()
                if not is_done and not self._closed.is_set():
                    self._note_failure(self.round, 0)

    def _connect(self, host: str, port: int) -> None:
        """Follow the launcher of the first machine, on another."""
        while not self._closed.is_set():
            with contextlib.suppress(OSError), socket.create_connection((host, port), CONNECT_SECONDS) as link:
                link.settimeout(None)
                with self._changed:
                    self._links[0] = link
                    self._send(0, "hello", self._node_rank, 0)
                    self._changed.notify_all()
                for event, number, status in _messages(link):
                    with self._changed:
                        if event in ("failed", "round"):
                            self.round, self.final_status = number, status
                        if event == "go":
                            self._round_to_start = number
                        self._changed.notify_all()
            with self._changed:
                self._links.clear()
                self._changed.notify_all()
            self._closed.wait(RETRY_SECONDS)

    def _note_failure(self, round_: int, status: int) -> None:
        """Begin a new round, on the first machine, unless the failure is a consequence of an earlier one."""
        if round_ == self.round:
            self.round, self.final_status = self.round + 1, status
            self._ready.clear()
            self._broadcast("failed", self.round, status)

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
