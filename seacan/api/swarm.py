"""Swarm, as answered by an engine that is not part of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from seacan.errors import Unavailable

if TYPE_CHECKING:
    from seacan.engine.engine import Engine

_NOT_A_MANAGER = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to '
    "swarm and try again."
)


def routes(engine: Engine) -> list[web.RouteDef]:
    async def not_a_manager(request: web.Request) -> web.StreamResponse:
        raise Unavailable(_NOT_A_MANAGER)

    async def not_a_member(request: web.Request) -> web.StreamResponse:
        raise Unavailable("This node is not part of a swarm")

    async def not_here(request: web.Request) -> web.StreamResponse:
        raise Unavailable("this engine cannot form or join a swarm")

    paths = [
        *((method, f"/{noun}") for noun in ("services", "tasks", "nodes", "secrets", "configs") for method in ("GET",)),
        *(("POST", f"/{noun}/create") for noun in ("services", "secrets", "configs")),
        *(("GET", f"/{noun}/{{id}}") for noun in ("services", "tasks", "nodes", "secrets", "configs")),
        *(("DELETE", f"/{noun}/{{id}}") for noun in ("services", "nodes", "secrets", "configs")),
        *(("POST", f"/{noun}/{{id}}/update") for noun in ("services", "nodes", "secrets", "configs")),
        ("GET", "/services/{id}/logs"),
        ("GET", "/tasks/{id}/logs"),
        ("GET", "/swarm"),
        ("GET", "/swarm/unlockkey"),
        ("POST", "/swarm/update"),
        ("POST", "/swarm/unlock"),
    ]
    return [
        *(web.route(method, path, not_a_manager) for method, path in paths),
        web.post("/swarm/leave", not_a_member),
        web.post("/swarm/init", not_here),
        web.post("/swarm/join", not_here),
    ]
