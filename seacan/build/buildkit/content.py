"""A content store at a build's client: containerd's content service, served over the session.

Caches of ``type=local`` and contexts of ``oci-layout://`` are folders of the client's, which only it can read and
write. Its end of the conversation is :mod:`seacan.cli.buildcontent`.
Interface: containerd, api/services/content/v1.
"""

# ruff: noqa: RUF009 - the defaults are descriptions of fields

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from seacan.build.buildkit.rpc import ALREADY_EXISTS, NOT_FOUND, Channel, Status
from seacan.build.buildkit.wire import Message, mapping, nested, scalar
from seacan.errors import InvalidParameter, NotFound, System
from seacan.images.manifest import Descriptor
from seacan.storage import digest as digests
from seacan.storage.blobs import DOCUMENT_LIMIT, DigestMismatch
from seacan.storage.digest import Digest

SERVICE = "/containerd.services.content.v1.Content/"
STORE = "buildkit-attachable-store-id"
_CHUNK = 1 << 20
STAT, WRITE, COMMIT = range(3)


@dataclass
class Info(Message):
    """A blob; so far as is said here. Sizes and offsets are bytes."""

    digest: str = scalar(1, "string")
    size: int = scalar(2, "int")


@dataclass
class InfoRequest(Message):
    digest: str = scalar(1, "string")


@dataclass
class InfoResponse(Message):
    info: Info | None = nested(1, lambda: Info)


@dataclass
class ReadRequest(Message):
    digest: str = scalar(1, "string")
    offset: int = scalar(2, "int")
    size: int = scalar(3, "int")


@dataclass
class ReadResponse(Message):
    offset: int = scalar(1, "int")
    data: bytes = scalar(2, "bytes")


@dataclass
class WriteRequest(Message):
    action: int = scalar(1, "int")
    ref: str = scalar(2, "string")
    total: int = scalar(3, "int")
    expected: str = scalar(4, "string")
    offset: int = scalar(5, "int")
    data: bytes = scalar(6, "bytes")
    labels: dict[str, str] = mapping(7, "string")


@dataclass
class WriteResponse(Message):
    action: int = scalar(1, "int")
    offset: int = scalar(4, "int")
    total: int = scalar(5, "int")
    digest: str = scalar(6, "string")


class ClientContent:
    """One store, called ``id`` by the client. A :class:`seacan.registry.copy.Place` without names."""

    def __init__(self, channel: Channel, id: str) -> None:
        self._channel = channel
        self._metadata = {STORE: [id]}

    async def manifest(self, reference: str) -> tuple[bytes, str]:
        """A manifest by digest, verified."""
        digest = digests.parse(reference)
        info = await self._info(digest)
        if info is None:
            raise NotFound(f"content {digest}: not found")
        if info.size > DOCUMENT_LIMIT:
            raise InvalidParameter(f"manifest {digest} has {info.size} bytes; the limit is {DOCUMENT_LIMIT}")
        return await self.read(digest, info.size), ""

    async def read(self, digest: Digest, size: int) -> bytes:
        """A small blob, verified."""
        parts: list[bytes] = []
        async for piece in self.blob(Descriptor(digest=digest, size=size)):
            parts.append(piece)
            if sum(map(len, parts)) > DOCUMENT_LIMIT:
                raise InvalidParameter(f"blob {digest} is larger than {DOCUMENT_LIMIT} bytes")
        content = b"".join(parts)
        if digests.of(content) != digest:
            raise DigestMismatch(f"blob verification failed for digest {digest}")
        return content

    async def blob(self, descriptor: Descriptor) -> AsyncIterator[bytes]:
        talk = await self._channel.open(f"{SERVICE}Read", self._metadata)
        async with talk:
            await talk.send(ReadRequest(descriptor.digest), end=True)
            while (data := await talk.next()) is not None:
                yield ReadResponse.decode(data).data

    async def _info(self, digest: Digest) -> Info | None:
        try:
            answer = await self._channel.call(f"{SERVICE}Info", InfoRequest(digest), InfoResponse, self._metadata)
        except Status as error:
            if error.code == NOT_FOUND:
                return None
            raise
        return answer.info

    async def has_blob(self, digest: Digest) -> bool:
        return await self._info(digest) is not None

    async def put_blob(self, descriptor: Descriptor, body: Callable[[], AsyncIterator[bytes]]) -> None:
        ref = f"seacan-{descriptor.digest}"
        talk = await self._channel.open(f"{SERVICE}Write", self._metadata)

        async def ask(request: WriteRequest) -> WriteResponse:
            await talk.send(request)
            data = await talk.next()
            if data is None:
                raise System(f"writing {descriptor.digest} to the client: it has ended the call")
            return WriteResponse.decode(data)

        async with talk:
            try:
                began = await ask(WriteRequest(STAT, ref, descriptor.size, descriptor.digest))
                skip, at = began.offset, 0
                async for whole in body():
                    for start in range(0, len(whole), _CHUNK):
                        piece = whole[start : start + _CHUNK]
                        at += len(piece)
                        if at <= skip:
                            continue
                        piece = piece[max(0, skip - (at - len(piece))) :]
                        await ask(WriteRequest(WRITE, ref, 0, "", at - len(piece), piece))
                await ask(WriteRequest(COMMIT, ref, descriptor.size, descriptor.digest, at))
                await talk.end()
            except Status as error:
                if error.code != ALREADY_EXISTS:
                    raise

    async def put_manifest(self, reference: str, media_type: str, content: bytes) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            yield content

        await self.put_blob(Descriptor(media_type=media_type, digest=digests.of(content), size=len(content)), pieces)

    async def finish(self) -> None:
        return None
