"""``docker export``: a container's whole root file system as an archive, read by a confined worker."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator

from seacan.runtime.bundle import Rootfs
from seacan.storage import worker
from seacan.storage.pack import PackRequest, PackResult
from seacan.storage.worker import Launcher

_PIPE = 1 << 20


async def export(launcher: Launcher, rootfs: Rootfs, pid: int = 0) -> AsyncIterator[bytes]:
    """The archive, piece by piece; the root is as the container sees it, its volumes and ``/proc`` left out.

    ``pid`` is the container's init while it runs.

    Raises :class:`~seacan.errors.System` from the last step when the tree could not be read to its end.
    """
    loop = asyncio.get_running_loop()
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with contextlib.ExitStack() as opened:
        opened.callback(os.close, reader)
        with contextlib.suppress(OSError):
            fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, _PIPE)
        os.set_blocking(reader, False)
        # Our copy of the writing end goes once the worker has its own, or the pipe would never end.
        packing = asyncio.create_task(
            worker.run(
                launcher,
                "seacan.storage.pack:main",
                PackRequest("tree", rootfs, pid=pid),
                (writer,),
                PackResult,
                launched=lambda: os.close(writer),
            )
        )
        ready = asyncio.Event()
        try:
            loop.add_reader(reader, ready.set)
            while True:
                try:
                    chunk = os.read(reader, _PIPE)
                except BlockingIOError:
                    ready.clear()
                    await ready.wait()
                    continue
                if not chunk:
                    break
                yield chunk
            await packing
        finally:
            loop.remove_reader(reader)
            packing.cancel()
            await asyncio.gather(packing, return_exceptions=True)
