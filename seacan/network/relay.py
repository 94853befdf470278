"""Published ports of IPv6 addresses for containers that have none: the one path that passes through this process.

No kernel object turns an IPv6 connection into an IPv4 one, so what reaches ``[::]:8080`` for a container with only an
IPv4 address is taken up here and passed on, as docker-proxy does; the container sees it come from its gateway. All else
about ports is nftables' affair. The listening socket is the one that reserves the port, so that the container's shim
keeps it and clients wait in its queue while the daemon restarts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from dataclasses import dataclass

log = logging.getLogger(__name__)

_BUFFER = 256 << 10
_BACKLOG = 256
_MAX_FLOWS = 1024
_UDP_IDLE = 90.0
"""Seconds after which a silent UDP flow is forgotten, as docker-proxy does."""
_CONNECT_TIMEOUT = 10.0


class Relay:
    """Passes on what arrives at a listening (TCP) or bound (UDP) socket. The socket stays its owner's."""

    def __init__(self, listener: socket.socket, target: tuple[str, int]) -> None:
        self._listener = listener
        self.target = target
        self._tasks: set[asyncio.Task[None]] = set()
        self._flows: dict[tuple[str, int], _Flow] = {}
        self._loop = asyncio.get_running_loop()
        listener.setblocking(False)
        if listener.type == socket.SOCK_STREAM:
            listener.listen(_BACKLOG)
            self._loop.add_reader(listener.fileno(), self._accept)
        else:
            self._loop.add_reader(listener.fileno(), self._datagrams)

    def close(self) -> None:
        """Stop; connections in flight are cut."""
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener.fileno())
        for task in self._tasks:
            task.cancel()
        for flow in self._flows.values():
            flow.close(self._loop)
        self._flows.clear()

    # --- TCP -------------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        for _ in range(16):
            try:
                client, _address = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                log.warning("port %s: %s", self._listener.getsockname()[:2], error)
                return
            if len(self._tasks) >= _MAX_FLOWS:
                client.close()  # whoever connects must not use up this process's descriptors
                continue
            client.setblocking(False)
            task = self._loop.create_task(self._connection(client))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connection(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as server:
            server.setblocking(False)
            try:
                async with asyncio.timeout(_CONNECT_TIMEOUT):
                    await self._loop.sock_connect(server, self.target)
            except (OSError, TimeoutError) as error:
                log.debug("connection to %s: %s", self.target, error)
                return
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(client, server))
                    group.create_task(self._pump(server, client))
            except* OSError as errors:
                log.debug("connection to %s: %s", self.target, errors.exceptions)

    async def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        buffer = bytearray(_BUFFER)
        view = memoryview(buffer)
        while size := await self._loop.sock_recv_into(source, buffer):
            await self._loop.sock_sendall(sink, view[:size])
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    # --- UDP -------------------------------------------------------------------------------------------------------

    def _datagrams(self) -> None:
        for _ in range(64):
            try:
                data, address = self._listener.recvfrom(65535)
            except OSError:
                return
            flow = self._flows.get(address[:2])
            if flow is None:
                if len(self._flows) >= _MAX_FLOWS:
                    continue
                flow = self._new_flow(address)
            flow.touched = self._loop.time()
            with contextlib.suppress(OSError):
                flow.sock.send(data)

    def _new_flow(self, address: tuple[str, int]) -> _Flow:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        sock.connect(self.target)
        flow = _Flow(sock, self._loop.time())
        self._flows[address[:2]] = flow
        self._loop.add_reader(sock.fileno(), self._answers, flow, address)
        flow.timer = self._loop.call_later(_UDP_IDLE, self._expire, address)
        return flow

    def _answers(self, flow: _Flow, address: tuple[str, int]) -> None:
        for _ in range(64):
            try:
                data = flow.sock.recv(65535)
            except OSError:
                return
            flow.touched = self._loop.time()
            with contextlib.suppress(OSError):
                self._listener.sendto(data, address)

    def _expire(self, address: tuple[str, int]) -> None:
        flow = self._flows.get(address[:2])
        if flow is None:
            return
        left = flow.touched + _UDP_IDLE - self._loop.time()
        if left > 0:
            flow.timer = self._loop.call_later(left, self._expire, address)
            return
        del self._flows[address[:2]]
        flow.close(self._loop)


@dataclass(slots=True, eq=False)
class _Flow:
    """What one UDP client has sent lately."""

    sock: socket.socket
    touched: float
    timer: asyncio.TimerHandle | None = None

    def close(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.timer is not None:
            self.timer.cancel()
        loop.remove_reader(self.sock.fileno())
        self.sock.close()
