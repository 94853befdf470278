"""Folders that ``seacan build`` serves as content stores: OCI layouts at the client, for caches and images.

The daemon is the caller (see :mod:`seacan.build.buildkit.content`, its end of the same conversation).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from seacan.build.buildkit.content import (
    COMMIT,
    SERVICE,
    STORE,
    Info,
    InfoRequest,
    InfoResponse,
    ReadRequest,
    ReadResponse,
    WriteRequest,
    WriteResponse,
)
from seacan.build.buildkit.rpc import (
    ALREADY_EXISTS,
    INVALID_ARGUMENT,
    NOT_FOUND,
    PERMISSION_DENIED,
    Call,
    Method,
    Status,
)
from seacan.errors import InvalidParameter
from seacan.images.manifest import Descriptor
from seacan.registry.layout import Layout, verified
from seacan.storage import digest as digests
from seacan.storage.digest import Digest

_CHUNK = 1 << 20


class Stores:
    """The client's stores by the names that the daemon has for them."""

    def __init__(self) -> None:
        self._layouts: dict[str, Layout] = {}
        self._writable: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._layouts)

    def read(self, name: str, folder: str, reference: str) -> Digest:
        """Let the daemon read a layout; gives the digest of the manifest that ``reference`` (a tag or digest) means.

        :raises NotFound: there is no such layout, or nothing of that name in it.
        """
        layout = Layout(Path(folder), write=False)
        content, _ = asyncio.run(layout.manifest(reference))
        self._layouts.setdefault(name, layout)
        return digests.of(content)

    def write(self, name: str, folder: str) -> Layout:
        """Let the daemon write to a layout, which is made if need be."""
        try:
            layout = Layout(Path(folder), write=True)
        except OSError as error:
            raise InvalidParameter(f"{folder}: {(error.strerror or str(error)).lower()}") from None
        self._layouts[name] = layout
        self._writable.add(name)
        return layout

    def methods(self) -> Mapping[str, Method]:
        """The service, by the paths of its methods."""
        return {f"{SERVICE}Info": self._info, f"{SERVICE}Read": self._read, f"{SERVICE}Write": self._write}

    def _store(self, call: Call, *, write: bool = False) -> Layout:
        name = (call.metadata.get(STORE) or [""])[0]
        if name not in self._layouts:
            raise Status(NOT_FOUND, f"unknown content store {name!r}")
        if write and name not in self._writable:
            raise Status(PERMISSION_DENIED, f"content store {name!r} is only read")
        return self._layouts[name]

    async def _info(self, call: Call) -> None:
        layout = self._store(call)
        digest = _digest((await call.request(InfoRequest)).digest)
        try:
            size = layout.path(digest).stat().st_size
        except FileNotFoundError:
            raise Status(NOT_FOUND, f"content {digest}: not found") from None
        await call.reply(InfoResponse(Info(digest, size)))

    async def _read(self, call: Call) -> None:
        layout = self._store(call)
        request = await call.request(ReadRequest)
        digest = _digest(request.digest)
        try:
            file = layout.path(digest).open("rb")
        except FileNotFoundError:
            raise Status(NOT_FOUND, f"content {digest}: not found") from None
        with file:
            at = file.seek(max(0, request.offset))
            left = request.size if request.size > 0 else sys.maxsize
            while left and (piece := await asyncio.to_thread(file.read, min(left, _CHUNK))):
                await call.reply(ReadResponse(at, piece))
                at += len(piece)
                left -= len(piece)

    async def _write(self, call: Call) -> None:
        """One blob, whose digest and size are said first; it appears when all of it has come and is verified."""
        layout = self._store(call, write=True)
        first = await call.request(WriteRequest)
        descriptor = Descriptor(digest=_digest(first.expected), size=first.total)
        if await layout.has_blob(descriptor.digest):
            raise Status(ALREADY_EXISTS, f"content {descriptor.digest}: already exists")
        answer = WriteResponse()

        async def pieces() -> AsyncIterator[bytes]:
            nonlocal answer
            at = 0
            request: WriteRequest | None = first
            async for request in _after(first, call):
                if request.data:
                    if request.offset != at:
                        raise Status(INVALID_ARGUMENT, f"write at {request.offset}, where {at} was next")
                    yield bytes(request.data)
                    at += len(request.data)
                answer = WriteResponse(request.action, at, first.total, descriptor.digest)
                if request.action == COMMIT:
                    return
                await call.reply(answer)
            raise Status(INVALID_ARGUMENT, f"content {descriptor.digest} was not committed")

        await layout.put_blob(descriptor, lambda: verified(descriptor, pieces()))
        await call.reply(answer)


async def _after(first: WriteRequest, call: Call) -> AsyncIterator[WriteRequest]:
    yield first
    async for request in call.requests(WriteRequest):
        yield request


def _digest(text: str) -> Digest:
    if not digests.is_digest(text):
        raise Status(INVALID_ARGUMENT, f"invalid digest {text[:100]!r}")
    return Digest(text)


def name(layout: Layout, descriptor: Descriptor, tags: list[str]) -> None:
    """Let ``tags`` mean a manifest that has been written to a layout. :raises SeacanError: it has not."""

    async def put() -> None:
        content, _ = await layout.manifest(descriptor.digest)
        for tag in tags:
            await layout.put_manifest(tag, descriptor.media_type, content)
        await layout.finish()

    asyncio.run(put())


def split(reference: str) -> tuple[str, str]:
    """``FOLDER[:TAG][@DIGEST]`` as a folder and what is meant in it: a digest, or a tag (``latest``)."""
    place, at, digest = reference.rpartition("@")
    if not at or not digests.is_digest(digest):
        place, digest = reference, ""
    folder, colon, tag = place.rpartition(":")
    if not colon or "/" in tag:
        folder, tag = place, ""
    return folder, digest or tag or "latest"
