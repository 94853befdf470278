"""The shim's end of a container's log: output in, entries on disk.

Logging never takes the container down: what cannot be written (a full disk) is dropped, as under dockerd, and said
once on standard error.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from seacan.runtime.bundle import LogConfig
from seacan.runtime.logs import json_file, local
from seacan.runtime.logs.lines import Encoder, Splitter
from seacan.runtime.logs.rotation import RotatingFile


class LogWriter:
    """Records the output of one container (:class:`seacan.runtime.streams.Log`). Raises OSError when it cannot."""

    def __init__(self, config: LogConfig) -> None:
        encoder: Encoder
        if config.driver == "local":
            encoder, boundary = local.LocalEncoder(config.attributes), local.boundary
        else:
            encoder, boundary = json_file.JSONFileEncoder(config.attributes), json_file.boundary
        self.file = RotatingFile(
            config.path, boundary, max_size=config.max_size, max_file=config.max_file, compress=config.compress
        )
        self._splitters = (Splitter(1, encoder), Splitter(2, encoder))
        self._waiting = b""
        """Encoded entries that wait for the end of a compression."""
        self._limit = config.max_buffer_size if config.non_blocking else None
        self._complained = False

    @property
    def busy(self) -> bool:
        return self._limit is None and bool(self._waiting)

    def write(self, stream: int, data: bytes) -> None:
        self._append(self._splitters[stream - 1].feed(data))

    def finish(self, stream: int) -> None:
        self._append(self._splitters[stream - 1].finish())

    def _append(self, entries: bytes) -> None:
        if not entries:
            return
        if self._waiting:
            if self._limit is None or len(self._waiting) + len(entries) <= self._limit:
                self._waiting += entries
            return  # non-blocking, and full: the newest is what is dropped
        try:
            self._waiting = self.file.write(entries)
        except OSError as error:
            if not self._complained:
                self._complained = True
                _complain(f"Failed to log message: {error}")

    def compressed(self) -> None:
        """The process that compressed the previous file has ended."""
        self.file.compressed()
        waiting, self._waiting = self._waiting, b""
        self._append(waiting)

    def close(self, reap: Callable[[int], None]) -> None:
        """Write what still waits, and see the compression through; ``reap(pid)`` waits for a process."""
        while self.file.compressor:
            reap(self.file.compressor)
            self.compressed()
        self.file.close()


def _complain(text: str) -> None:
    try:
        os.write(2, text.encode(errors="replace"))
    except OSError:
        pass  # no launcher is left that could pass it on
