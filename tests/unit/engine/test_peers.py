"""The connection of several machines' launchers, message by message."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable

import pytest

from reproduce.engine.distributed.peers import Peers
from reproduce.system import free_port


def test_a_restart_waits_for_its_own_round_not_for_the_late_answer_to_the_first_hello() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        peers = Peers(node_rank=1, num_nodes=2, host="127.0.0.1", port=server.getsockname()[1])
        link, _ = server.accept()
        with link, link.makefile() as messages:
            assert json.loads(messages.readline()) == ["hello", 1, 0]
            restart = threading.Thread(target=peers.meet, args=(0,))
            restart.start()
            assert json.loads(messages.readline()) == ["ready", 1, 0]
            link.sendall(b'["round", 0, 0]\n["go", 0, 0]\n["failed", 1, 0]\n')
            assert [json.loads(messages.readline()) for _ in range(2)] == [["ready", 1, 0], ["ready", 1, 1]]
            with peers._changed:
                assert peers._changed.wait_for(lambda: peers.round == 1, 60)
            restart.join(0.2)
            assert restart.is_alive()
            link.sendall(b'["go", 1, 0]\n')
            restart.join(60)
            assert not restart.is_alive()
            peers.close(0)
            assert json.loads(messages.readline()) == ["done", 0, 0]


def test_the_first_machine_restarts_no_earlier_than_the_others_are_ready_again() -> None:
    """That they were ready for the first round counts no longer."""
    port = free_port()
    first = Peers(node_rank=0, num_nodes=2, host="127.0.0.1", port=port)
    with _connect(port) as link, link.makefile() as messages:
        link.sendall(b'["hello", 1, 0]\n')
        assert json.loads(messages.readline()) == ["round", 0, 0]
        link.sendall(b'["ready", 1, 0]\n')
        first.fail(0)
        assert json.loads(messages.readline()) == ["failed", 1, 0]
        restart = threading.Thread(target=first.meet, args=(0,), daemon=True)
        restart.start()
        restart.join(0.2)
        assert restart.is_alive()
        link.sendall(b'["ready", 1, 1]\n')
        assert json.loads(messages.readline()) == ["go", 1, 0]
        restart.join(60)
        assert not restart.is_alive()
        first.close(0)
        link.sendall(b'["done", 0, 0]\n')


def test_a_restart_does_not_wait_for_a_machine_that_has_left() -> None:
    port = free_port()
    first = Peers(node_rank=0, num_nodes=2, host="127.0.0.1", port=port)
    link = _connect(port)
    with link:
        link.sendall(b'["hello", 1, 0]\n')
        with first._changed:
            assert first._changed.wait_for(lambda: 1 in first._links, 60)
        first.fail(0)
        restart = threading.Thread(target=first.meet, args=(1,), daemon=True)
        restart.start()
        link.sendall(b'["done", 0, 0]\n')
    restart.join(60)
    assert not restart.is_alive()
    first.close(0)


def test_a_restart_waits_for_no_machine_if_another_has_left() -> None:
    """Of three machines, two can't go on alone; the status of the one that left says how it ended."""
    port = free_port()
    first, second, third = (Peers(each, num_nodes=3, host="127.0.0.1", port=port) for each in range(3))
    _wait(first, lambda: len(first._links) == 2)
    for follower in (second, third):
        _wait(follower, lambda each=follower: bool(each._expected))  # type: ignore[misc]
    third.close(137)
    second.fail(0)
    assert first.meet(0) == 1
    assert first.left_status == 137
    first.close(1)
    assert second.meet(0) == 1
    assert second.left_status == 1
    second.close(1)


def test_a_final_error_is_told_again_after_a_broken_link() -> None:
    port = free_port()
    first = Peers(node_rank=0, num_nodes=2, host="127.0.0.1", port=port)
    first.round, first.final_status = 1, 2
    with _connect(port) as link, link.makefile() as messages:
        link.sendall(b'["hello", 1, 1]\n')
        assert json.loads(messages.readline()) == ["round", 1, 2]
    first.close(2)


def test_a_replaced_first_machine_takes_the_others_round_and_all_restart_in_it() -> None:
    """One failure, one round: neither the loss of a link nor the failed ranks count again."""
    follower, lost, link = _follower()
    port = lost.getsockname()[1]
    link.sendall(b'["round", 0, 0]\n')
    _wait(follower, lambda: bool(follower._expected))
    link.close()
    lost.close()
    _wait(follower, lambda: follower.round == 1)
    rounds: dict[str, int] = {}
    meeting = [threading.Thread(target=lambda: rounds.update(follower=follower.meet(0)), daemon=True)]
    meeting[0].start()
    meeting[0].join(0.2)
    assert meeting[0].is_alive()
    replacement = Peers(node_rank=0, num_nodes=2, host="", port=port)
    _wait(replacement, lambda: replacement.round == 1)
    assert not rounds, "the follower does not start before the replacement's ranks have restarted"
    replacement.fail(0)  # they were stopped, or failed by themselves
    meeting.append(threading.Thread(target=lambda: rounds.update(replacement=replacement.meet(0)), daemon=True))
    meeting[1].start()
    for thread in meeting:
        thread.join(60)
    assert rounds == {"follower": 1, "replacement": 1}
    assert (follower.round, replacement.round) == (1, 1)
    replacement.fail(1)
    _wait(follower, lambda: follower.round == 2)
    follower.close(0)
    replacement.close(0)


def test_a_link_that_breaks_during_a_restart_counts_no_second_failure() -> None:
    follower, lost, link = _follower()
    link.sendall(b'["round", 0, 0]\n["failed", 1, 0]\n')
    _wait(follower, lambda: follower.round == 1)
    link.close()
    with lost.accept()[0] as link, link.makefile() as messages:
        assert json.loads(messages.readline()) == ["hello", 1, 1]
    follower.close(0)
    lost.close()


def test_a_first_machine_that_ends_is_no_failure() -> None:
    follower, lost, link = _follower()
    link.sendall(b'["round", 0, 0]\n["done", 0, 0]\n')
    link.close()
    _wait(follower, lambda: not follower._links)
    assert (follower.round, follower.meet(0)) == (0, 0)  # without waiting for a machine that has left
    follower.close(0)
    lost.close()


def test_a_machine_that_is_replaced_before_its_link_ended_is_a_failure() -> None:
    """As after a power cut, which closes no connection."""
    port = free_port()
    first = Peers(node_rank=0, num_nodes=2, host="127.0.0.1", port=port)
    with _connect(port) as old, _connect(port) as new, new.makefile() as messages:
        old.sendall(b'["hello", 1, 0]\n')
        _wait(first, lambda: 1 in first._links)
        new.sendall(b'["hello", 1, 0]\n')
        assert [json.loads(messages.readline()) for _ in range(1)] == [["round", 1, 0]]
        first.close(0)


def test_links_are_kept_alive_on_both_sides() -> None:
    port = free_port()
    first = Peers(node_rank=0, num_nodes=2, host="127.0.0.1", port=port)
    second = Peers(node_rank=1, num_nodes=2, host="127.0.0.1", port=port)
    for peers in (first, second):
        _wait(peers, lambda peers=peers: bool(peers._links))  # type: ignore[misc]
        (link,) = peers._links.values()
        assert link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
        assert [link.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [30, 10, 3, 60_000]
        peers.close(0)


def test_a_taken_port_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        Peers(node_rank=0, num_nodes=1, host="", port=port)._listen(port)
    assert f"can't listen at port {port}" in capsys.readouterr().err


def _follower() -> tuple[Peers, socket.socket, socket.socket]:
    """A launcher of the second machine, the server at which the test plays the first machine's, and their link."""
    server = socket.create_server(("127.0.0.1", 0))
    follower = Peers(node_rank=1, num_nodes=2, host="127.0.0.1", port=server.getsockname()[1])
    link, _ = server.accept()
    return follower, server, link


def _wait(peers: Peers, condition: Callable[[], bool]) -> None:
    with peers._changed:
        assert peers._changed.wait_for(condition, 60)


def _connect(port: int) -> socket.socket:
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            return socket.create_connection(("127.0.0.1", port), 60)
