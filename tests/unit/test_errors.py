"""Errors in words."""

import signal

import pytest

from reproduce.__main__ import main
from reproduce.errors import UserError, describe_signal


def test_an_option_is_not_taken_for_a_longer_one() -> None:
    with pytest.raises(UserError, match="unrecognized arguments: --seed"):
        main(["plan", "table7", "--seed", "3"])


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
