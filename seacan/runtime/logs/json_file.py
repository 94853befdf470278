"""The ``json-file`` format: one JSON object a line, byte for byte what dockerd writes.

``{"log":"text\\n","stream":"stdout","attrs":{…},"time":"2026-01-31T23:59:59.123456789Z"}``; a part of a line that is
too long has no newline in ``log``.
"""

from __future__ import annotations

import codecs

import msgspec

from seacan.runtime.logs.clock import Clock
from seacan.runtime.logs.lines import Partial

_SPECIAL = bytes(range(32)).replace(b"\n", b"") + b'"\\<>&'
_PLAIN = bytes(byte for byte in range(256) if byte not in _SPECIAL)
_ESCAPES = {byte: b"\\u%04x" % byte for byte in _SPECIAL} | {
    ord("\\"): b"\\\\",
    ord('"'): b'\\"',
    ord("\r"): b"\\r",
}
_PER_MICROSECOND = 900
# A nanosecond within the microsecond, never with a zero at the end, which Go would leave out.
_TAILS = tuple(b'%03dZ"}\n' % number for number in range(1000) if number % 10)


def _escape_each_byte(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\\ufffd" * (error.end - error.start), error.end


codecs.register_error("seacan.json_file", _escape_each_byte)


def escape(text: bytes) -> bytes:
    """``text`` inside a JSON string, newlines left as they are; as dockerd's encoder writes it.

    Besides what JSON wants, ``<``, ``>``, ``&``, U+2028 and U+2029 are escaped, and each byte that is not UTF-8 becomes
    ``\\ufffd``.
    """
    special = text.translate(None, _PLAIN)
    if special:
        kinds = set(special)
        if 0x5C in kinds:
            kinds.discard(0x5C)
            text = text.replace(b"\\", b"\\\\")
        for byte in kinds:
            text = text.replace(bytes((byte,)), _ESCAPES[byte])
    if not text.isascii():
        text = text.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
        text = text.decode("utf-8", "seacan.json_file").encode()
    return text


def _quote(text: str) -> bytes:
    return escape(text.encode(errors="surrogateescape")).replace(b"\n", b"\\n")


class JSONFileEncoder:
    """See :class:`seacan.runtime.logs.lines.Encoder`."""

    def __init__(self, attributes: dict[str, str]) -> None:
        self._clock = Clock()
        attrs = b""
        if attributes:
            # Go's encoding/json: keys sorted, the same characters escaped.
            members = (b'"%b":"%b"' % (_quote(key), _quote(value)) for key, value in sorted(attributes.items()))
            attrs = b'"attrs":{%b},' % b",".join(members)
        self._middles = tuple(b',"stream":"%b",%b"time":"' % (name, attrs) for name in (b"", b"stdout", b"stderr"))

    def now(self) -> int:
        return self._clock.microseconds()

    def lines(self, stream: int, block: bytes) -> bytes:
        lines = escape(block).split(b"\n")
        lines.pop()
        count = len(lines)
        middle = self._middles[stream]
        if count == 1:
            (line,) = lines
            stamp = self._clock.text(self._clock.microseconds())
            if line:
                return b'{"log":"%b\\n"%b%b%b' % (line, middle, stamp, _TAILS[0])
            return b'{"log":"\\n"%b%b%b' % (middle, stamp, _TAILS[0])
        first = self._clock.microseconds(-(-count // _PER_MICROSECOND))
        out = []
        for number, start in enumerate(range(0, count, _PER_MICROSECOND)):
            some = lines[start : start + _PER_MICROSECOND]
            pieces = [b'{"log":"'] * (4 * len(some))
            pieces[1::4] = some
            pieces[2::4] = [b'\\n"%b%b' % (middle, self._clock.text(first + number))] * len(some)
            pieces[3::4] = _TAILS[: len(some)]
            out += pieces
        return b"".join(out)

    def part(self, stream: int, line: bytes, partial: Partial) -> bytes:
        text = escape(line) + (b"\\n" if partial.last else b"")
        return b'{"log":"%b"%b%b%b' % (text, self._middles[stream], self._clock.text(partial.microsecond), _TAILS[0])


class Record(msgspec.Struct, gc=False):
    """One line of the file."""

    log: str = ""
    stream: str = ""
    time: str = ""
    attrs: dict[str, str] | None = None


def boundary(data: bytes, least: int) -> int:
    """Where the entry ends that reaches ``least`` bytes into ``data`` (which begins with an entry)."""
    return data.index(b"\n", max(least - 1, 0)) + 1
