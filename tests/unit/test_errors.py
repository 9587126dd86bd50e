"""Errors in words."""

import signal

import pytest

from reproduce.errors import describe_signal


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGTERM, "SIGTERM"),
        (signal.SIGKILL, "SIGKILL; the machine may have run out of memory"),
        (signal.SIGRTMIN + 1, f"signal {signal.SIGRTMIN + 1}"),
    ],
)
def test_describe_signal_names_it_if_it_has_a_name(number: int, words: str) -> None:
    assert describe_signal(number) == words
