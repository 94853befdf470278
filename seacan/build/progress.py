"""What a build tells while it runs: vertices that start and end, their output, and transfers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from seacan.build.graph import Vertex


class Progress(Protocol):
    """Hears of one build. Times are the receiver's to take."""

    def started(self, vertex: Vertex) -> None: ...

    def completed(self, vertex: Vertex, *, cached: bool = False, error: str = "") -> None: ...

    def log(self, vertex: Vertex, stream: int, data: bytes) -> None:
        """``stream`` is 1 or 2."""

    def status(self, vertex: Vertex, id: str, current: int, total: int, *, done: bool = False) -> None:
        """A transfer or other work within a vertex; bytes, ``total`` 0 if unknown."""


class Silent:
    """Tells nobody."""

    def started(self, vertex: Vertex) -> None: ...

    def completed(self, vertex: Vertex, *, cached: bool = False, error: str = "") -> None: ...

    def log(self, vertex: Vertex, stream: int, data: bytes) -> None: ...

    def status(self, vertex: Vertex, id: str, current: int, total: int, *, done: bool = False) -> None: ...


_KEPT = 2 << 20
"""Bytes of a shared step's output that are kept for builds that join later."""


@dataclass(frozen=True)
class _Line:
    stream: int
    data: bytes


class SharedLog:
    """The output of a step that several builds wait for: who joins later hears what has been said."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[int, bytes], None]] = []
        self._said: list[_Line] = []
        self._size = 0

    def listen(self, listener: Callable[[int, bytes], None]) -> None:
        for line in self._said:
            listener(line.stream, line.data)
        self._listeners.append(listener)

    def write(self, stream: int, data: bytes) -> None:
        if self._size < _KEPT:
            self._said.append(_Line(stream, data))
            self._size += len(data)
        for listener in self._listeners:
            listener(stream, data)
