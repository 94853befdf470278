"""Networks over the API: list, inspect, create, remove, connect, disconnect, prune; and ports of running containers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiohttp import web

from seacan.api.http import (
    api_version,
    json_response,
    no_content,
    query_filters,
    read_json,
)
from seacan.engine import connections
from seacan.engine.config import EndpointSettings, Model, PortBinding
from seacan.engine.times import rfc3339
from seacan.errors import InvalidParameter, NotFound
from seacan.network.creation import NetworkCreateRequest
from seacan.network.model import NetworkSpec
from seacan.truth import truth

if TYPE_CHECKING:
    from seacan.engine.engine import Engine


class ConnectRequest(Model):
    container: str = ""
    endpoint_config: EndpointSettings | None = None


class DisconnectRequest(Model):
    container: str = ""
    force: bool = False


class PortsRequest(Model):
    """Body of POST /seacan/containers/{name}/ports: Docker's PortBindings."""

    port_bindings: dict[str, list[PortBinding]] = {}


def describe(engine: Engine, spec: NetworkSpec, *, containers: bool) -> dict[str, Any]:
    """Docker's NetworkInspect."""
    config = [
        {
            key: value
            for key, value in (
                ("Subnet", pool.subnet),
                ("IPRange", pool.ip_range),
                ("Gateway", pool.gateway),
                ("AuxiliaryAddresses", pool.auxiliary),
            )
            if value
        }
        for pool in spec.pools
    ]
    return {
        "Name": spec.name,
        "Id": spec.id,
        "Created": rfc3339(spec.created),
        "Scope": spec.scope,
        "Driver": spec.driver,
        "EnableIPv4": spec.ipv4,
        "EnableIPv6": spec.ipv6,
        "IPAM": {"Driver": spec.ipam_driver, "Options": spec.ipam_options, "Config": config or None},
        "Internal": spec.internal,
        "Attachable": spec.attachable,
        "Ingress": spec.ingress,
        "ConfigFrom": {"Network": spec.config_from},
        "ConfigOnly": spec.config_only,
        "Containers": _containers(engine, spec) if containers else {},
        "Options": spec.options,
        "Labels": spec.labels,
    }


def _containers(engine: Engine, spec: NetworkSpec) -> dict[str, dict[str, str]]:
    return {
        endpoint.container: {
            "Name": endpoint.container_name,
            "EndpointID": endpoint.id,
            "MacAddress": endpoint.mac,
            "IPv4Address": endpoint.ipv4,
            "IPv6Address": endpoint.ipv6,
        }
        for endpoint in engine.networks.endpoints_in(spec.id)
    }


def routes(engine: Engine) -> list[web.RouteDef]:
    async def list_(request: web.Request) -> web.StreamResponse:
        # Clients before 1.28 were given every network's containers in the list.
        old = api_version(request) < (1, 28)
        return json_response(
            [describe(engine, spec, containers=old) for spec in connections.select(engine, query_filters(request))]
        )

    async def inspect(request: web.Request) -> web.StreamResponse:
        verbose = request.query.get("verbose", "")
        if verbose and truth(verbose) is None:
            raise InvalidParameter(
                f'invalid value for verbose: {verbose}: strconv.ParseBool: parsing "{verbose}": invalid syntax'
            )
        reference, scope = request.match_info["id"], request.query.get("scope", "")
        spec = engine.networks.get(reference)
        if scope not in ("", spec.scope):
            raise NotFound(f"network {reference} not found")
        return json_response(describe(engine, spec, containers=True))

    async def create(request: web.Request) -> web.StreamResponse:
        body = await read_json(request, NetworkCreateRequest)
        if api_version(request) < (1, 48):
            body.enable_ipv4 = None
        spec = await connections.create(engine, body)
        return json_response({"Id": spec.id, "Warning": ""}, 201)

    async def remove(request: web.Request) -> web.StreamResponse:
        await connections.remove(engine, request.match_info["id"])
        return no_content()

    async def connect(request: web.Request) -> web.StreamResponse:
        body = await read_json(request, ConnectRequest)
        await connections.connect(engine, request.match_info["id"], body.container, body.endpoint_config)
        return web.Response(status=200)

    async def disconnect(request: web.Request) -> web.StreamResponse:
        body = await read_json(request, DisconnectRequest)
        await connections.disconnect(engine, request.match_info["id"], body.container, force=body.force)
        return web.Response(status=200)

    async def prune(request: web.Request) -> web.StreamResponse:
        return json_response({"NetworksDeleted": await connections.prune(engine, query_filters(request)) or None})

    async def add_ports(request: web.Request) -> web.StreamResponse:
        body = await read_json(request, PortsRequest)
        ports = await connections.add_ports(engine, request.match_info["name"], body.port_bindings)
        return json_response(
            {
                "Ports": [
                    {"Port": f"{one.port}/{one.protocol}", "HostIp": one.host_ip, "HostPort": str(one.host_port)}
                    for one in ports
                ]
            },
            201,
        )

    async def remove_ports(request: web.Request) -> web.StreamResponse:
        port = request.query.get("port", "")
        if not port:
            raise InvalidParameter("missing parameter: port")
        await connections.remove_ports(
            engine,
            request.match_info["name"],
            port,
            request.query.get("host_ip", ""),
            request.query.get("host_port", ""),
        )
        return no_content()

    return [
        web.get("/networks", list_),
        web.get("/networks/", list_),
        web.post("/networks/create", create),
        web.post("/networks/prune", prune),
        web.get("/networks/{id:.+}", inspect),
        web.post("/networks/{id:.*}/connect", connect),
        web.post("/networks/{id:.*}/disconnect", disconnect),
        web.delete("/networks/{id:.*}", remove),
        # Not in Docker's API: ports of a running container.
        web.post("/seacan/containers/{name}/ports", add_ports),
        web.delete("/seacan/containers/{name}/ports", remove_ports),
    ]
