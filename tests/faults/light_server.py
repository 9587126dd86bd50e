"""The harness's fork server without the libraries of runs, which take seconds to import: a fake run needs none."""

import socket
import sys

from reproduce.forking import serve

if __name__ == "__main__":
    sys.of_fork_server = True  # type: ignore[attr-defined]  # a fake run tells by it that it is a fork
    serve(socket.socket(fileno=int(sys.argv[1])))
