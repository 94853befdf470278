"""Bytes from the event loop to a thread, a bounded number of them in between."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator

_BATCH = 1 << 20
_QUEUED = 8


class Feed:
    """Made in the event loop: :meth:`fill` it there, :meth:`read` it in one thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._chunks: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._room = asyncio.Event()
        self._room.set()
        self._ended = False
        self._abandoned = False

    async def fill(self, body: AsyncIterator[bytes]) -> None:
        """Pass on all of ``body``, or as much as anybody wants."""
        parts: list[bytes] = []
        size = 0
        try:
            async for chunk in body:
                parts.append(chunk)
                size += len(chunk)
                if size >= _BATCH:
                    await self._put(b"".join(parts) if len(parts) > 1 else parts[0])
                    parts, size = [], 0
                if self._abandoned:
                    return
            if parts:
                await self._put(b"".join(parts))
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify()

    async def _put(self, chunk: bytes) -> None:
        await self._room.wait()
        with self._changed:
            self._chunks.append(chunk)
            if len(self._chunks) >= _QUEUED:
                self._room.clear()
            self._changed.notify()

    def read(self) -> bytes:
        """The thread's end: the next bytes, ``b""`` at the end."""
        with self._changed:
            while not self._chunks and not self._ended:
                self._changed.wait()
            if not self._chunks:
                return b""
            chunk = self._chunks.popleft()
        self._loop.call_soon_threadsafe(self._room.set)
        return chunk

    def stop(self) -> None:
        """Let the thread find the end at once, whatever is still to come."""
        self._abandoned = True
        with self._changed:
            self._chunks.clear()
            self._ended = True
            self._changed.notify()
        self._room.set()

    def abandon(self) -> None:
        """The thread's way to say that it wants no more."""
        self._abandoned = True
        with self._changed:
            self._chunks.clear()
        self._loop.call_soon_threadsafe(self._room.set)
