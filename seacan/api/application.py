"""Puts the resource modules together: version negotiation, dockerd's headers, errors as JSON."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import logging
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from aiohttp import hdrs, web
from aiohttp.web_urldispatcher import AbstractResource, AbstractRoute, UrlDispatcher, UrlMappingMatchInfo

from seacan.api.hijack import Connection, Hijacked
from seacan.api.http import CANCELLABLE, VERSION_KEY, RequestHandler, json_response
from seacan.engine.version import API_VERSION, MIN_API_VERSION, SERVER_VERSION, dotted
from seacan.errors import InvalidParameter, NotFound, NotModified, SeacanError

if TYPE_CHECKING:
    from yarl import URL

    from seacan.engine.engine import Engine

log = logging.getLogger(__name__)

RESOURCES = (
    "system",
    "containers",
    "execs",
    "archive",
    "filesystem",
    "images",
    "volumes",
    "networks",
    "swarm",
    "plugins",
)
"""The modules of this package that have ``routes(engine)``."""
BUILDER_PATHS = ("/build", "/session", "/grpc")
"""What :mod:`seacan.api.build` answers. It is loaded with the first of these requests: it is large, and the daemon is
to answer soon after its start."""


_HEADERS = {
    "Api-Version": dotted(API_VERSION),
    "Docker-Experimental": "false",
    "Ostype": "linux",
    "Server": f"Docker/{SERVER_VERSION} (linux)",
}


class VersionedPaths(AbstractResource):
    """Matches every path, with or without the ``/v1.xx`` prefix, against routes that are written without it."""

    def __init__(
        self, routes: Sequence[web.RouteDef], builder: Callable[[], Awaitable[Sequence[web.RouteDef]]]
    ) -> None:
        super().__init__(name="docker")
        self._paths = UrlDispatcher()
        self._paths.add_routes(routes)
        self._builder: Callable[[], Awaitable[Sequence[web.RouteDef]]] | None = builder
        self._loading = asyncio.Lock()

    @property
    def canonical(self) -> str:
        return "/"

    async def resolve(self, request: web.Request) -> tuple[UrlMappingMatchInfo | None, set[str]]:
        version: tuple[int, ...] = API_VERSION
        path = request.rel_url.raw_path
        if path.startswith("/v") and path[2:3].isdigit():
            prefix, slash, _ = path[1:].partition("/")
            parts = prefix[1:].split(".")
            if slash and all(part.isdecimal() for part in parts):
                version = tuple(int(part) for part in parts)
                request[VERSION_KEY] = version
                stripped = path[len(prefix) + 1 :]
                request = request.clone(rel_url=request.rel_url.with_path(stripped, encoded=True, keep_query=True))
        request[VERSION_KEY] = version
        if self._builder is not None and request.rel_url.raw_path.startswith(BUILDER_PATHS):
            await self._load_builder()
        match = await self._paths.resolve(request)
        if match.http_exception is not None:
            return None, set()
        return match, set()

    async def _load_builder(self) -> None:
        async with self._loading:
            if self._builder is not None:
                self._paths.add_routes(await self._builder())
                self._builder = None

    def add_prefix(self, prefix: str) -> None:
        raise NotImplementedError

    def get_info(self) -> Any:
        return {}

    def raw_match(self, path: str) -> bool:
        return False

    def url_for(self, **parts: str) -> URL:
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self._paths.routes())

    def __iter__(self) -> Iterator[AbstractRoute]:
        return iter(self._paths.routes())


def application(engine: Engine) -> web.Application:
    """The API of ``engine`` as an aiohttp application."""
    app = web.Application(middlewares=[_docker], client_max_size=64 << 20)
    routes: list[web.RouteDef] = []
    for name in RESOURCES:
        if importlib.util.find_spec(f"seacan.api.{name}") is None:
            continue
        module = importlib.import_module(f"seacan.api.{name}")
        routes += module.routes(engine)

    async def builder() -> Sequence[web.RouteDef]:
        await engine.prepare_builds()
        module = await asyncio.to_thread(importlib.import_module, "seacan.api.build")
        found: Sequence[web.RouteDef] = module.routes(engine)
        return found

    app.router.register_resource(VersionedPaths(routes, builder))
    app.on_response_prepare.append(_headers)
    return app


class Server:
    """The API on listening sockets."""

    def __init__(self, runner: web.AppRunner, servers: Sequence[asyncio.Server]) -> None:
        self._runner = runner
        self._servers = servers

    async def cleanup(self) -> None:
        """Accept no more connections and end those there are (but those that were handed to a shim)."""
        for server in self._servers:
            server.close()
        await self._runner.cleanup()


async def serve(engine: Engine, listeners: Sequence[tuple[socket.socket, ssl.SSLContext | None]]) -> Server:
    """Answer the API on listening sockets; ``await server.cleanup()`` ends it."""
    runner = web.AppRunner(
        application(engine), access_log=None, handle_signals=False, handler_cancellation=True, shutdown_timeout=1.0
    )
    await runner.setup()
    loop = asyncio.get_running_loop()
    servers = []
    for listener, context in listeners:
        if context is not None:
            from seacan.api import tls

            servers.append(await tls.listen(listener, context, lambda: _connection(runner)))
        elif listener.family == socket.AF_UNIX:
            servers.append(await loop.create_unix_server(lambda: _connection(runner), sock=listener, backlog=1024))
        else:
            servers.append(await loop.create_server(lambda: _connection(runner), sock=listener, backlog=1024))
    return Server(runner, servers)


def _connection(runner: web.AppRunner) -> Connection:
    server = runner.server
    assert server is not None
    return Connection(server())


async def _headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)


@web.middleware
async def _docker(request: web.Request, handler: RequestHandler) -> web.StreamResponse:
    response = await _answer(request, handler)
    if not isinstance(response, Hijacked) and request.transport is not None:
        connection = request.transport.get_protocol()
        if isinstance(connection, Connection):
            connection.release()
    return response


async def _answer(request: web.Request, handler: RequestHandler) -> web.StreamResponse:
    try:
        if request.match_info.http_exception is not None:
            raise NotFound("page not found")
        _check_version(request[VERSION_KEY])
        return await _run(request, handler)
    except NotModified:
        return web.Response(status=304)
    except SeacanError as error:
        return _failure(request, error.message, error.status)
    except web.HTTPException as error:
        return _failure(request, error.reason, error.status)
    except ConnectionResetError:
        raise
    except OSError as error:  # disk full, too many open files: the host's trouble, in its words
        log.exception("%s %s", request.method, request.path)
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return _failure(request, where + (error.strerror or str(error)).lower(), 500)
    except Exception as error:
        log.exception("%s %s", request.method, request.path)
        return _failure(request, f"{type(error).__name__}: {error}", 500)


async def _run(request: web.Request, handler: RequestHandler) -> web.StreamResponse:
    route = request.match_info.handler
    if request.method in (hdrs.METH_GET, hdrs.METH_HEAD) or getattr(route, CANCELLABLE, False):
        return await handler(request)
    # A change goes to its end although the client may have gone: half a start is worse than one nobody waited for.
    return await asyncio.shield(asyncio.ensure_future(handler(request)))


def _check_version(version: tuple[int, ...]) -> None:
    if version < MIN_API_VERSION:
        raise InvalidParameter(
            f"client version {dotted(version)} is too old. Minimum supported API version is "
            f"{dotted(MIN_API_VERSION)}, please upgrade your client to a newer version"
        )
    if version > API_VERSION:
        raise InvalidParameter(
            f"client version {dotted(version)} is too new. Maximum supported API version is {dotted(API_VERSION)}"
        )


def _failure(request: web.Request, message: str, status: int) -> web.Response:
    log.debug("%s %s: %d %s", request.method, request.path, status, message)
    return json_response({"message": message}, status)
