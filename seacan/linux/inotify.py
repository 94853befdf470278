"""inotify(7): being told of changes to files and folders."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final, NamedTuple

IN_MODIFY: Final = 0x002
IN_CLOSE_WRITE: Final = 0x008
IN_MOVED_FROM: Final = 0x040
IN_MOVED_TO: Final = 0x080
IN_CREATE: Final = 0x100
IN_DELETE: Final = 0x200
IN_DELETE_SELF: Final = 0x400
IN_Q_OVERFLOW: Final = 0x4000
IN_IGNORED: Final = 0x8000
IN_ONLYDIR: Final = 0x1000000

_HEADER = struct.Struct("iIII")
_libc = ctypes.CDLL(None, use_errno=True)


class Event(NamedTuple):
    """``name`` is set when something in a watched folder changed."""

    watch: int
    mask: int
    name: bytes


class Inotify:
    """An inotify instance: non-blocking, closed on exec. Watch :meth:`fileno` for reading."""

    def __init__(self) -> None:
        self._fd: int = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._fd < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"inotify_init1: {os.strerror(code)}")

    def fileno(self) -> int:
        return self._fd

    def add(self, path: str, mask: int) -> int:
        """Watch ``path``; gives the watch's number. Raises OSError."""
        watch: int = _libc.inotify_add_watch(self._fd, os.fsencode(path), ctypes.c_uint32(mask))
        if watch < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"inotify_add_watch: {os.strerror(code)}", path)
        return watch

    def read(self) -> list[Event]:
        """What has happened since the last call; empty when nothing."""
        events: list[Event] = []
        while True:
            try:
                data = os.read(self._fd, 16384)
            except BlockingIOError:
                return events
            at = 0
            while at < len(data):
                watch, mask, _, length = _HEADER.unpack_from(data, at)
                at += _HEADER.size
                events.append(Event(watch, mask, data[at : at + length].rstrip(b"\0")))
                at += length

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Inotify:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()
