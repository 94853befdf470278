"""Containers: everything under /containers but archive, and POST /commit's neighbour routes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import WSMsgType, web

from seacan.api import hijack
from seacan.api.http import (
    api_version,
    cancellable,
    check_json,
    finished,
    json_response,
    json_stream,
    no_content,
    query_bool,
    query_filters,
    query_int,
    read_json,
)
from seacan.engine import config as docker
from seacan.engine import logs
from seacan.engine.attach import attach
from seacan.engine.config import ContainerCreateRequest, EndpointSettings, HostConfig, NetworkingConfig, UpdateConfig
from seacan.engine.inspection import inspect
from seacan.engine.listing import listing
from seacan.engine.stats import stats
from seacan.engine.streams import Client, detach_keys
from seacan.engine.top import top
from seacan.errors import InvalidParameter, SeacanError
from seacan.network.model import ENDPOINT_SYSCTLS
from seacan.runtime.logs import ReadOptions

if TYPE_CHECKING:
    from seacan.engine.engine import Engine

_encoder = msgspec.json.Encoder()
RAW = "application/vnd.docker.raw-stream"
MULTIPLEXED = "application/vnd.docker.multiplexed-stream"


def routes(engine: Engine) -> list[web.RouteDef]:
    async def list_(request: web.Request) -> web.StreamResponse:
        limit = query_int(request, "limit")
        containers = await listing(
            engine,
            all=query_bool(request, "all"),
            limit=limit,
            size=query_bool(request, "size"),
            filters=query_filters(request),
        )
        if api_version(request) < (1, 46):
            for container in containers:
                container["HostConfig"].pop("Annotations", None)
        return json_response(containers)

    async def create(request: web.Request) -> web.StreamResponse:
        check_json(request)
        body = await request.read()
        if body.strip() == b"null":
            raise InvalidParameter("config cannot be empty in order to create a container")
        asked = docker.decode(body, ContainerCreateRequest)
        if not body.strip().removeprefix(b"{").removesuffix(b"}").strip():
            raise InvalidParameter("config cannot be empty in order to create a container")
        config, host_config = asked.config(), asked.host_config or HostConfig()
        networking = asked.networking_config or NetworkingConfig()
        warnings = _for_old_clients(api_version(request), config, host_config, networking)
        created = await engine.containers.create(
            config,
            host_config,
            networking,
            name=request.query.get("name", ""),
            platform=request.query.get("platform", ""),
            read_only_trees=api_version(request) >= (1, 44),
        )
        return json_response({"Id": created.id, "Warnings": [*created.warnings, *warnings]}, 201)

    async def inspect_(request: web.Request) -> web.StreamResponse:
        container = engine.containers.get(_name(request))
        return json_response(await inspect(engine, container, size=query_bool(request, "size")))

    async def start(request: web.Request) -> web.StreamResponse:
        length = request.content_length
        if (length is not None and length > 7) or (length is None and request.can_read_body):
            raise InvalidParameter(
                "starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24"
            )
        if request.query.get("checkpoint"):
            raise InvalidParameter("checkpoint is only supported in experimental mode")
        await engine.lifecycle.start(_name(request))
        return no_content()

    async def stop(request: web.Request) -> web.StreamResponse:
        name = _name(request)
        try:
            await engine.lifecycle.stop(name, patience=_timeout(request), signal=_signal(request))
        except InvalidParameter as error:
            raise InvalidParameter(f"cannot stop container: {name}: {error}") from error
        return no_content()

    async def restart(request: web.Request) -> web.StreamResponse:
        await engine.lifecycle.restart(_name(request), patience=_timeout(request), signal=_signal(request))
        return no_content()

    async def kill(request: web.Request) -> web.StreamResponse:
        name = _name(request)
        try:
            await engine.lifecycle.kill(name, request.query.get("signal", ""))
        except SeacanError as error:
            raise type(error)(f"cannot kill container: {name}: {error}") from error
        return no_content()

    async def pause(request: web.Request) -> web.StreamResponse:
        await engine.lifecycle.pause(_name(request))
        return no_content()

    async def unpause(request: web.Request) -> web.StreamResponse:
        await engine.lifecycle.unpause(_name(request))
        return no_content()

    async def rename(request: web.Request) -> web.StreamResponse:
        await engine.containers.rename(_name(request), request.query.get("name", ""))
        return no_content()

    async def update(request: web.Request) -> web.StreamResponse:
        wanted = await read_json(request, UpdateConfig)
        if api_version(request) < (1, 40):
            wanted.pids_limit = None
        warnings = await engine.containers.update(_name(request), wanted)
        return json_response({"Warnings": warnings or None})

    async def resize(request: web.Request) -> web.StreamResponse:
        await engine.lifecycle.resize(_name(request), *size(request))
        return web.Response()

    async def delete(request: web.Request) -> web.StreamResponse:
        await engine.containers.remove(
            _name(request),
            force=query_bool(request, "force"),
            volumes=query_bool(request, "v"),
            link=query_bool(request, "link"),
        )
        return no_content()

    async def prune(request: web.Request) -> web.StreamResponse:
        removed, freed = await engine.containers.prune(query_filters(request))
        return json_response({"ContainersDeleted": removed or None, "SpaceReclaimed": freed})

    @cancellable
    async def wait(request: web.Request) -> web.StreamResponse:
        version = api_version(request)
        condition = request.query.get("condition", "") if version >= (1, 30) else ""
        registered = asyncio.Event()
        waiting = asyncio.ensure_future(engine.lifecycle.wait(_name(request), condition, ready=registered))
        try:
            ready = asyncio.ensure_future(registered.wait())
            await asyncio.wait({waiting, ready}, return_when=asyncio.FIRST_COMPLETED)
            ready.cancel()
            if waiting.done():
                waiting.result()
            response = web.StreamResponse(headers={"Content-Type": "application/json"})
            if version >= (1, 30):
                # The client starts the container only when it knows that the wait is registered.
                response.enable_chunked_encoding()
                await response.prepare(request)
                await response.write(b"")
            status = await waiting
        finally:
            waiting.cancel()
        answer: dict[str, Any] = {"StatusCode": status.code}
        if status.error:
            answer["Error"] = {"Message": status.error}
        if not response.prepared:
            return json_response(answer)
        await response.write_eof(_encoder.encode(answer) + b"\n")
        return response

    async def processes(request: web.Request) -> web.StreamResponse:
        return json_response(await top(engine, _name(request), request.query.get("ps_args", "")))

    async def statistics(request: web.Request) -> web.StreamResponse:
        streaming = query_bool(request, "stream", True)
        samples = stats(engine, _name(request), stream=streaming, one_shot=query_bool(request, "one-shot"))
        first = await anext(samples)  # before the status line goes out: it may be an error
        if not streaming:
            await samples.aclose()
            return json_response(first)
        async with json_stream(request) as stream:
            await stream.write(first)
            async for sample in samples:
                await stream.write(sample)
        return finished(request)

    async def container_logs(request: web.Request) -> web.StreamResponse:
        stdout, stderr = query_bool(request, "stdout"), query_bool(request, "stderr")
        if not stdout and not stderr:
            raise InvalidParameter("Bad parameters: you must choose at least one stream")
        container = engine.containers.get(_name(request))
        tty = container.config.tty
        options = ReadOptions(
            stdout=stdout,
            stderr=stderr,
            follow=query_bool(request, "follow"),
            timestamps=query_bool(request, "timestamps"),
            details=query_bool(request, "details"),
            since=logs.moment("since", request.query.get("since", "")),
            until=logs.moment("until", request.query.get("until", "")),
            tail=logs.tail(request.query.get("tail", "")),
            multiplexed=not tty,
        )
        source = logs.read(engine, container, options)
        await anext(source)  # a client that has our headers may remove the container
        kind = MULTIPLEXED if not tty and api_version(request) >= (1, 42) else RAW
        response = web.StreamResponse(headers={"Content-Type": kind})
        response.enable_chunked_encoding()
        await response.prepare(request)
        # The client is to know at once that it will be answered, however long the first line takes.
        await response.write(b"")
        async for chunk in source:
            await response.write(chunk)
        await response.write_eof()
        return response

    async def attach_(request: web.Request) -> web.StreamResponse:
        keys = detach_keys(request.query.get("detachKeys", ""))
        connection = hijack.connection_of(request)
        stream, stdin = query_bool(request, "stream"), query_bool(request, "stdin")
        connect = hijack.connect(
            request,
            stdin=stdin and stream,
            stdout=query_bool(request, "stdout"),
            stderr=query_bool(request, "stderr"),
            detach_keys=keys,
        )
        await attach(engine, _name(request), connect, replay=query_bool(request, "logs"), stream=stream)
        return hijack.Hijacked(connection)

    async def attach_websocket(request: web.Request) -> web.StreamResponse:
        keys = detach_keys(request.query.get("detachKeys", ""))
        engine.containers.get(_name(request))
        text = api_version(request) < (1, 28)
        socket_ = web.WebSocketResponse(max_msg_size=0)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)

        async def connect(_: bool) -> Client:
            await socket_.prepare(request)
            # Without a choice of streams a WebSocket gets all of them, as from dockerd before 1.42 and since.
            stdin, stdout, stderr = (query_bool(request, n, default=True) for n in ("stdin", "stdout", "stderr"))
            return Client(fd=theirs.detach(), stdin=stdin, stdout=stdout, stderr=stderr, detach_keys=keys)

        try:
            stream = query_bool(request, "stream", True)
            await attach(engine, _name(request), connect, replay=query_bool(request, "logs"), stream=stream)
            await _carry(socket_, ours, text=text)
        finally:
            ours.close()
            theirs.close()
        return socket_

    return [
        web.get("/containers/json", list_),
        web.post("/containers/create", create),
        web.post("/containers/prune", prune),
        web.get("/containers/{name}/json", inspect_),
        # A link names a container by two parts: parent/alias.
        web.get("/containers/{name:[^/]+/[^/]+}/json", inspect_),
        web.get("/containers/{name}/top", processes),
        web.get("/containers/{name}/stats", statistics),
        web.get("/containers/{name}/logs", container_logs),
        web.get("/containers/{name}/attach/ws", attach_websocket),
        web.post("/containers/{name}/start", start),
        web.post("/containers/{name}/stop", stop),
        web.post("/containers/{name}/restart", restart),
        web.post("/containers/{name}/kill", kill),
        web.post("/containers/{name}/pause", pause),
        web.post("/containers/{name}/unpause", unpause),
        web.post("/containers/{name}/wait", wait),
        web.post("/containers/{name}/resize", resize),
        web.post("/containers/{name}/attach", attach_),
        web.post("/containers/{name}/rename", rename),
        web.post("/containers/{name}/update", update),
        web.delete("/containers/{name}", delete),
        # … and is removed so: ?link=1
        web.delete("/containers/{name:[^/]+/[^/]+}", delete),
    ]


def _name(request: web.Request) -> str:
    return request.match_info["name"]


def _timeout(request: web.Request) -> int | None:
    return query_int(request, "t") if request.query.get("t") else None


def _signal(request: web.Request) -> str:
    return request.query.get("signal", "") if api_version(request) >= (1, 42) else ""


def size(request: web.Request) -> tuple[int, int]:
    """The height and width of a resize."""
    values = []
    for name, word in (("h", "height"), ("w", "width")):
        text = request.query.get(name, "")
        if not text.removeprefix("-").isdecimal():
            raise InvalidParameter(f'invalid resize {word} "{text}": invalid syntax')
        if not 0 <= int(text) < 1 << 32:
            raise InvalidParameter(f'invalid resize {word} "{text}": value out of range')
        values.append(int(text))
    return values[0], values[1]


async def _carry(websocket: web.WebSocketResponse, ours: socket.socket, *, text: bool) -> None:
    """Carry bytes between a WebSocket and a socket, until either ends."""
    loop = asyncio.get_running_loop()

    async def outward() -> None:
        while data := await loop.sock_recv(ours, 32 << 10):
            if text:
                await websocket.send_str(data.decode(errors="replace"))
            else:
                await websocket.send_bytes(data)
        await websocket.close()

    sending = asyncio.ensure_future(outward())
    try:
        async for message in websocket:
            if message.type in (WSMsgType.BINARY, WSMsgType.TEXT):
                data = message.data.encode() if isinstance(message.data, str) else message.data
                with contextlib.suppress(OSError):
                    await loop.sock_sendall(ours, data)
    finally:
        sending.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError, ConnectionError):
            await sending


def _for_old_clients(
    version: tuple[int, int],
    config: docker.ContainerConfig,
    host_config: HostConfig,
    networking: NetworkingConfig,
) -> list[str]:
    """Do with a create request what dockerd does by the version its client speaks. Returns warnings."""
    specs = host_config.mounts or []
    if version < (1, 40):
        for spec in specs:
            if spec.bind_options:
                spec.bind_options.non_recursive = False
        host_config.ipc_mode = host_config.ipc_mode or "shareable"
    if version < (1, 41) and not host_config.cgroupns_mode and not os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        host_config.cgroupns_mode = "host"
    if version < (1, 42):
        for spec in specs:
            if spec.bind_options:
                spec.bind_options.create_mountpoint = False
            if spec.type != "volume":
                spec.volume_options = None
            if spec.type != "tmpfs":
                spec.tmpfs_options = None
        host_config.console_size = [0, 0]
    if version < (1, 43):
        host_config.annotations = None
    endpoints = networking.endpoints_config or {}
    if version < (1, 44):
        if config.healthcheck is not None:
            config.healthcheck.start_interval = 0
        for spec in specs:
            if spec.type == "bind":
                spec.bind_options = spec.bind_options or docker.BindOptions()
                if spec.bind_options.read_only_force_recursive:
                    raise InvalidParameter("BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer")
                spec.bind_options.read_only_non_recursive = True
        if len(endpoints) > 1:
            raise InvalidParameter(
                f"Container cannot be created with multiple network endpoints: {', '.join(endpoints)}"
            )
    if version < (1, 45) and any(s.volume_options and s.volume_options.subpath for s in specs):
        raise InvalidParameter("VolumeOptions.Subpath needs API v1.45 or newer")
    if version < (1, 48):
        if any(spec.type == "image" for spec in specs):
            raise InvalidParameter('Mount type "Image" needs API v1.48 or newer')
        for endpoint in endpoints.values():
            if endpoint is not None:
                endpoint.gw_priority = 0
    warnings = _mac_address(version, config, host_config, networking)
    warnings += _interface_sysctls(version, host_config, networking)
    for port, bindings in (host_config.port_bindings or {}).items():
        if not bindings and host_config.port_bindings is not None:
            host_config.port_bindings[port] = [docker.PortBinding()]
    return warnings


def _mac_address(
    version: tuple[int, int],
    config: docker.ContainerConfig,
    host_config: HostConfig,
    networking: NetworkingConfig,
) -> list[str]:
    """Move the container-wide MAC address of old clients to the endpoint of the main network."""
    endpoints = networking.endpoints_config or {}
    mode = host_config.network_mode or "default"
    private = mode not in ("host", "none") and not mode.startswith("container:")
    if not config.mac_address:
        if version < (1, 44):
            for settings in endpoints.values():
                if settings is not None:
                    settings.mac_address = ""
        return []
    if version < (1, 44) and not private:
        raise InvalidParameter("conflicting options: mac-address and the network mode")
    if private:
        what = "unable to migrate container-wide MAC address to a specific network"
        key = _main_network(version, host_config, endpoints, what)
        settings = endpoints.get(key) or EndpointSettings()
        if settings.mac_address and settings.mac_address != config.mac_address and version >= (1, 44):
            raise InvalidParameter(
                "the container-wide MAC address must match the endpoint-specific MAC address for the main network, or "
                "be left empty"
            )
        settings.mac_address = config.mac_address
        networking.endpoints_config = {**endpoints, key: settings}
    if version < (1, 44):
        return []
    return ["The container-wide MacAddress field is now deprecated. It should be specified in EndpointsConfig instead."]


def _main_network(
    version: tuple[int, int], host_config: HostConfig, endpoints: Mapping[str, EndpointSettings | None], what: str
) -> str:
    """The key in ``endpoints`` of the network that NetworkMode names; it may have to be made.

    Raises:
        InvalidParameter: there are only others; the message begins with ``what``.
    """
    mode = host_config.network_mode or "default"
    if not endpoints:
        return mode
    if version < (1, 44):  # there is but one
        return next(iter(endpoints))
    names = ("default", "bridge") if mode in ("default", "bridge") else (mode,)
    found = next((name for name in names if name in endpoints), None)
    if found is None:
        raise InvalidParameter(
            f"{what}: HostConfig.NetworkMode must match the identity of a network in NetworkSettings.Networks"
        )
    return found


def _interface_sysctls(version: tuple[int, int], host_config: HostConfig, networking: NetworkingConfig) -> list[str]:
    """Move the sysctls of eth0, which is not there yet when the container's are set, to the main network's endpoint;
    clients since API 1.48 have to say it so themselves."""
    mode = host_config.network_mode or "default"
    if mode == "host" or mode.startswith("container:"):
        return []
    moved = {}
    for name, value in (host_config.sysctls or {}).items():
        parts = name.split(".", 4)
        if len(parts) < 5 or parts[0] != "net" or not parts[3].startswith("eth"):
            continue
        if version > (1, 47):
            raise InvalidParameter(
                f'interface specific sysctl setting "{name}" must be supplied using driver option '
                f"'{ENDPOINT_SYSCTLS}'"
            )
        if parts[3] != "eth0":
            raise InvalidParameter(
                f"unable to determine network endpoint for sysctl {name}, use driver option '{ENDPOINT_SYSCTLS}' "
                "to set per-interface sysctls"
            )
        moved[name] = f"net.{parts[1]}.{parts[2]}.IFNAME.{parts[4]}={value}"
    if not moved:
        return []
    endpoints = networking.endpoints_config or {}
    key = _main_network(version, host_config, endpoints, f"unable to find a network for sysctl {next(iter(moved))}")
    settings = endpoints.get(key) or EndpointSettings()
    option = ",".join(moved.values())
    given = (settings.driver_opts or {}).get(ENDPOINT_SYSCTLS)
    settings.driver_opts = {
        **(settings.driver_opts or {}), ENDPOINT_SYSCTLS: f"{option},{given}" if given is not None else option,
    }  # fmt: skip
    networking.endpoints_config = {**endpoints, key: settings}
    host_config.sysctls = {name: value for name, value in (host_config.sysctls or {}).items() if name not in moved}
    return [f'Migrated sysctl "{",".join(moved)}" to DriverOpts{{"{ENDPOINT_SYSCTLS}":"{option}"}}.']
