"""Entry point of `python -m reproduce`: the harness on the command line (reproduce/cli)."""

import os
import sys

from reproduce.cli.parser import parse_arguments
from reproduce.errors import EXIT_INTERRUPTED, run_cli


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit status."""
    options = parse_arguments(arguments)
    try:
        status: int = options.command(options)
        sys.stdout.flush()
    except BrokenPipeError:  # `... | head` has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the flush at the end fails again
        return EXIT_INTERRUPTED
    return status


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
