"""TLS in front of the API: what arrives encrypted goes on, in the clear, over a socket pair to where everything goes.

asyncio's own TLS cannot close one direction: when a client has nothing more to send (``docker run`` without ``-i`` says
so at once), it would drop what a container still has to say. Here each direction ends by itself. And a handler that
takes a connection over gets a socket whether or not there is TLS.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Final, cast

log = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT: Final = 60.0
"""Seconds a client may take for its part."""
_RECORD = 64 << 10


async def listen(
    listener: socket.socket, context: ssl.SSLContext, factory: Callable[[], asyncio.Protocol]
) -> asyncio.Server:
    """Accept TLS on ``listener``; ``factory`` makes the protocol that sees the clear side of each connection."""
    context.options |= ssl.OP_NO_RENEGOTIATION
    loop = asyncio.get_running_loop()
    return await loop.create_server(lambda: _Encrypted(context, factory), sock=listener, backlog=1024)


class _Encrypted(asyncio.Protocol):
    """The client's side of a connection."""

    def __init__(self, context: ssl.SSLContext, factory: Callable[[], asyncio.Protocol]) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._factory = factory
        self._transport: asyncio.Transport
        self._clear: asyncio.Transport | None = None
        self._opening: asyncio.Task[None] | None = None
        self._shaken = False
        self._read_ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        raw = transport.get_extra_info("socket")
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._timeout = asyncio.get_running_loop().call_later(HANDSHAKE_TIMEOUT, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        self._incoming.write(data)
        self._advance()

    def eof_received(self) -> bool:
        self._incoming.write_eof()
        self._advance()
        return self._shaken and self._clear is not None

    def _advance(self) -> None:
        try:
            if not self._shaken:
                self._tls.do_handshake()
                self._shaken = True
                self._timeout.cancel()
                self._opening = asyncio.ensure_future(self._open())
            if self._clear is not None:
                self._decrypt(self._clear)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            peer = self._transport.get_extra_info("peername")
            log.info("http: TLS handshake error from %s: %s", peer, error.reason or error)
            self._flush()
            self._transport.close()
            return
        self._flush()

    async def _open(self) -> None:
        """Connect the clear side, once the client has shown who it is."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        try:
            await loop.connect_accepted_socket(self._factory, theirs)
            transport, _ = await loop.connect_accepted_socket(lambda: _Clear(self), ours)
        except OSError:
            ours.close()
            theirs.close()
            self._transport.abort()
            return
        if self._transport.is_closing():
            transport.abort()
            return
        self._clear = transport
        self._advance()

    def _decrypt(self, clear: asyncio.Transport) -> None:
        while not self._read_ended:
            try:
                data = self._tls.read(_RECORD)
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                data = b""
            if not data:
                self._read_ended = True
                if clear.can_write_eof() and not clear.is_closing():
                    clear.write_eof()
                return
            clear.write(data)

    def _flush(self) -> None:
        if self._outgoing.pending and not self._transport.is_closing():
            self._transport.write(self._outgoing.read())

    # --- the clear side calls ---------------------------------------------------------------------------------------

    def encrypt(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        try:
            self._tls.write(data)
        except ssl.SSLError:
            self._transport.abort()
            return
        self._flush()

    def finish(self) -> None:
        """The API has said everything."""
        if self._transport.is_closing():
            return
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            pass  # the client's farewell is not waited for
        self._flush()
        self._transport.close()

    def pause(self) -> None:
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    # --- flow and end -----------------------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        if self._clear is not None:
            self._clear.pause_reading()

    def resume_writing(self) -> None:
        if self._clear is not None and not self._clear.is_closing():
            self._clear.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timeout.cancel()
        if self._clear is not None:
            self._clear.abort()


class _Clear(asyncio.Protocol):
    """The API's side of the same connection."""

    def __init__(self, encrypted: _Encrypted) -> None:
        self._encrypted = encrypted

    def data_received(self, data: bytes) -> None:
        self._encrypted.encrypt(data)

    def pause_writing(self) -> None:
        self._encrypted.pause()

    def resume_writing(self) -> None:
        self._encrypted.resume()

    def eof_received(self) -> None:
        self._encrypted.finish()

    def connection_lost(self, exc: Exception | None) -> None:
        self._encrypted.finish()
