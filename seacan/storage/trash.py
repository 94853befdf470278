"""Folders on their way out: renamed here at once, deleted later by a process that does nothing else.

A removal so costs its caller one ``rename``. It goes into a folder that nothing is deleted from yet, as it would wait
for that (0.9 ms instead of 0.02). What a crash left is deleted by the first sweep after the next start.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import secrets
from pathlib import Path

from seacan.errors import SeacanError
from seacan.storage import tree, worker
from seacan.storage.sweep import SweepRequest, SweepResult
from seacan.storage.worker import Launcher

log = logging.getLogger(__name__)

_DELAY = 0.5
"""Seconds from a removal to the sweep, so that one process serves many removals."""


class Trash:
    """A folder on the same file system as what is thrown into it; what is not is deleted at once."""

    def __init__(self, folder: Path, launcher: Launcher) -> None:
        self.folder = folder
        self._launcher = launcher
        self._sweeping: asyncio.Task[None] | None = None
        self._dirty = False
        self._batch: Path | None = None
        """What takes discarded folders until the next sweep."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def discard(self, path: Path) -> None:
        """Make ``path`` (a folder that may not exist) disappear."""
        if not os.path.lexists(path):
            return  # before a folder is made that nothing would be in, and no sweep take away
        if self._batch is None:
            batch = self.folder / secrets.token_hex(8)
            batch.mkdir(mode=0o700)
            self._batch = batch
        try:
            os.rename(path, self._batch / secrets.token_hex(8))
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            tree.remove(os.fspath(path))
        self.sweep_soon()

    def sweep_soon(self) -> None:
        """Delete what is here, in the background, if there is an event loop to do it in."""
        self._dirty = True
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = loop.create_task(self._sweep(), name="storage trash")

    async def close(self) -> None:
        """Stop sweeping; the next start goes on."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)

    async def _sweep(self) -> None:
        while self._dirty:
            await asyncio.sleep(_DELAY)
            self._dirty, self._batch = False, None
            request = SweepRequest(str(self.folder), os.listdir(self.folder))
            try:
                done = await worker.run(self._launcher, "seacan.storage.sweep:main", request, (), SweepResult)
            except SeacanError as error:
                log.warning("deleting %s: %s", self.folder, error.message)
                return
            for failure in done.failures:
                log.warning("deleting %s", failure)
