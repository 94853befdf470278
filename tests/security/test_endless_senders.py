"""Peers that send, or connect, without end: what the engine holds for them is bounded."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from seacan.api.hijack import Connection
from seacan.network import relay

REQUEST = b"POST /v1.51/exec/0/start HTTP/1.1\r\nHost: d\r\nContent-Length: 2\r\n\r\n{}"


class Inner(asyncio.Protocol):
    """The HTTP server, which is still busy with the request."""

    def __init__(self) -> None:
        self.received = b""

    def data_received(self, data: bytes) -> None:
        self.received += data


@pytest.fixture
async def connection() -> AsyncIterator[tuple[Connection, Inner, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    inner = Inner()
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_connection(lambda: Connection(inner), sock=ours)
    yield protocol, inner, theirs
    transport.abort()
    theirs.close()


async def fill(sock: socket.socket, limit: int) -> int:
    """Send until nobody takes any more."""
    sent = 0
    while sent < limit:
        try:
            sent += sock.send(bytes(1 << 16))
        except BlockingIOError:
            for _ in range(20):
                await asyncio.sleep(0)
            try:
                sent += sock.send(bytes(1 << 16))
            except BlockingIOError:
                break
    return sent


async def test_what_follows_a_request_for_a_stream_waits_in_the_kernel(
    connection: tuple[Connection, Inner, socket.socket],
) -> None:
    protocol, inner, client = connection
    await asyncio.get_running_loop().sock_sendall(client, REQUEST)
    assert await fill(client, 64 << 20) < 8 << 20
    assert inner.received == REQUEST
    fd, held = await protocol.take(b"HTTP/1.1 101 UPGRADED\r\n\r\n")
    socket.socket(fileno=fd).close()
    assert len(held) < 4 << 20


async def test_a_refused_request_leaves_the_connection_to_the_next(
    connection: tuple[Connection, Inner, socket.socket],
) -> None:
    protocol, inner, client = connection
    await asyncio.get_running_loop().sock_sendall(client, REQUEST)
    sent = await fill(client, 64 << 20)
    protocol.release()
    while len(inner.received) < len(REQUEST) + sent:
        await asyncio.sleep(0.001)
    assert inner.received[: len(REQUEST)] == REQUEST


async def test_connections_to_a_relayed_port_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "_MAX_FLOWS", 4)
    with (
        socket.create_server(("::1", 0), family=socket.AF_INET6) as listener,
        socket.create_server(("127.0.0.1", 0)) as target,
    ):
        passing = relay.Relay(listener, target.getsockname())
        clients = [socket.create_connection(listener.getsockname()[:2]) for _ in range(8)]
        try:
            loop = asyncio.get_running_loop()
            for client in clients[4:]:
                client.setblocking(False)
                async with asyncio.timeout(10):
                    assert await loop.sock_recv(client, 1) == b""
            target.setblocking(False)
            for _ in range(4):
                (await loop.sock_accept(target))[0].close()
            with pytest.raises(BlockingIOError):
                target.accept()
        finally:
            passing.close()
            for client in clients:
                client.close()
