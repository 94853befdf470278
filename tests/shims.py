"""Containers under real shims, forked by a real launcher, for the tests of these."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from seacan import cgroups
from seacan.runtime import spec
from seacan.runtime.bundle import Exit, LogConfig, ShimConfig
from seacan.runtime.launcher import Launcher
from seacan.runtime.protocol import ClientDetached, ExecExited
from seacan.runtime.task import Event, Task, Waiting, lost
from tests.bundles import Bundles


class Client:
    """The far end of an attached connection."""

    def __init__(self) -> None:
        self.near, far = socket.socketpair()
        self.near.setblocking(False)
        self.fd = far.detach()

    async def read(self, size: int = 65536) -> bytes:
        async with asyncio.timeout(20):
            return await asyncio.get_running_loop().sock_recv(self.near, size)

    async def read_all(self) -> bytes:
        """To the end of the stream."""
        data = b""
        while chunk := await self.read():
            data += chunk
        return data

    async def read_until(self, text: bytes) -> bytes:
        data = b""
        while text not in data:
            chunk = await self.read()
            assert chunk, f"the stream ended after {data!r}"
            data += chunk
        return data

    async def write(self, data: bytes) -> None:
        async with asyncio.timeout(20):
            await asyncio.get_running_loop().sock_sendall(self.near, data)

    def end_input(self) -> None:
        self.near.shutdown(socket.SHUT_WR)

    def hand_over(self) -> None:
        """The shim has it by now."""
        os.close(self.fd)

    def close(self) -> None:
        self.near.close()


class Running:
    """A container and what it has said of itself."""

    def __init__(self, bundle: Path, log: LogConfig) -> None:
        self.bundle = bundle
        self.log = log
        self.events: list[Event] = []
        self.task: Task

    def on_event(self, task: Task, event: Event) -> None:
        self.events.append(event)

    async def attach(self, **options: Any) -> Client:
        client = Client()
        await self.task.attach(client.fd, **options)
        client.hand_over()
        return client

    async def exec(self, exec_id: str, args: Sequence[str], *, terminal: bool = False, **options: Any) -> Client:
        client = Client()
        process = spec.Process(args=list(args), env=["PATH=/bin"], terminal=terminal)
        options = {"stdout": True, "stderr": True} | options
        await self.task.exec(exec_id, process, client.fd, **options)
        client.hand_over()
        return client

    async def exec_exit(self, exec_id: str) -> Exit:
        async with asyncio.timeout(20):
            while True:
                for event in self.events:
                    if isinstance(event, ExecExited) and event.exec_id == exec_id:
                        return event.exit
                await asyncio.sleep(0.01)

    async def exit(self) -> Exit:
        async with asyncio.timeout(20):
            return await asyncio.shield(self.task.exit)

    @property
    def detached(self) -> list[str]:
        return [event.exec_id for event in self.events if isinstance(event, ClientDetached)]

    async def shim_pid(self) -> int:
        sandbox = await self.task.created()
        await asyncio.sleep(0.1)  # until init's maker has ended
        return int(Path(f"/proc/{sandbox.pid}/stat").read_text().rpartition(")")[2].split()[1])


class Shims:
    """Starts containers; :meth:`close` leaves nothing of them."""

    def __init__(self, bundles: Bundles, *, by_makers: bool = False) -> None:
        """``by_makers``: even where a shim could fork init itself."""
        self.bundles = bundles
        self.by_makers = by_makers
        self.launcher = Launcher()
        self._made: list[Running] = []

    async def create(
        self,
        args: Sequence[str] | spec.Spec,
        *,
        log: LogConfig | None = None,
        terminal: bool = False,
        waiting: Waiting | None = None,
        **config: Any,
    ) -> Running:
        """A container that waits for its start."""
        oci = args if isinstance(args, spec.Spec) else self.bundles.spec(args, terminal=terminal)
        bundle = self.bundles.root / f"s{len(self._made)}"
        bundle.mkdir()
        log = log or LogConfig(path=str(bundle / "log"))
        direct = not self.by_makers and "external" not in config and spec.direct(oci)
        unified = cgroups.open(oci.linux.cgroups_path).unified if direct and oci.linux is not None else None
        shim = ShimConfig(
            id=bundle.name,
            rootfs=self.bundles.overlay(),
            log=log,
            **{"direct": direct, "spawn": direct, "unified": unified or "", **config},
        )
        (bundle / "config.json").write_bytes(spec.encode(oci))
        (bundle / "shim.json").write_bytes(msgspec.json.encode(shim))
        running = Running(bundle, log)
        self._made.append(running)
        running.task = await Task.spawn(self.launcher, bundle, running.on_event, waiting)
        async with asyncio.timeout(20):
            await running.task.created()
        return running

    async def start(self, args: Sequence[str] | spec.Spec, **options: Any) -> Running:
        running = await self.create(args, **options)
        await running.task.start()
        return running

    async def run(self, args: Sequence[str] | spec.Spec, **options: Any) -> tuple[Exit, bytes]:
        """Run a container to its end; gives what it wrote as well."""
        running = await self.create(args, **options)
        client = await running.attach()
        await running.task.start()
        output = await client.read_all()
        client.close()
        return await running.exit(), output

    async def close(self) -> None:
        for running in self._made:
            task = running.task
            if task.gone.done():
                again = await Task.reconnect(running.bundle, running.on_event)
                task = again if again is not None else task
            if not task.gone.done():
                async with asyncio.timeout(20):
                    await task.abandon()
            await lost(self.launcher, running.bundle)
        await self.launcher.close()
