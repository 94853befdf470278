"""Plugins: this engine has none, and installs none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from seacan.api.http import json_response
from seacan.errors import NotFound, Unsupported

if TYPE_CHECKING:
    from seacan.engine.engine import Engine


def routes(engine: Engine) -> list[web.RouteDef]:
    async def list_(request: web.Request) -> web.StreamResponse:
        return json_response([])

    async def missing(request: web.Request) -> web.StreamResponse:
        raise NotFound(f'plugin "{request.match_info["name"]}" not found')

    async def refuse(request: web.Request) -> web.StreamResponse:
        raise Unsupported("this engine has no managed plugins")

    return [
        web.get("/plugins", list_),
        web.get("/plugins/privileges", refuse),
        web.post("/plugins/pull", refuse),
        web.post("/plugins/create", refuse),
        web.get("/plugins/{name:.*}/json", missing),
        web.post("/plugins/{name:.*}/{action:enable|disable|upgrade|push|set}", missing),
        web.delete("/plugins/{name:.*}", missing),
    ]
