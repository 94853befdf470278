"""A log file that is replaced when it has reached its size, as dockerd does it.

``path`` is written; ``path.1`` (or ``path.1.gz``) is the one before, and so on, ``max_file`` in all. A file is
compressed by a process of its own, and until that is done there is no further rotation: :attr:`RotatingFile.busy`.
A reader finds each entry at any time: ``path.1`` is removed only when ``path.1.gz`` is whole.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import zlib
from collections.abc import Callable

Boundary = Callable[[bytes, int], int]

MODE = 0o640
_CHUNK = 256 << 10


class RotatingFile:
    """``boundary(data, least)`` gives the end of the entry that reaches ``least`` bytes into encoded ``data``.

    Raises OSError when the file cannot be opened.
    """

    def __init__(self, path: str, boundary: Boundary, *, max_size: int, max_file: int, compress: bool) -> None:
        self._path = path
        self._boundary = boundary
        self._max_size = max_size
        self._max_file = max(max_file, 1)
        self._compress = compress and self._max_file > 1 and max_size > 0
        self.compressor = 0
        """The pid of the process that compresses just now, or 0; whoever reaps it calls :meth:`compressed`."""
        self.spawned: Callable[[int], None] = lambda pid: None
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, MODE)
        self._size = os.lseek(self._fd, 0, os.SEEK_END)
        if self._compress and os.path.exists(f"{path}.1"):
            self._start_compressor()  # an earlier writer died before it had finished

    @property
    def busy(self) -> bool:
        """Whether a rotation would be due while the last one is still being compressed."""
        return self.compressor != 0 and self._size >= self._max_size

    def write(self, data: bytes) -> bytes:
        """Append encoded entries; gives back those for which there is no place until :meth:`compressed`.

        Raises OSError when an entry could not be written; the file then ends with the last whole one.
        """
        while data:
            if 0 < self._max_size <= self._size:
                if self.compressor:
                    return data
                self._rotate()
            if 0 < self._max_size < self._size + len(data):
                end = self._boundary(data, self._max_size - self._size)
                self._append(data[:end])
                data = data[end:]
            else:
                self._append(data)
                return b""
        return b""

    def _append(self, data: bytes) -> None:
        done = 0
        try:
            while done < len(data):
                done += os.write(self._fd, data[done:] if done else data)
        except OSError:
            if done:
                whole = self._whole(data, done)
                os.ftruncate(self._fd, self._size + whole)
                self._size += whole
            raise
        self._size += done

    def _whole(self, data: bytes, written: int) -> int:
        """How much of what was written is whole entries."""
        end = 0
        while end < written:
            step = self._boundary(data[end:], 1)
            if end + step > written:
                break
            end += step
        return end

    def _rotate(self) -> None:
        path, suffix = self._path, ".gz" if self._compress else ""
        if self._max_file > 1:
            for number in range(self._max_file - 1, 1, -1):
                with contextlib.suppress(FileNotFoundError):
                    os.rename(f"{path}.{number - 1}{suffix}", f"{path}.{number}{suffix}")
            os.rename(path, f"{path}.1")
        else:
            os.unlink(path)
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, MODE)
        os.close(self._fd)
        self._fd, self._size = fd, 0
        if self._compress:
            self._start_compressor()

    def _start_compressor(self) -> None:
        pid = os.fork()
        if not pid:
            status = 1
            try:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.closerange(3, 1 << 20)
                os.nice(10)
                compress(f"{self._path}.1")
                status = 0
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.write(2, f"Error compressing log file after rotation: {error}\n".encode())
            finally:
                os._exit(status)
        self.compressor = pid
        self.spawned(pid)

    def compressed(self) -> None:
        """The compressor has ended."""
        self.compressor = 0

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def compress(path: str) -> None:
    """Replace ``path`` by ``path.gz``. Raises OSError."""
    with contextlib.ExitStack() as stack:
        try:
            source = stack.enter_context(open(path, "rb", buffering=0))
        except FileNotFoundError:
            return
        partial = f"{path}.gz.tmp"
        target = stack.enter_context(
            open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, MODE), "wb", buffering=0)
        )
        packer = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
        target.write(b"\x1f\x8b\x08\x00" + bytes(4) + b"\x00\xff")
        checksum = size = 0
        while chunk := source.read(_CHUNK):
            checksum = zlib.crc32(chunk, checksum)
            size += len(chunk)
            _write_all(target.fileno(), packer.compress(chunk))
        _write_all(target.fileno(), packer.flush() + struct.pack("<II", checksum, size & 0xFFFFFFFF))
        os.rename(partial, f"{path}.gz")
        os.unlink(path)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
