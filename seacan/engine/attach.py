"""`docker attach`: a client's connection joined to a container's own streams."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from seacan.engine import logs
from seacan.engine.container import Container
from seacan.engine.streams import Client, Connect
from seacan.errors import Conflict
from seacan.runtime.logs import ReadOptions

if TYPE_CHECKING:
    from seacan.engine.engine import Engine
    from seacan.runtime.task import Task


async def attach(engine: Engine, reference: str, connect: Connect, *, replay: bool, stream: bool) -> None:
    """Join a client to a container: to one that runs at once, to one that does not when it starts.

    ``replay`` sends what the log holds first; without ``stream`` that is all.

    Raises:
        Conflict: the container is paused or waits for its restart.
    """
    container = engine.containers.get(reference)
    if container.state.paused:
        raise Conflict(f"container {reference} is paused, unpause the container before attach")
    if container.state.restarting:
        raise Conflict(f"container {reference} is restarting, wait until the container is running")
    client = await connect(not container.config.tty)
    try:
        if replay:
            await _replay(engine, container, client)
        if not stream:
            client.close()
            return
        client.stdin = client.stdin and container.config.open_stdin
        engine.containers.emit(container, "attach")
        task = container.task
        if task is None:
            container.clients.append(client)
        else:
            await hand_over(task, client)
    except BaseException:
        client.close()
        raise


async def hand_over(task: Task, client: Client) -> None:
    """Give the client's connection to the shim, which owns it from then on."""
    try:
        await task.attach(
            client.fd,
            stdin=client.stdin,
            stdout=client.stdout,
            stderr=client.stderr,
            multiplexed=client.multiplexed,
            detach_keys=client.detach_keys,
            pending=client.pending,
        )
    finally:
        client.close()


async def _replay(engine: Engine, container: Container, client: Client) -> None:
    options = ReadOptions(stdout=client.stdout, stderr=client.stderr, multiplexed=client.multiplexed)
    async for chunk in logs.read(engine, container, options):
        await asyncio.to_thread(_write_all, client.fd, chunk)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            import select

            select.select([], [fd], [], 10)
