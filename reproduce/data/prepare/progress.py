"""Report the progress of long preparations every few seconds."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

LogFn = Callable[[str], None]
"""Receives one line of progress or result, e.g. `print`."""
LOG_EVERY_SECONDS = 5.0

Item = TypeVar("Item")


class Progress:
    """Counts what is done, and logs the count at most every few seconds."""

    def __init__(self, log: LogFn, describe: Callable[[int], str], count: int = 0) -> None:
        self.count = count
        self._log, self._describe, self._last_log_time = log, describe, time.monotonic()

    def update(self, num: int = 1) -> None:
        """Count `num` more."""
        self.count += num
        if time.monotonic() - self._last_log_time > LOG_EVERY_SECONDS:
            self._last_log_time = time.monotonic()
            self._log(self._describe(self.count))


def with_progress(items: Iterable[Item], total: int, what: str, log: LogFn) -> Iterator[Item]:
    """Yield the items and log how many of `total` are done, e.g. "1,200 of 5,000 shards read"."""
    progress = Progress(log, lambda count: f"  {count:,} of {total:,} {what}")
    for item in items:
        progress.update()
        yield item
