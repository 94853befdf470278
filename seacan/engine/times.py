"""Moments as Docker writes them: RFC 3339 with nanoseconds, UTC."""

from __future__ import annotations

import time

ZERO = "0001-01-01T00:00:00Z"
"""Go's zero time: never."""


def rfc3339(nanoseconds: int) -> str:
    """``nanoseconds`` since 1970 as Go prints them: trailing zeros of the fraction dropped; 0 is Go's zero time."""
    if nanoseconds == 0:
        return ZERO
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    digits = f"{fraction:09d}".rstrip("0")
    return f"{whole}.{digits}Z" if digits else f"{whole}Z"
