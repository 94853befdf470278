"""Docker's stream frames, read: how standard output and error of a container share one connection.

A frame is one byte for the stream (1 output, 2 error), three zero bytes, the length as a big-endian 32-bit number, and
the payload. Source: the API reference, "Attach to a container".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator


class Demultiplexer:
    """Takes Docker's stream frames apart: 1 byte stream, 3 zero bytes, 4 bytes length, payload."""

    def __init__(self) -> None:
        self._head = b""
        self._stream = 1
        self._left = 0

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """(stream, payload) pieces, given as they come: a frame may arrive in several."""
        view = memoryview(data)
        while view:
            if self._left:
                piece = view[: self._left]
                self._left -= len(piece)
                view = view[len(piece) :]
                yield self._stream, bytes(piece)
                continue
            need = 8 - len(self._head)
            self._head += view[:need]
            view = view[need:]
            if len(self._head) == 8:
                self._stream, self._left = struct.unpack(">BxxxL", self._head)
                self._head = b""
