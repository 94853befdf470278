"""Cuts a process's output into the lines of its log, as dockerd's copier does.

A line is at most 16 KiB; what is longer is logged in parts of exactly that, and the end of the output counts as a part
too when no newline was there.
"""

from __future__ import annotations

import os
from typing import NamedTuple, Protocol

MAX_LINE = 16 << 10


class Partial(NamedTuple):
    """What a part says about itself: the same ``id`` in each, counted from 1."""

    id: str
    ordinal: int
    last: bool
    microsecond: int
    """Parts have the time of the first."""


class Encoder(Protocol):
    """A log format."""

    def lines(self, stream: int, block: bytes) -> bytes:
        """Encode complete lines; ``block`` ends with a newline and no line in it is too long."""
        ...

    def part(self, stream: int, line: bytes, partial: Partial) -> bytes:
        """Encode a part of a line (the last one had a newline behind it)."""
        ...

    def now(self) -> int:
        """Microseconds since 1970, later than anything encoded so far."""
        ...


class Splitter:
    """Lines of one stream."""

    __slots__ = ("_encoder", "_id", "_microsecond", "_ordinal", "_rest", "_stream")

    def __init__(self, stream: int, encoder: Encoder) -> None:
        self._stream = stream
        self._encoder = encoder
        self._rest = b""
        self._id = ""
        self._ordinal = 0
        self._microsecond = 0

    def feed(self, data: bytes) -> bytes:
        """Take what was written; gives encoded entries, without a line that has not ended yet."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        out = b""
        if self._id:
            end = data.find(b"\n", 0, MAX_LINE)
            if end < 0:
                return self._long(data)
            out = self._part(data[:end], True)
            data = data[end + 1 :]
        whole = data.rfind(b"\n") + 1
        if whole != len(data):
            self._rest = data[whole:]
            data = data[:whole]
        if data:
            out += self._encoder.lines(self._stream, data) if _short(data) else self._mixed(data)
        if len(self._rest) >= MAX_LINE:
            rest, self._rest = self._rest, b""
            out += self._long(rest)
        return out

    def finish(self) -> bytes:
        """The output has ended."""
        rest, self._rest = self._rest, b""
        out = self._part(rest, False) if rest else b""
        self._id = ""
        return out

    def _long(self, data: bytes) -> bytes:
        """Parts of a line whose end is further than they are long; then whatever follows."""
        out = []
        at = 0
        while True:
            end = data.find(b"\n", at, at + MAX_LINE)
            if end >= 0:
                out.append(self._part(data[at:end], True))
                out.append(self.feed(data[end + 1 :]))
                return b"".join(out)
            if len(data) - at < MAX_LINE:
                self._rest = data[at:]
                return b"".join(out)
            out.append(self._part(data[at : at + MAX_LINE], False))
            at += MAX_LINE

    def _mixed(self, data: bytes) -> bytes:
        """Complete lines, some of which are too long."""
        out = []
        start = at = 0
        while at < len(data):
            end = data.index(b"\n", at)
            if end - at >= MAX_LINE:
                if start < at:
                    out.append(self._encoder.lines(self._stream, data[start:at]))
                while end - at >= MAX_LINE:
                    out.append(self._part(data[at : at + MAX_LINE], False))
                    at += MAX_LINE
                out.append(self._part(data[at:end], True))
                start = end + 1
            at = end + 1
        if start < len(data):
            out.append(self._encoder.lines(self._stream, data[start:]))
        return b"".join(out)

    def _part(self, line: bytes, last: bool) -> bytes:
        if not self._id:
            self._id = os.urandom(32).hex()
            self._ordinal = 0
            self._microsecond = self._encoder.now()
        self._ordinal += 1
        partial = Partial(self._id, self._ordinal, last, self._microsecond)
        if last:
            self._id = ""
        return self._encoder.part(self._stream, line, partial)


def _short(data: bytes) -> bool:
    """Whether a look in every half of MAX_LINE finds a newline, so that no line can be too long."""
    half = MAX_LINE // 2
    return all(data.find(b"\n", at, at + half) >= 0 for at in range(0, len(data) - half, half))
