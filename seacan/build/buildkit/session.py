"""A build client's session: what the client offers to its build over the connection it has opened for it.

The client has the server's role here: folders, secrets, SSH agents and places for output are called by us.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from urllib.parse import quote_plus

from seacan.build.buildkit import sync
from seacan.build.buildkit.content import ClientContent
from seacan.build.buildkit.messages import (
    BytesMessage,
    CheckAgentRequest,
    CredentialsRequest,
    CredentialsResponse,
    Empty,
    GetSecretRequest,
    GetSecretResponse,
)
from seacan.build.buildkit.rpc import NOT_FOUND, UNIMPLEMENTED, Channel, Conversation, Status
from seacan.build.cache import BuildCache
from seacan.build.graph import LocalSource
from seacan.build.solver import SourceFolder
from seacan.errors import InvalidParameter, SeacanError, Unsupported
from seacan.registry.credentials import NONE, Credentials
from seacan.storage.worker import Launcher

_FILE_SYNC = "/moby.filesync.v1.FileSync/DiffCopy"
_FILE_SEND = "/moby.filesync.v1.FileSend/DiffCopy"
_SECRETS = "/moby.buildkit.secrets.v1.Secrets/GetSecret"
_SSH_CHECK = "/moby.sshforward.v1.SSH/CheckAgent"
_SSH_FORWARD = "/moby.sshforward.v1.SSH/ForwardAgent"
_CREDENTIALS = "/moby.filesync.v1.Auth/Credentials"
_UPLOAD = "/moby.upload.v1.Upload/Pull"
_CHUNK = 1 << 17


class ContextFolders:
    """The folders in which contexts of clients are kept up to date; one build at a time works with each."""

    def __init__(self, cache: BuildCache, launcher: Launcher) -> None:
        self.cache = cache
        self.launcher = launcher
        self.busy: set[str] = set()


class ClientSession:
    """One client. ``shared_key`` is the same for builds of the same folder, so that little need be sent again."""

    def __init__(
        self, id: str, shared_key: str, methods: Sequence[str], channel: Channel, folders: ContextFolders
    ) -> None:
        self.id = id
        self.channel = channel
        self._shared_key = shared_key
        self._methods = {method.lower() for method in methods}
        self._folders = folders
        self._mine: list[str] = []
        self._temporary: list[str] = []

    def supports(self, method: str) -> bool:
        return not self._methods or method.lower() in self._methods

    def release(self) -> None:
        """The build is over: its folders may be changed again."""
        self._folders.busy.difference_update(self._mine)
        self._folders.cache.release(self._mine)
        for id in self._temporary:
            self._folders.cache.remove([id])
        self._mine.clear()
        self._temporary.clear()

    def _index(self, id: str) -> str:
        return self._folders.cache.index(id)

    # --- folders ------------------------------------------------------------------------------------------------

    async def local(self, source: LocalSource, report: Callable[[int, bool], None]) -> SourceFolder:
        if not self.supports(_FILE_SYNC):
            raise InvalidParameter("no local sources enabled")
        cache = self._folders.cache
        paths = () if "/" in source.paths else source.paths
        identity = f"{self._shared_key}\0{source.name}\0{source.exclude}\0{paths}"
        key = f"context:{hashlib.sha256(identity.encode('utf-8', 'replace')).hexdigest()}"
        layer = cache.find(key) if self._shared_key else None
        if layer is not None and layer.id in self._folders.busy:
            layer = None
            key = ""
        if layer is None:
            id, path, _ = cache.new_folder(None)
            if not self._shared_key or not key:
                self._temporary.append(id)
                key = f"context:{id}"
            cache.settle(id)
            cache.put(key, id, kind="source.local", description=f"local source for {source.name}")
        else:
            id, path = layer.id, layer.path
        self._folders.busy.add(id)
        self._mine.append(id)
        cache.hold([id])
        metadata = _metadata(
            {
                "dir-name": [source.name],
                "exclude-patterns": list(source.exclude),
                "followpaths": [each.lstrip("/") for each in paths],
            }
        )
        talk = await self.channel.open(_FILE_SYNC, metadata)
        async with talk:
            done = await sync.receive(self._folders.launcher, talk, path, self._index(id), report)
        cache.set_size(id, max(done.received, 1))
        return SourceFolder(path, "", self._index(id))

    async def read_files(
        self, name: str, paths: Sequence[str], report: Callable[[int, bool], None]
    ) -> dict[str, bytes]:
        """Small files of a client's folder, in memory; those that are not there are left out."""
        if not self.supports(_FILE_SYNC):
            raise InvalidParameter("no local sources enabled")
        metadata = _metadata({"dir-name": [name], "followpaths": list(dict.fromkeys(paths))})
        talk = await self.channel.open(_FILE_SYNC, metadata)
        async with talk:
            return await sync.read(talk, paths, report)

    # --- secrets and agents -------------------------------------------------------------------------------------

    async def secret(self, id: str) -> bytes | None:
        try:
            answer = await self.channel.call(_SECRETS, GetSecretRequest(id), GetSecretResponse)
        except Status as error:
            if error.code in (NOT_FOUND, UNIMPLEMENTED) or "not found" in str(error):
                return None
            raise
        return answer.data

    async def credentials(self, host: str) -> Credentials:
        """What the client would tell the registry ``host``; none if it has nothing to say."""
        asked = "https://index.docker.io/v1/" if host == "docker.io" else host
        try:
            answer = await self.channel.call(_CREDENTIALS, CredentialsRequest(asked), CredentialsResponse)
        except Status:
            return NONE
        if not answer.username:
            return Credentials(identity_token=answer.secret) if answer.secret else NONE
        return Credentials(username=answer.username, password=answer.secret, server_address=asked)

    async def ssh(self, id: str, path: str) -> AbstractAsyncContextManager[None] | None:
        if not self.supports(_SSH_FORWARD):
            return None
        try:
            await self.channel.call(_SSH_CHECK, CheckAgentRequest(id), Empty)
        except Status:
            return None
        return self._agent(id, path)

    @asynccontextmanager
    async def _agent(self, id: str, path: str) -> AsyncIterator[None]:
        tasks: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            if task is not None:
                tasks.add(task)
            try:
                talk = await self.channel.open(_SSH_FORWARD, {"buildkit.ssh.id": [id]})
                async with talk:
                    await _forward(talk, reader, writer)
            except (SeacanError, OSError):
                pass
            finally:
                writer.close()
                if task is not None:
                    tasks.discard(task)

        server = await asyncio.start_unix_server(connected, path)
        try:
            yield
        finally:
            server.close()
            for task in list(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def content(self, id: str) -> ClientContent:
        """A content store that the client has: of a cache of ``type=local``, or of an OCI layout.

        :raises Unsupported: it offers none.
        """
        if not self.supports("/containerd.services.content.v1.Content/Info"):
            raise Unsupported("the client offers no content store")
        return ClientContent(self.channel, id)

    # --- what the client uploads and takes ----------------------------------------------------------------------

    async def upload(self, id: str) -> AsyncIterator[bytes]:
        """A context that the client reads from its standard input."""
        talk = await self.channel.open(_UPLOAD, {"urlpath": [f"/{id}"]})
        async with talk:
            await talk.end()
            while (data := await talk.next()) is not None:
                yield BytesMessage.decode(data).data

    async def send_file(self, pieces: AsyncIterator[bytes], *, exporter: int = 0, **about: str) -> None:
        """Give the client a file that it has asked for as output."""
        if not self.supports(_FILE_SEND):
            raise Unsupported("the client does not take output")
        metadata = {"buildkit-attachable-exporter-id": [str(exporter)]}
        metadata.update({f"exporter-md-{key.replace('_', '.')}": [value] for key, value in about.items()})
        talk = await self.channel.open(_FILE_SEND, metadata)
        async with talk:
            async for piece in pieces:
                for at in range(0, len(piece), _CHUNK):
                    await talk.send(BytesMessage(piece[at : at + _CHUNK]))
            await talk.end()
            while await talk.next() is not None:
                pass

    async def send_folder(self) -> Conversation:
        """A conversation in which the client receives a folder by fsutil's protocol."""
        return await self.channel.open(_FILE_SEND, {"buildkit-attachable-exporter-id": ["0"]})


async def _forward(talk: Conversation, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    async def outward() -> None:
        while data := await reader.read(1 << 15):
            await talk.send(BytesMessage(data))
        await talk.end()

    sending = asyncio.create_task(outward())
    try:
        while (data := await talk.next()) is not None:
            writer.write(BytesMessage.decode(data).data)
            await writer.drain()
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


def _metadata(values: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Headers of a call: values that are not ASCII are quoted, and said to be."""
    result: dict[str, list[str]] = {}
    for key, each in values.items():
        if not each:
            continue
        if all(value.isascii() for value in each):
            result[key] = each
        else:
            result[key] = [quote_plus(value) for value in each]
            result[f"{key}-encoded"] = ["1"]
    return result
