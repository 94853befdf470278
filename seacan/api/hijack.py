"""Takes a connection away from the HTTP server, so that it can become a container's terminal or a build session.

Every accepted connection is a :class:`Connection`: an asyncio protocol that passes bytes on to aiohttp's, until a
handler takes the connection over. It holds back what a client sends behind the head and body of a request that may be
taken over (attach, exec start), since those bytes are no HTTP.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import Callable
from typing import cast

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.web_request import BaseRequest

from seacan.api.http import api_version
from seacan.engine.streams import Client, Connect
from seacan.errors import InvalidParameter

_HIJACKABLE = re.compile(
    rb"POST (?:\S*?)/(?:containers/[^/\s]+/attach|exec/[^/\s]+/start|session|grpc)(?:\?\S*)? HTTP/1\."
)
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)[ \t]*\r\n", re.IGNORECASE)
_HEAD_LIMIT = 64 << 10
_PUMP = 64 << 10
_HELD_LIMIT = 1 << 20
"""Bytes behind a hijackable request after which nothing more is read before it is clear whose they are."""


class Connection(asyncio.Protocol):
    """One accepted connection; ``inner`` is aiohttp's protocol for it."""

    def __init__(self, inner: asyncio.Protocol) -> None:
        self._inner = inner
        self._transport: asyncio.Transport | None = None
        self._held: bytearray | None = None
        """What arrived behind a hijackable request; None while bytes go to aiohttp."""
        self._head = bytearray()
        self._left = 0
        """How much of the hijackable request's body is still to come."""
        self._sink: Callable[[bytes], None] | None = None
        self._ended: Callable[[], object] | None = None
        self._drained = asyncio.Event()
        self._drained.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._drained.set()
        if self._ended is not None:
            self._ended()
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._drained.clear()
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._drained.set()
        self._inner.resume_writing()

    def eof_received(self) -> bool | None:
        if self._sink is not None:
            self._sink(b"")
            return True
        if self._held is not None:
            return True
        return self._inner.eof_received()

    def data_received(self, data: bytes) -> None:
        if self._sink is not None:
            self._sink(data)
        elif self._held is not None:
            if self._left:
                self._inner.data_received(data[: self._left])
                rest = data[self._left :]
                self._left -= len(data) - len(rest)
                data = rest
            self._held += data
            if len(self._held) > _HELD_LIMIT and self._transport is not None:
                self._transport.pause_reading()
        elif self._head or (data.startswith(b"POST ") and _HIJACKABLE.match(data)):
            self._hijackable(data)
        else:
            self._inner.data_received(data)

    def _hijackable(self, data: bytes) -> None:
        self._head += data
        end = self._head.find(b"\r\n\r\n")
        if end < 0 and len(self._head) < _HEAD_LIMIT:
            return
        head, self._head = bytes(self._head), bytearray()
        length = _LENGTH.search(head, 0, end + 2)
        if end < 0 or (length is None and re.search(rb"\r\ntransfer-encoding:", head[:end], re.IGNORECASE)):
            self._inner.data_received(head)
            return
        whole = end + 4 + (int(length[1]) if length else 0)
        self._left = max(0, whole - len(head))
        self._held = bytearray(head[whole:])
        self._inner.data_received(head[:whole])

    def release(self) -> None:
        """The request was answered as plain HTTP: what was held back is the next request."""
        held, self._held, self._left = self._held, None, 0
        if held and len(held) > _HELD_LIMIT and self._transport is not None:
            self._transport.resume_reading()
        if held:
            self.data_received(bytes(held))

    async def take(self, answer: bytes) -> tuple[int, bytes]:
        """Send ``answer`` and give the connection up: a descriptor of its own for it, and what was read already.

        Over TLS the descriptor is one end of a socket pair, and this object goes on to carry bytes between the two.
        """
        transport = self._transport
        assert transport is not None
        transport.set_write_buffer_limits(0)
        transport.write(answer)
        await self._drained.wait()
        held = bytes(self._held or b"")
        raw = transport.get_extra_info("socket")
        if transport.get_extra_info("ssl_object") is None:
            transport.pause_reading()
            return os.dup(raw.fileno()), held
        ours, theirs = socket.socketpair()
        await self._pump(transport, ours)
        transport.resume_reading()
        return theirs.detach(), held

    async def take_streams(self, answer: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Like :meth:`take`, for protocols that run in this process (a build session)."""
        fd, held = await self.take(answer)
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=sock, limit=1 << 20)
        if held:
            # StreamReader has no way to put bytes back but its own feed.
            buffered = bytes(reader._buffer)  # type: ignore[attr-defined]
            reader._buffer.clear()  # type: ignore[attr-defined]
            reader.feed_data(held + buffered)
        return reader, writer

    async def _pump(self, transport: asyncio.Transport, ours: socket.socket) -> None:
        ours.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=ours, limit=_PUMP)

        def from_client(data: bytes) -> None:
            if data:
                writer.write(data)
                if writer.transport.get_write_buffer_size() > _PUMP:
                    transport.pause_reading()
                    resume.set()
            elif writer.can_write_eof():
                writer.write_eof()

        resume = asyncio.Event()

        async def relieve() -> None:
            while True:
                await resume.wait()
                resume.clear()
                await writer.drain()
                transport.resume_reading()

        async def to_client() -> None:
            try:
                while data := await reader.read(_PUMP):
                    transport.write(data)
                    await self._drained.wait()
            finally:
                relief.cancel()
                writer.close()
                transport.close()

        relief = asyncio.ensure_future(relieve())
        pump = asyncio.ensure_future(to_client())
        self._sink = from_client
        self._ended = pump.cancel

    def abandon(self) -> None:
        """Close our copy of a connection that was taken (of a TLS connection, nothing: it is still being carried)."""
        if self._transport is not None and self._sink is None:
            self._transport.abort()


class Hijacked(web.StreamResponse):
    """What a handler returns whose connection was taken: aiohttp must not write a byte."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(status=101)
        self._connection = connection
        self.force_close()

    async def prepare(self, request: BaseRequest) -> AbstractStreamWriter | None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        self._connection.abandon()

    @property
    def prepared(self) -> bool:
        return True


def connection_of(request: web.Request) -> Connection:
    """The connection a request came on.

    Raises:
        InvalidParameter: it did not come over one of ours, or has gone.
    """
    transport = request.transport
    connection = transport.get_protocol() if transport is not None else None
    if not isinstance(connection, Connection):
        raise InvalidParameter("connection cannot be hijacked")
    return connection


def upgrade(request: web.Request, *, content_type: str = "") -> bytes:
    """dockerd's answer to a request for raw streams: 101 if the client asked to upgrade, else a bare 200."""
    if "Upgrade" in request.headers:
        kind = content_type or "application/vnd.docker.raw-stream"
        return f"HTTP/1.1 101 UPGRADED\r\nContent-Type: {kind}\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n".encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n"


def connect(request: web.Request, *, stdin: bool, stdout: bool, stderr: bool, detach_keys: bytes) -> Connect:
    """How the engine gets at the client's connection once it is sure to want it."""

    async def take(multiplexed: bool) -> Client:
        kind = ""
        if multiplexed and api_version(request) >= (1, 42):
            kind = "application/vnd.docker.multiplexed-stream"
        fd, pending = await connection_of(request).take(upgrade(request, content_type=kind))
        return Client(
            fd=fd,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            multiplexed=multiplexed,
            detach_keys=detach_keys,
            pending=pending if stdin else b"",
        )

    return take
