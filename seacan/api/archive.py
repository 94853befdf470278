"""`docker cp`: /containers/{id}/archive."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from seacan.api.http import query_bool
from seacan.engine import archive

if TYPE_CHECKING:
    from seacan.engine.engine import Engine


def routes(engine: Engine) -> list[web.RouteDef]:
    def stat_header(found: archive.PathStat) -> dict[str, str]:
        return {"X-Docker-Container-Path-Stat": base64.b64encode(msgspec.json.encode(found)).decode()}

    async def head(request: web.Request) -> web.StreamResponse:
        found = await archive.stat_path(engine, request.match_info["name"], request.query.get("path", ""))
        return web.Response(headers=stat_header(found))

    async def get(request: web.Request) -> web.StreamResponse:
        name, path = request.match_info["name"], request.query.get("path", "")
        found = await archive.stat_path(engine, name, path)
        response = web.StreamResponse(headers={"Content-Type": "application/x-tar", **stat_header(found)})
        response.enable_chunked_encoding()
        await response.prepare(request)
        # Not at the end: the client goes once it has seen the end of the archive.
        engine.containers.emit(engine.containers.get(name), "archive-path")
        async for chunk in archive.read_path(engine, name, path):
            await response.write(chunk)
        await response.write_eof()
        return response

    async def put(request: web.Request) -> web.StreamResponse:
        container = engine.containers.get(request.match_info["name"])
        await archive.write_path(
            engine,
            request.match_info["name"],
            request.query.get("path", ""),
            request.content.iter_any(),
            keep_kinds=query_bool(request, "noOverwriteDirNonDir"),
            as_user=query_bool(request, "copyUIDGID"),
        )
        engine.containers.emit(container, "extract-to-dir")
        return web.Response()

    return [
        web.head("/containers/{name}/archive", head),
        web.get("/containers/{name}/archive", get, allow_head=False),
        web.put("/containers/{name}/archive", put),
    ]
