"""Timestamps of log entries: strictly rising, and cheap by the thousand.

dockerd reads the clock for every line. Here lines that were read together get the time of that read, each a nanosecond
more than the one before, so that no two entries of a container share a time (readers tell repeated lines apart by it).
"""

from __future__ import annotations

import time


class Clock:
    __slots__ = ("_last", "_second", "_text")

    def __init__(self) -> None:
        self._last = 0
        self._second = -1
        self._text = b""

    def microseconds(self, count: int = 1) -> int:
        """The first of ``count`` consecutive microseconds that nobody else gets (since 1970)."""
        now = max(time.time_ns() // 1000, self._last + 1)
        self._last = now + count - 1
        return now

    def text(self, microsecond: int) -> bytes:
        """RFC 3339 in UTC down to the microsecond, without the zone: ``2026-01-31T23:59:59.000001``."""
        second, fraction = divmod(microsecond, 1_000_000)
        if second != self._second:
            self._second = second
            self._text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode()
        return b"%b.%06d" % (self._text, fraction)
