"""``/volumes``: translates between Docker's JSON and :class:`seacan.volumes.volumes.Volumes`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from seacan.api.http import api_version, json_response, no_content, query_bool, query_filters, read_json
from seacan.errors import Unavailable

if TYPE_CHECKING:
    from seacan.engine.engine import Engine


class VolumeCreateRequest(msgspec.Struct, kw_only=True, rename="pascal"):
    name: str = ""
    driver: str = ""
    driver_opts: dict[str, str] | None = None
    labels: dict[str, str] | None = None
    cluster_volume_spec: dict[str, object] | None = None


def routes(engine: Engine) -> list[web.RouteDef]:
    async def list_(request: web.Request) -> web.StreamResponse:
        volumes = engine.volumes.list(query_filters(request))
        return json_response({"Volumes": [volume.inspect() for volume in volumes], "Warnings": None})

    async def create(request: web.Request) -> web.StreamResponse:
        body = await read_json(request, VolumeCreateRequest)
        if body.cluster_volume_spec is not None:
            raise Unavailable(
                'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node '
                "to swarm and try again."
            )
        volume = await engine.volumes.create(
            body.name, driver=body.driver, labels=body.labels, options=body.driver_opts
        )
        return json_response(volume.inspect(), 201)

    async def inspect(request: web.Request) -> web.StreamResponse:
        return json_response(engine.volumes.get(request.match_info["name"]).inspect())

    async def remove(request: web.Request) -> web.StreamResponse:
        await engine.volumes.remove(request.match_info["name"], force=query_bool(request, "force"))
        return no_content()

    async def prune(request: web.Request) -> web.StreamResponse:
        filters = dict(query_filters(request))
        if api_version(request) < (1, 42):
            filters["all"] = ["true"]  # before 1.42 named volumes were pruned, too
        pruned = await engine.volumes.prune(filters)
        return json_response({"VolumesDeleted": pruned.names, "SpaceReclaimed": pruned.reclaimed})

    async def update(request: web.Request) -> web.StreamResponse:
        raise Unavailable("volume update only valid for cluster volumes, but swarm is unavailable")

    return [
        web.get("/volumes", list_),
        web.post("/volumes/create", create),
        web.post("/volumes/prune", prune),
        web.get("/volumes/{name:.+}", inspect),
        web.put("/volumes/{name:.+}", update),
        web.delete("/volumes/{name:.+}", remove),
    ]
