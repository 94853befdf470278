"""The engine itself: _ping, version, info, auth, events, system/df."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import web

from seacan.api.http import api_version, json_response, query_filters, read_json
from seacan.engine import system
from seacan.engine.listing import parse_time
from seacan.errors import InvalidParameter
from seacan.registry.credentials import Credentials

if TYPE_CHECKING:
    from seacan.engine.engine import Engine


def routes(engine: Engine) -> list[web.RouteDef]:
    async def ping(request: web.Request) -> web.StreamResponse:
        headers = {
            "Builder-Version": system.builder_version(engine),
            "Cache-Control": "no-cache, no-store, must-revalidate",
            "Pragma": "no-cache",
            "Swarm": "inactive",
        }
        if request.method == "HEAD":
            return web.Response(headers={**headers, "Content-Length": "0"}, content_type="text/plain", charset="utf-8")
        return web.Response(text="OK", headers=headers)

    async def version(request: web.Request) -> web.StreamResponse:
        return json_response(system.version(engine))

    async def info(request: web.Request) -> web.StreamResponse:
        answer = await system.info(engine)
        if api_version(request) < (1, 50):
            del answer["DiscoveredDevices"]
            answer |= {"BridgeNfIptables": False, "BridgeNfIp6tables": False}
        return json_response(answer)

    async def auth(request: web.Request) -> web.StreamResponse:
        status = await engine.distribution.login(await read_json(request, Credentials))
        return json_response({"Status": status, "IdentityToken": ""})

    async def usage(request: web.Request) -> web.StreamResponse:
        kinds = request.query.getall("type", [])
        for kind in kinds:
            if kind not in ("container", "image", "volume", "build-cache"):
                raise InvalidParameter(f"unknown object type: {kind}")
        return json_response(await system.disk_usage(engine, set(kinds) or None, legacy=api_version(request) < (1, 42)))

    async def events(request: web.Request) -> web.StreamResponse:
        since, until = (parse_time(text) if (text := request.query.get(name)) else None for name in ("since", "until"))
        if since is not None and until is not None and until < since:
            raise InvalidParameter("`since` time cannot be after `until` time")
        filters = query_filters(request)
        watch = engine.events.watch(filters)
        try:
            response = web.StreamResponse(headers={"Content-Type": "application/json"})
            response.enable_chunked_encoding()
            past = engine.events.past(since, until, filters) if since is not None or until is not None else []
            await response.prepare(request)
            await response.write(b"")
            for event in past:
                await response.write(system.encode(event.message()))
            seen = past[-1].time if past else 0
            deadline = None if until is None else asyncio.get_running_loop().time() + system.seconds_until(until)
            try:
                async with asyncio.timeout_at(deadline):
                    async for event in watch:
                        if event.time > seen:
                            await response.write(system.encode(event.message()))
            except TimeoutError:
                pass
        finally:
            engine.events.unwatch(watch)
        await response.write_eof()
        return response

    return [
        web.get("/_ping", ping),
        web.get("/version", version),
        web.get("/info", info),
        web.post("/auth", auth),
        web.get("/system/df", usage),
        web.get("/events", events),
    ]
