"""The connection of several machines' launchers, message by message."""

import contextlib
import json
import socket
import threading

import pytest

from reproduce.engine.distributed.peers import Peers


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
            with peers._changed:
                assert peers._changed.wait_for(lambda: peers.round == 1, 60)
            restart.join(0.2)
            assert restart.is_alive()
            link.sendall(b'["go", 1, 0]\n')
            restart.join(60)
            assert not restart.is_alive()
            peers.close()
            assert json.loads(messages.readline()) == ["done", 0, 0]


def test_the_first_machine_restarts_no_earlier_than_the_others_are_ready_again() -> None:
    """That they were ready for the first round counts no longer."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    first = Peers(node_rank=0, num_nodes=2, host="127.0.0.1", port=port)
    with _connect(port) as link, link.makefile() as messages:
        link.sendall(b'["hello", 1, 0]\n')
        assert [json.loads(messages.readline()) for _ in range(2)] == [["round", 0, 0], ["go", 0, 0]]
        first.fail(0)
        assert json.loads(messages.readline()) == ["failed", 1, 0]
        restart = threading.Thread(target=first.meet, args=(0,), daemon=True)
        restart.start()
        restart.join(0.2)
        assert restart.is_alive()
        link.sendall(b'["ready", 1, 0]\n')
        assert json.loads(messages.readline()) == ["go", 1, 0]
        restart.join(60)
        assert not restart.is_alive()
        first.close()
        link.sendall(b'["done", 0, 0]\n')


def test_a_restart_does_not_wait_for_a_machine_that_has_left() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
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
    first.close()


def test_a_taken_port_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        Peers(node_rank=0, num_nodes=1, host="", port=port)._listen(port)
    assert f"can't listen at port {port}" in capsys.readouterr().err


def _connect(port: int) -> socket.socket:
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            return socket.create_connection(("127.0.0.1", port), 60)
