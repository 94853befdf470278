"""gRPC in both roles on one HTTP/2 connection. https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TypeVar
from urllib.parse import unquote

from seacan.build.buildkit.http2 import Connection, ConnectionLost, Stream, StreamReset
from seacan.build.buildkit.wire import Message, WireError
from seacan.errors import SeacanError

log = logging.getLogger(__name__)

OK, CANCELLED, UNKNOWN, INVALID_ARGUMENT, DEADLINE, NOT_FOUND = range(6)
ALREADY_EXISTS, PERMISSION_DENIED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 6, 7, 12, 13, 14

_MESSAGE_LIMIT = 64 << 20

M = TypeVar("M", bound=Message)


class Status(SeacanError):
    """How a call failed. ``details`` is an encoded ``google.rpc.Status`` with more to say."""

    def __init__(self, code: int, message: str, details: bytes = b"") -> None:
        super().__init__(message)
        self.code = code
        self.details = details


class Messages:
    """The messages of one direction of a stream."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._buffer = bytearray()
        self._at = 0

    async def next(self) -> memoryview | None:
        """The next message, None at the end."""
        while True:
            have = len(self._buffer) - self._at
            if have >= 5:
                size = int.from_bytes(self._buffer[self._at + 1 : self._at + 5], "big")
                if self._buffer[self._at]:
                    raise Status(UNIMPLEMENTED, "compressed messages are not supported")
                if size > _MESSAGE_LIMIT:
                    raise Status(INTERNAL, f"message of {size} bytes is too long")
                if have >= 5 + size:
                    start = self._at + 5
                    data = bytes(self._buffer[start : start + size])
                    self._at = start + size
                    if self._at > 1 << 18 or self._at == len(self._buffer):
                        del self._buffer[: self._at]
                        self._at = 0
                    return memoryview(data)
            piece = await self._stream.receive()
            if not piece:
                if have:
                    raise Status(INTERNAL, "the stream ended within a message")
                return None
            self._buffer += piece


def framed(data: bytes) -> bytes:
    return b"\0" + len(data).to_bytes(4, "big") + data


class Call:
    """One call that the peer makes: its requests, and where the answers go."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._messages = Messages(stream)
        self.metadata: dict[str, list[str]] = {}
        for name, value in stream.headers:
            self.metadata.setdefault(name, []).append(value)
        self._answered = False

    @property
    def method(self) -> str:
        return self.metadata.get(":path", [""])[0]

    async def request(self, model: type[M]) -> M:
        data = await self._messages.next()
        if data is None:
            raise Status(INTERNAL, f"{self.method}: no request")
        return model.decode(data)

    async def requests(self, model: type[M]) -> AsyncIterator[M]:
        while (data := await self._messages.next()) is not None:
            yield model.decode(data)

    async def reply(self, message: Message) -> None:
        await self._begin()
        await self._stream.send(framed(message.encode()))

    async def receive_framed(self) -> bytes:
        """What has come, framed as it is; b"" at the end."""
        return await self._stream.receive()

    async def send_framed(self, data: bytes) -> None:
        """Answer with messages that have been framed already."""
        await self._begin()
        await self._stream.send(data)

    async def _begin(self) -> None:
        if not self._answered:
            self._answered = True
            await self._stream.send_headers([(":status", "200"), ("content-type", "application/grpc")])

    async def finish(self, status: Status | None = None) -> None:
        await self._begin()
        trailers = [("grpc-status", str(status.code if status else OK))]
        if status is not None:
            trailers.append(("grpc-message", _percent(str(status))))
            if status.details:
                encoded = base64.b64encode(status.details).decode().rstrip("=")
                trailers.append(("grpc-status-details-bin", encoded))
        await self._stream.send_headers(trailers, end=True)


Method = Callable[[Call], Awaitable[None]]


def _percent(text: str) -> str:
    return "".join(
        chr(byte) if 0x20 <= byte <= 0x7E and byte != 0x25 else f"%{byte:02X}"
        for byte in text.encode("utf-8", "replace")
    )


def server(methods: Mapping[str, Method]) -> Callable[[Stream], Awaitable[None]]:
    """What answers the streams of a connection in the server's role. Methods are named by path."""

    async def serve(stream: Stream) -> None:
        call = Call(stream)
        try:
            method = methods.get(call.method)
            status: Status | None = None
            if method is None:
                status = Status(UNIMPLEMENTED, f"unknown method {call.method}")
            else:
                try:
                    await method(call)
                except Status as error:
                    status = error
                except WireError as error:
                    status = Status(INVALID_ARGUMENT, str(error))
                except (StreamReset, ConnectionLost):
                    return
                except SeacanError as error:
                    codes = {400: INVALID_ARGUMENT, 404: NOT_FOUND, 409: ALREADY_EXISTS, 501: UNIMPLEMENTED}
                    status = Status(codes.get(error.status, UNKNOWN), str(error))
                except Exception as error:
                    log.exception("%s", call.method)
                    status = Status(INTERNAL, f"{type(error).__name__}: {error}")
            await call.finish(status)
        except (StreamReset, ConnectionLost):
            return
        except asyncio.CancelledError:
            stream.reset()
            raise
        finally:
            stream.close()

    return serve


class Channel:
    """Calls on the peer, which has the server's role."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def open(self, method: str, metadata: Mapping[str, list[str]] | None = None) -> Conversation:
        stream = self.connection.open()
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", method),
            (":authority", "localhost"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("user-agent", "seacan"),
        ]
        headers += [(name, value) for name, values in (metadata or {}).items() for value in values]
        await stream.send_headers(headers)
        return Conversation(stream)

    async def call(
        self, method: str, request: Message, model: type[M], metadata: Mapping[str, list[str]] | None = None
    ) -> M:
        """One request, one answer. :raises Status:"""
        talk = await self.open(method, metadata)
        async with talk:
            await talk.send(request, end=True)
            data = await talk.next()
            if data is None:
                raise Status(INTERNAL, f"{method}: no answer")
            answer = model.decode(data)
            await talk.next()
            return answer


class Conversation:
    """One call of ours, messages both ways. Leaving the block gives up what is not over."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._messages = Messages(stream)

    async def __aenter__(self) -> Conversation:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._stream.close()

    async def send(self, message: Message, *, end: bool = False) -> None:
        await self._stream.send(framed(message.encode()), end=end)

    async def send_framed(self, data: bytes) -> None:
        """Send messages that have been framed already."""
        await self._stream.send(data)

    async def end(self) -> None:
        await self._stream.send(b"", end=True)

    async def receive_framed(self) -> bytes:
        """What has come, framed as it is; b"" at the end. :raises Status: the call failed."""
        await self._stream.wait_headers()
        self._raise(self._stream.headers)
        data = await self._stream.receive()
        if not data:
            self._raise(self._stream.trailers)
        return data

    async def next(self) -> memoryview | None:
        """The next answer, None at the end. :raises Status: the call failed."""
        await self._stream.wait_headers()
        self._raise(self._stream.headers)
        data = await self._messages.next()
        if data is None:
            self._raise(self._stream.trailers)
        return data

    @staticmethod
    def _raise(headers: list[tuple[str, str]]) -> None:
        found = dict(headers)
        code = int(found.get("grpc-status", "0") or 0)
        if code:
            encoded = found.get("grpc-status-details-bin", "")
            details = base64.b64decode(encoded + "=" * (-len(encoded) % 4)) if encoded else b""
            raise Status(code, unquote(found.get("grpc-message", "")), details)
