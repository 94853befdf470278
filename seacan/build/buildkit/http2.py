"""HTTP/2 on a stream that is there already, in either role: just what gRPC needs of it (RFC 9113).

Header compression is hpack's. The frames are our own, because a build context arrives as tens of thousands of 16 KiB
DATA frames and this process should spend microseconds on each. No priorities, no push, no TLS. The peer is hostile:
sizes are bounded, and a broken rule ends the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from hpack import Decoder, Encoder, HPACKError

from seacan.errors import System

logging.getLogger("hpack").setLevel(logging.INFO)  # it tells of every byte

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

_DATA, _HEADERS, _PRIORITY, _RST_STREAM, _SETTINGS, _PUSH, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = range(10)
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITIZED = 0x1, 0x1, 0x4, 0x8, 0x20

_WINDOW = 1 << 22
"""Bytes a stream may send us before it must wait: enough for the round trips of a local socket."""
_CONNECTION_WINDOW = 1 << 26
_READ = 1 << 19
_FRAME = 1 << 16
"""The longest frame we take."""
_SMALL = 1 << 13
_HEADERS_LIMIT = 1 << 20
_STREAMS_LIMIT = 128

NO_ERROR, PROTOCOL_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, CANCEL = 0, 1, 3, 6, 8

Headers = list[tuple[str, str]]


class ConnectionLost(System):
    """The connection ended, or the peer broke the protocol."""


class StreamReset(System):
    """The peer gave a stream up."""


class Stream:
    """One stream. Received data is read with :meth:`receive`; what is read is what the peer may send again."""

    def __init__(self, connection: Connection, id: int) -> None:
        self.connection = connection
        self.id = id
        self.headers: Headers = []
        self.trailers: Headers = []
        self._chunks: list[bytes] = []
        self._ready = asyncio.Event()
        self._unread = 0
        self._ended = False
        self._error: Exception | None = None
        self.window = connection.initial_window
        self._room = asyncio.Event()
        self._sent_end = False
        self._done = False
        self.task: asyncio.Task[None] | None = None

    # --- from the peer ------------------------------------------------------------------------------------------

    async def receive(self) -> bytes:
        """The bytes that have come; b"" at the end of the stream. :raises StreamReset, ConnectionLost:"""
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self._ended:
                return b""
            self._ready.clear()
            await self._ready.wait()
        data = b"".join(self._chunks) if len(self._chunks) > 1 else self._chunks[0]
        self._chunks.clear()
        self._unread += len(data)
        if self._unread >= _WINDOW // 2 and not self._ended:
            self.connection.window_update(self.id, self._unread)
            self._unread = 0
        return data

    async def wait_headers(self) -> Headers:
        """The headers that the peer answers with."""
        while not self.headers:
            if self._error is not None:
                raise self._error
            if self._ended:
                return self.trailers
            self._ready.clear()
            await self._ready.wait()
        return self.headers

    def _take_headers(self, headers: Headers, end: bool) -> None:
        if self.headers:
            self.trailers = headers
        else:
            self.headers = headers
        self._ended = self._ended or end
        self._ready.set()

    def _take_data(self, data: bytes, end: bool) -> None:
        if data:
            self._chunks.append(data)
        self._ended = self._ended or end
        self._ready.set()

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        self._ready.set()
        self._room.set()

    def _reset_by_peer(self) -> None:
        if self._ended:
            # It has said all it had to say and wants to hear no more (RFC 9113, 8.1).
            self._done = True
            self._room.set()
            return
        self._fail(StreamReset("the peer gave the stream up"))
        if self.task is not None:
            self.task.cancel()

    # --- to the peer --------------------------------------------------------------------------------------------

    async def send_headers(self, headers: Headers, *, end: bool = False) -> None:
        self._check()
        self.connection.send_headers(self.id, headers, end)
        self._sent_end = end
        await self.connection.drain()

    async def send(self, data: bytes, *, end: bool = False) -> None:
        """Send data as the peer's windows allow."""
        view = memoryview(data)
        while len(view) and not self._done:
            room = min(self.window, self.connection.window, self.connection.frame_size)
            if room <= 0:
                self._check()
                self._room.clear()
                self.connection.waiting.add(self)
                await self._room.wait()
                continue
            piece, view = view[:room], view[room:]
            self._check()
            self.window -= len(piece)
            self.connection.window -= len(piece)
            self.connection.frame(_DATA, _END_STREAM if end and not len(view) else 0, self.id, piece)
            await self.connection.drain()
        if end:
            if not len(data) and not self._done:
                self._check()
                self.connection.frame(_DATA, _END_STREAM, self.id, b"")
                await self.connection.drain()
            self._sent_end = True

    def reset(self, code: int = CANCEL) -> None:
        """Give the stream up."""
        if not (self._ended and self._sent_end) and self._error is None and self.id in self.connection.streams:
            self.connection.frame(_RST_STREAM, 0, self.id, code.to_bytes(4, "big"))
        self.connection.streams.pop(self.id, None)
        self._fail(StreamReset("the stream was given up"))

    def close(self) -> None:
        """Both ends have said all, or the rest does not matter."""
        if self._ended and self._sent_end:
            self.connection.streams.pop(self.id, None)
        else:
            self.reset()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error


class Connection:
    """One connection; ``serve`` (for the server's role) is called for each stream the peer opens."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        client: bool,
        serve: Callable[[Stream], Awaitable[None]] | None = None,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._client = client
        self._serve = serve
        self._encoder = Encoder()
        self._decoder = Decoder(max_header_list_size=_HEADERS_LIMIT)
        self._next = 1 if client else 2
        self.streams: dict[int, Stream] = {}
        self._last = 0
        self.window = 65535
        self.initial_window = 65535
        self.frame_size = 16384
        self._unread = 0
        self.waiting: set[Stream] = set()
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        if client:
            # Before anything else that may be sent on this connection.
            writer.write(PREFACE)
            self._greet()

    def _greet(self) -> None:
        settings = [(3, _STREAMS_LIMIT), (4, _WINDOW), (5, _FRAME), (6, _HEADERS_LIMIT)]
        if self._client:
            settings.append((2, 0))
        self.frame(
            _SETTINGS, 0, 0, b"".join(key.to_bytes(2, "big") + value.to_bytes(4, "big") for key, value in settings)
        )
        self.window_update(0, _CONNECTION_WINDOW - 65535)

    async def run(self) -> None:
        """Speak until the connection ends. Never raises for what the peer does."""
        reason = "the connection was closed"
        try:
            if not self._client:
                if await self._reader.readexactly(len(PREFACE)) != PREFACE:
                    raise ConnectionLost("the peer does not speak HTTP/2")
                self._greet()
            await self._read()
        except (asyncio.IncompleteReadError, ConnectionError, OSError):
            pass
        except (ConnectionLost, HPACKError, ValueError, IndexError) as error:
            reason = f"the peer broke HTTP/2: {error}"
            with contextlib.suppress(Exception):
                self.frame(_GOAWAY, 0, 0, self._last.to_bytes(4, "big") + PROTOCOL_ERROR.to_bytes(4, "big"))
        finally:
            for stream in list(self.streams.values()):
                stream._fail(ConnectionLost(reason))
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self.streams.clear()
            self._writer.close()
            if not self.closed.done():
                self.closed.set_result(None)

    def open(self) -> Stream:
        """A new stream of ours."""
        if self.closed.done():
            raise ConnectionLost("the connection was closed")
        stream = Stream(self, self._next)
        self.streams[self._next] = stream
        self._next += 2
        return stream

    def close(self) -> None:
        self._writer.close()

    # --- sending ------------------------------------------------------------------------------------------------

    def frame(self, type_: int, flags: int, stream: int, payload: bytes | memoryview) -> None:
        if self._writer.is_closing():
            return
        size = len(payload)
        head = size.to_bytes(3, "big") + bytes((type_, flags)) + stream.to_bytes(4, "big")
        if size <= _SMALL:
            self._writer.write(head + payload)  # a system call costs more than the copy
            return
        self._writer.write(head)
        self._writer.write(payload)

    async def drain(self) -> None:
        try:
            await self._writer.drain()
        except (ConnectionError, OSError) as error:
            raise ConnectionLost(f"the connection was lost: {error}") from error

    def send_headers(self, stream: int, headers: Sequence[tuple[str, str]], end: bool) -> None:
        block = self._encoder.encode(headers)
        first, rest = block[: self.frame_size], block[self.frame_size :]
        flags = _END_STREAM if end else 0
        self.frame(_HEADERS, flags | (0 if rest else _END_HEADERS), stream, first)
        while rest:
            first, rest = rest[: self.frame_size], rest[self.frame_size :]
            self.frame(_CONTINUATION, 0 if rest else _END_HEADERS, stream, first)

    def window_update(self, stream: int, size: int) -> None:
        if size > 0:
            self.frame(_WINDOW_UPDATE, 0, stream, size.to_bytes(4, "big"))

    # --- receiving ----------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        reader = self._reader
        block: bytearray | None = None
        block_flags = block_stream = 0
        buffer = b""
        at = 0
        while True:
            # Many frames at a time: each costs a slice, not a turn of the event loop.
            while len(buffer) - at < 9 or len(buffer) - at < 9 + (size := int.from_bytes(buffer[at : at + 3], "big")):
                if len(buffer) - at >= 9 and size > _FRAME:
                    raise ConnectionLost(f"a frame of {size} bytes")
                more = await reader.read(_READ)
                if not more:
                    return
                buffer = buffer[at:] + more if at < len(buffer) else more
                at = 0
            if size > _FRAME:
                raise ConnectionLost(f"a frame of {size} bytes")
            type_, flags = buffer[at + 3], buffer[at + 4]
            id = int.from_bytes(buffer[at + 5 : at + 9], "big") & 0x7FFFFFFF
            payload = buffer[at + 9 : at + 9 + size]
            at += 9 + size
            if block is not None and (type_ != _CONTINUATION or id != block_stream):
                raise ConnectionLost("a header block was interrupted")
            if type_ == _DATA:
                self._data(id, flags, payload, size)
            elif type_ == _HEADERS:
                payload = _unpad(payload, flags)
                if flags & _PRIORITIZED:
                    payload = payload[5:]
                if flags & _END_HEADERS:
                    self._headers(id, flags, payload)
                else:
                    block, block_flags, block_stream = bytearray(payload), flags, id
            elif type_ == _CONTINUATION:
                if block is None:
                    raise ConnectionLost("a continuation of nothing")
                block += payload
                if len(block) > _HEADERS_LIMIT:
                    raise ConnectionLost("a header block is too long")
                if flags & _END_HEADERS:
                    whole, block = bytes(block), None
                    self._headers(id, block_flags, whole)
            elif type_ == _SETTINGS:
                if not flags & _ACK:
                    self._settings(payload)
            elif type_ == _PING:
                if not flags & _ACK:
                    self.frame(_PING, _ACK, 0, payload)
            elif type_ == _WINDOW_UPDATE:
                self._window(id, int.from_bytes(payload[:4], "big") & 0x7FFFFFFF)
            elif type_ == _RST_STREAM:
                stream = self.streams.pop(id, None)
                if stream is not None:
                    stream._reset_by_peer()
            elif type_ == _PUSH:
                raise ConnectionLost("a push")
            elif type_ == _GOAWAY and not self.streams:
                return

    def _data(self, id: int, flags: int, payload: bytes, size: int) -> None:
        self._unread += size
        if self._unread >= _CONNECTION_WINDOW // 4:
            self.window_update(0, self._unread)
            self._unread = 0
        stream = self.streams.get(id)
        if stream is not None:
            stream._take_data(_unpad(payload, flags), bool(flags & _END_STREAM))

    def _headers(self, id: int, flags: int, block: bytes) -> None:
        headers = [(str(name), str(value)) for name, value in self._decoder.decode(block)]
        end = bool(flags & _END_STREAM)
        stream = self.streams.get(id)
        if stream is not None:
            stream._take_headers(headers, end)
            return
        if self._client or self._serve is None:
            return  # the end of a stream we have given up
        if id % 2 == 0 or id <= self._last:
            raise ConnectionLost(f"stream {id} cannot be opened")
        self._last = id
        if len(self.streams) >= _STREAMS_LIMIT:
            self.frame(_RST_STREAM, 0, id, (7).to_bytes(4, "big"))
            return
        stream = Stream(self, id)
        self.streams[id] = stream
        stream._take_headers(headers, end)
        task = asyncio.ensure_future(self._serve(stream))
        stream.task = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _settings(self, payload: bytes) -> None:
        for at in range(0, len(payload) - 5, 6):
            key = int.from_bytes(payload[at : at + 2], "big")
            value = int.from_bytes(payload[at + 2 : at + 6], "big")
            if key == 1:
                self._encoder.header_table_size = min(value, 65536)
            elif key == 4:
                if value > 0x7FFFFFFF:
                    raise ConnectionLost("an initial window beyond the limit")
                change = value - self.initial_window
                self.initial_window = value
                for stream in self.streams.values():
                    stream.window += change
                self._wake()
            elif key == 5:
                self.frame_size = min(max(value, 16384), 1 << 20)
        self.frame(_SETTINGS, _ACK, 0, b"")

    def _window(self, id: int, size: int) -> None:
        if id == 0:
            self.window += size
            self._wake()
            return
        stream = self.streams.get(id)
        if stream is not None:
            stream.window += size
            self.waiting.discard(stream)
            stream._room.set()

    def _wake(self) -> None:
        for stream in self.waiting:
            stream._room.set()
        self.waiting.clear()


def _unpad(payload: bytes, flags: int) -> bytes:
    if not flags & _PADDED:
        return payload
    padding = payload[0]
    if padding >= len(payload):
        raise ConnectionLost("more padding than frame")
    return payload[1 : len(payload) - padding]
