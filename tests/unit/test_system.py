"""Facts about this machine."""

import socket
from types import TracebackType

import pytest

from reproduce.system import free_port


def test_free_port_and_its_successor_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """The launchers of several machines connect at the port after that of the ranks."""
    offered, taken = iter([4000, 65535, 5000]), {4001}

    class Socket:
        def __enter__(self) -> "Socket":
            return self

        def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
            pass

        def bind(self, address: tuple[str, int]) -> None:
            self.port = address[1] or next(offered)
            if self.port > 65535:
                raise OverflowError
            if self.port in taken:
                raise OSError

        def getsockname(self) -> tuple[str, int]:
            return "", self.port

    monkeypatch.setattr(socket, "socket", Socket)
    assert free_port() == 5000
