"""Errors in words."""

import signal

import pytest

from reproduce.errors import signal_in_words


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGTERM, "SIGTERM"),
        (signal.SIGKILL, "SIGKILL; the machine may have run out of memory"),
        (signal.SIGRTMIN + 1, f"signal {signal.SIGRTMIN + 1}"),
    ],
)
def test_a_signal_is_named_where_it_has_a_name(number: int, words: str) -> None:
    assert signal_in_words(number) == words
