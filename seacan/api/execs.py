"""Execs: /containers/{id}/exec and /exec/{id}."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from seacan.api import hijack
from seacan.api.containers import size
from seacan.api.http import api_version, json_response, read_json
from seacan.engine.config import ExecConfig, ExecStartConfig
from seacan.errors import InvalidParameter

if TYPE_CHECKING:
    from seacan.engine.engine import Engine


def routes(engine: Engine) -> list[web.RouteDef]:
    async def create(request: web.Request) -> web.StreamResponse:
        config = await read_json(request, ExecConfig)
        if api_version(request) < (1, 42):
            config.console_size = None
        exec = engine.execs.create(request.match_info["name"], config)
        return json_response({"Id": exec.id}, 201)

    async def start(request: web.Request) -> web.StreamResponse:
        options = await read_json(request, ExecStartConfig)
        exec = engine.execs.get(request.match_info["id"])
        if options.console_size and not options.tty:
            raise InvalidParameter("console size is only supported when TTY is enabled")
        given = options.console_size or exec.config.console_size
        console_size = (given[0], given[1]) if given and len(given) == 2 and any(given) else None
        if options.detach:
            await engine.execs.start(exec.id, console_size=console_size)
            return web.Response()
        connection = hijack.connection_of(request)
        connect = hijack.connect(
            request, stdin=exec.config.attach_stdin, stdout=True, stderr=True, detach_keys=exec.keys
        )
        await engine.execs.start(exec.id, connect, multiplexed=not options.tty, console_size=console_size)
        return hijack.Hijacked(connection)

    async def resize(request: web.Request) -> web.StreamResponse:
        await engine.execs.resize(request.match_info["id"], *size(request))
        return web.Response()

    async def inspect(request: web.Request) -> web.StreamResponse:
        return json_response(engine.execs.get(request.match_info["id"]).inspect())

    return [
        web.post("/containers/{name}/exec", create),
        web.post("/exec/{id}/start", start),
        web.post("/exec/{id}/resize", resize),
        web.get("/exec/{id}/json", inspect),
    ]
