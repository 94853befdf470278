"""The ``local`` format: protocol buffers with their length (32 bits, big endian) before and behind, as dockerd has it.

The message is ``LogEntry {string source = 1; int64 time_nano = 2; bytes line = 3; bool partial = 4;
PartialLogEntryMetadata {bool last = 1; string id = 2; int32 ordinal = 3} partial_log_metadata = 5;
repeated LogAttr {string key = 1; string value = 2} attrs = 6}``.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from seacan.runtime.logs.clock import Clock
from seacan.runtime.logs.lines import Partial

_LENGTH = struct.Struct(">I")
_SOURCES = (b"", b"\x0a\x06stdout\x10", b"\x0a\x06stderr\x10")
_PER_BLOCK = 128
_TICKS = tuple(bytes((0x80 | number,)) for number in range(_PER_BLOCK))

MAX_ENTRY = 1_000_000
"""No entry is longer; a length beyond it means a damaged file."""


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(0x80 | value & 0x7F)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


class LocalEncoder:
    """See :class:`seacan.runtime.logs.lines.Encoder`."""

    def __init__(self, attributes: dict[str, str]) -> None:
        self._clock = Clock()
        self._attrs = b"".join(
            _field(6, _field(1, key.encode(errors="replace")) + _field(2, value.encode(errors="replace")))
            for key, value in sorted(attributes.items())
        )
        # Everything about an entry that depends on its length alone.
        self._frames: dict[int, tuple[bytes, bytes]] = {}

    def now(self) -> int:
        return self._clock.microseconds()

    def _frame(self, size: int) -> tuple[bytes, bytes]:
        """The length of the entry, and the tag and length of its line."""
        # The time is nine bytes from 1979 to 2262; the source is nine with the tag of the time.
        line = b"\x1a" + varint(size) if size else b""
        length = 9 + 9 + len(line) + size + len(self._attrs)
        frame = (_LENGTH.pack(length), line)
        if len(self._frames) < 1024:
            self._frames[size] = frame
        return frame

    def lines(self, stream: int, block: bytes) -> bytes:
        lines = block.split(b"\n")
        lines.pop()
        source, attrs, frames = _SOURCES[stream], self._attrs, self._frames
        # A block of 128 entries shares all of the time but its first varint byte. It spans less than a microsecond.
        first = self._clock.microseconds(-(-len(lines) // _PER_BLOCK))
        out: list[bytes] = []
        for number, start in enumerate(range(0, len(lines), _PER_BLOCK)):
            # Rounded up: the low seven bits count the entries, and two blocks never fall together.
            rest = varint((((first + number) * 1000) >> 7) + 1)
            for tick, line in zip(_TICKS, lines[start : start + _PER_BLOCK], strict=False):
                size = len(line)
                length, head = frames.get(size) or self._frame(size)
                out += (length, source, tick, rest, head, line, attrs, length)
        return b"".join(out)

    def part(self, stream: int, line: bytes, partial: Partial) -> bytes:
        metadata = (
            (b"\x08\x01" if partial.last else b"") + _field(2, partial.id.encode()) + b"\x18" + varint(partial.ordinal)
        )
        entry = (
            _SOURCES[stream]
            + varint(partial.microsecond * 1000)
            + (_field(3, line) if line else b"")
            + b"\x20\x01"
            + _field(5, metadata)
            + self._attrs
        )
        length = _LENGTH.pack(len(entry))
        return length + entry + length


class Entry(NamedTuple):
    """One decoded entry. ``time`` is nanoseconds since 1970; ``complete``: a newline was behind ``line``."""

    source: bytes
    time: int
    line: bytes
    complete: bool
    attrs: dict[str, str] | None


def decode(data: bytes) -> Entry:
    """Decode one message. Raises ValueError or IndexError when it is damaged."""
    at, end = 0, len(data)
    source, time, line, partial, last = b"", 0, b"", False, False
    attrs: dict[str, str] | None = None
    while at < end:
        tag, at = _read_varint(data, at)
        if tag & 7 == 0:
            value, at = _read_varint(data, at)
            if tag == 0x10:
                time = value
            elif tag == 0x20:
                partial = bool(value)
        elif tag & 7 == 2:
            size, at = _read_varint(data, at)
            if at + size > end:
                raise ValueError("field beyond the end of its message")
            field, at = data[at : at + size], at + size
            if tag == 0x0A:
                source = field
            elif tag == 0x1A:
                line = field
            elif tag == 0x2A:
                last = field[:2] == b"\x08\x01"
            elif tag == 0x32:
                attrs = attrs or {}
                key, value_text = _attribute(field)
                attrs[key] = value_text
        else:
            raise ValueError(f"wire type {tag & 7} is none of a log entry")
    return Entry(source, time, line, not partial or last, attrs)


def _attribute(data: bytes) -> tuple[str, str]:
    at, found = 0, {1: "", 2: ""}
    while at < len(data):
        tag, at = _read_varint(data, at)
        size, at = _read_varint(data, at)
        found[tag >> 3] = data[at : at + size].decode(errors="replace")
        at += size
    return found[1], found[2]


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("number of more than 64 bits")


def boundary(data: bytes, least: int) -> int:
    """Where the entry ends that reaches ``least`` bytes into ``data`` (which begins with an entry)."""
    at: int = 0
    while True:
        at += _LENGTH.unpack_from(data, at)[0] + 8
        if at >= least:
            return at
