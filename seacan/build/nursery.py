"""Where a build's workers come from: a launcher that has imported what they need.

A build starts many short workers (copying, checksums, digests of layers); importing their modules anew would cost each
some 50 ms. This launcher exists only while there are builds: it is started by the first, and ends a while after the
last, so that an idle engine does not hold its memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import sys
from collections.abc import Sequence

from seacan.errors import SeacanError
from seacan.runtime.launcher import Launcher, Process

MODULES = (
    "seacan.build.context",
    "seacan.build.files",
    "seacan.build.buildkit.sync",
    "seacan.storage.pack",
)
"""What is imported before the first fork."""

_IDLE = 60.0
"""Seconds without work after which it ends."""


class Nursery:
    """Starts workers in the warm launcher, or, until that is ready, in the engine's own."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._warm: Launcher | None = None
        self._ready = False
        self._starting: asyncio.Task[None] | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._closing: set[asyncio.Task[None]] = set()

    async def launch(self, target: str, argument: str, fds: Sequence[int] = ()) -> Process:
        """See :meth:`Launcher.launch`."""
        self.wake()
        if self._warm is not None and self._ready:
            return await self._warm.launch(target, argument, fds)
        return await self._launcher.launch(target, argument, fds)

    def wake(self) -> None:
        """Work is coming."""
        loop = asyncio.get_running_loop()
        if self._expiry is not None:
            self._expiry.cancel()
        self._expiry = loop.call_later(_IDLE, self._expire)
        if self._warm is None:
            self._warm = Launcher("seacan.build.nursery")
            self._starting = loop.create_task(self._start(self._warm), name="build workers")

    async def _start(self, warm: Launcher) -> None:
        with contextlib.suppress(SeacanError):
            await warm.start()
            process = await warm.launch("seacan.build.nursery:ready", "")
            await process.wait()
            self._ready = self._warm is warm

    def _expire(self) -> None:
        task = asyncio.get_running_loop().create_task(self._end())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _end(self) -> None:
        warm, self._warm, self._ready = self._warm, None, False
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
            self._starting = None
        if warm is not None:
            await warm.close()

    async def close(self) -> None:
        """End the warm launcher; workers that still run are their owners' to end."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        await self._end()


def ready(_argument: str, _fds: Sequence[int]) -> int:
    """The first thing the warm launcher is asked for: when it answers, everything is imported."""
    return 0


def main() -> None:
    from seacan.runtime import forkserver, packets

    channel = packets.adopt(int(sys.argv[1]))
    for module in MODULES:
        importlib.import_module(module)
    forkserver.serve(channel)


if __name__ == "__main__":
    main()
