"""What ``seacan build`` serves to the daemon while it builds: its folders, secrets, agents and credentials, and a
place for the output.

The daemon is the caller here (see :mod:`seacan.build.buildkit.session`, its end of the same conversation).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO

from seacan.build.buildkit.messages import (
    BytesMessage,
    CheckAgentRequest,
    CredentialsRequest,
    CredentialsResponse,
    Empty,
    GetSecretRequest,
    GetSecretResponse,
    Position,
)
from seacan.build.buildkit.rpc import NOT_FOUND, Call, Method, Status
from seacan.build.buildkit.sync import Sender
from seacan.cli import context
from seacan.cli.buildcontent import Stores
from seacan.cli.client import Client
from seacan.errors import InvalidParameter
from seacan.registry.credentials import Credentials

_CHUNK = 1 << 17
_SECRET_LIMIT = 500 << 10


@dataclass
class Offer:
    """What the daemon may have. ``agents`` are sockets of SSH agents; ``output`` takes what is exported as a file."""

    folders: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, bytes] = field(default_factory=dict)
    agents: dict[str, str] = field(default_factory=dict)
    uploads: dict[str, IO[bytes]] = field(default_factory=dict)
    outputs: dict[str, IO[bytes]] = field(default_factory=dict)
    """By the number of the exporter."""
    stores: Stores = field(default_factory=Stores)
    """Folders that are read and written as content stores."""
    credentials: Callable[[str], Credentials] = lambda _domain: Credentials()

    def methods(self) -> Mapping[str, Method]:
        """The services, by the paths of their methods."""
        found: dict[str, Method] = {
            "/grpc.health.v1.Health/Check": self._health,
            "/moby.filesync.v1.FileSync/DiffCopy": self._files,
            "/moby.filesync.v1.Auth/Credentials": self._credentials,
            "/moby.buildkit.secrets.v1.Secrets/GetSecret": self._secret,
        }
        if self.agents:
            found["/moby.sshforward.v1.SSH/CheckAgent"] = self._check_agent
            found["/moby.sshforward.v1.SSH/ForwardAgent"] = self._forward_agent
        if self.uploads:
            found["/moby.upload.v1.Upload/Pull"] = self._upload
        if self.outputs:
            found["/moby.filesync.v1.FileSend/DiffCopy"] = self._output
        if self.stores:
            found |= self.stores.methods()
        return found

    async def _health(self, call: Call) -> None:
        await call.request(Empty)
        await call.reply(Position(line=1))  # HealthCheckResponse{status: SERVING}

    # --- folders ------------------------------------------------------------------------------------------------

    async def _files(self, call: Call) -> None:
        name = _one(call, "dir-name")
        folder = self.folders.get(name)
        if folder is None:
            raise Status(NOT_FOUND, f"no access allowed to dir {name!r}")
        exclude, follow = _all(call, "exclude-patterns"), _all(call, "followpaths")
        ours, theirs = socket.socketpair()
        failure: list[BaseException] = []

        def send() -> None:
            try:
                with theirs:
                    Sender(theirs, folder, anonymous=True).run(context.walk(folder, exclude, follow))
            except (BrokenPipeError, ConnectionError):
                return
            except Exception as error:
                failure.append(error)

        reader, writer = await asyncio.open_connection(sock=ours, limit=1 << 20)
        thread = threading.Thread(target=send, daemon=True)
        thread.start()

        async def inward() -> None:
            while data := await call.receive_framed():
                writer.write(data)
                await writer.drain()

        taking = asyncio.create_task(inward())
        try:
            while data := await reader.read(_CHUNK):
                await call.send_framed(data)
        finally:
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)
            writer.close()
        if failure:
            raise InvalidParameter(f"{folder}: {failure[0]}") from failure[0]

    async def _upload(self, call: Call) -> None:
        file = self.uploads.get(_one(call, "urlpath").lstrip("/"))
        if file is None:
            raise Status(NOT_FOUND, "no such upload")
        while piece := await asyncio.to_thread(file.read, _CHUNK):
            await call.reply(BytesMessage(piece))

    async def _output(self, call: Call) -> None:
        file = self.outputs.get(_one(call, "buildkit-attachable-exporter-id") or "0")
        if file is None:
            raise Status(NOT_FOUND, "no such output")
        async for message in call.requests(BytesMessage):
            await asyncio.to_thread(file.write, message.data)
        await asyncio.to_thread(file.flush)

    # --- secrets and agents -------------------------------------------------------------------------------------

    async def _secret(self, call: Call) -> None:
        request = await call.request(GetSecretRequest)
        if request.id not in self.secrets:
            raise Status(NOT_FOUND, f"secret {request.id} not found")
        await call.reply(GetSecretResponse(self.secrets[request.id]))

    async def _credentials(self, call: Call) -> None:
        request = await call.request(CredentialsRequest)
        domain = "docker.io" if request.host == "https://index.docker.io/v1/" else request.host
        known = await asyncio.to_thread(self.credentials, domain)
        if known.identity_token:
            await call.reply(CredentialsResponse("", known.identity_token))
        else:
            await call.reply(CredentialsResponse(known.username, known.password))

    async def _check_agent(self, call: Call) -> None:
        request = await call.request(CheckAgentRequest)
        if (request.id or "default") not in self.agents:
            raise Status(NOT_FOUND, f"unset ssh forward key {request.id or 'default'}")
        await call.reply(Empty())

    async def _forward_agent(self, call: Call) -> None:
        id = _one(call, "buildkit.ssh.id") or "default"
        if id not in self.agents:
            raise Status(NOT_FOUND, f"unset ssh forward key {id}")
        reader, writer = await asyncio.open_unix_connection(self.agents[id])

        async def inward() -> None:
            async for message in call.requests(BytesMessage):
                writer.write(message.data)
                await writer.drain()
            writer.write_eof()

        taking = asyncio.create_task(inward())
        try:
            while data := await reader.read(1 << 15):
                await call.reply(BytesMessage(data))
        finally:
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)
            writer.close()


def secret(text: str, environment: Mapping[str, str] = os.environ) -> tuple[str, bytes]:
    """``id=ID[,src=FILE|,env=NAME][,type=…]`` as its ID and its value. :raises InvalidParameter:"""
    from seacan.build.dockerfile.instructions import csv_fields

    given = {key.lower(): value for key, _, value in (each.partition("=") for each in csv_fields(text))}
    unknown = set(given) - {"id", "src", "source", "env", "type"}
    if unknown:
        raise InvalidParameter(f"unexpected key '{min(unknown)}' in '{text}'")
    id = given.get("id", "")
    if not id:
        raise InvalidParameter(f"secret without id: {text}")
    source, variable = given.get("src") or given.get("source", ""), given.get("env", "")
    if given.get("type") == "env" and not variable:
        variable, source = source or id, ""
    if not source and not variable:
        if id in environment:
            variable = id
        else:
            source = id
    if variable:
        if variable not in environment:
            raise InvalidParameter(f"secret {id}: environment variable {variable} is not set")
        return id, environment[variable].encode("utf-8", "surrogateescape")
    try:
        with open(source, "rb") as file:
            value = file.read(_SECRET_LIMIT + 1)
    except OSError as error:
        raise InvalidParameter(f"secret {id}: {source}: {(error.strerror or str(error)).lower()}") from None
    if len(value) > _SECRET_LIMIT:
        raise InvalidParameter(f"secret {id}: {source} is larger than {_SECRET_LIMIT} bytes")
    return id, value


def agent(text: str, environment: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """``default`` or ``ID=SOCKET`` as an ID and the socket of an agent. :raises InvalidParameter:"""
    id, _, path = text.partition("=")
    path = path or environment.get("SSH_AUTH_SOCK", "")
    if not path:
        raise InvalidParameter(f"ssh {id}: there is no agent: SSH_AUTH_SOCK is not set")
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.connect(path)
        return id or "default", path
    raise InvalidParameter(f"ssh {id}: {path} is no socket of an agent (keys in files are not read: use ssh-agent)")


def _one(call: Call, name: str) -> str:
    return (_all(call, name) or [""])[0]


def _all(call: Call, name: str) -> list[str]:
    """The values of a header, unquoted where the daemon says that it quoted them."""
    values = call.metadata.get(name, [])
    if call.metadata.get(f"{name}-encoded"):
        from urllib.parse import unquote_plus

        return [unquote_plus(value) for value in values]
    return values


async def connect(
    client: Client, path: str, headers: Mapping[str, str | list[str]]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection of the daemon's that speaks HTTP/2 from now on."""
    connection, pending = await asyncio.to_thread(
        lambda: client.request("POST", path, headers=headers, upgrade="h2c").hijack()
    )
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 20)
    if pending:
        reader.feed_data(pending)
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.create_connection(lambda: protocol, sock=connection)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)
