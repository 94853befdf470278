"""What a user does with networks: make and remove them, connect containers to them, publish ports of running ones.

The networks themselves are :class:`seacan.network.networks.Networks`; here they meet the containers and the event log.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from seacan.engine.config import EndpointSettings, PortBinding
from seacan.errors import Conflict, InvalidParameter, NotFound, SeacanError, System
from seacan.network.creation import NetworkCreateRequest
from seacan.network.model import NetworkSpec, PublishedPort

if TYPE_CHECKING:
    from seacan.engine.container import Container
    from seacan.engine.engine import Engine

log = logging.getLogger(__name__)

_FILTERS = {"dangling", "driver", "id", "label", "name", "scope", "type"}
_PRUNE_FILTERS = {"label", "label!", "until"}


async def create(engine: Engine, request: NetworkCreateRequest) -> NetworkSpec:
    """Make a network and say so."""
    spec = await engine.networks.create(request)
    _emit(engine, "create", spec)
    return spec


async def remove(engine: Engine, reference: str) -> None:
    """Remove a network that no running container uses.

    Raises:
        NotFound, Forbidden: in dockerd's words.
    """
    spec = await engine.networks.remove(reference)
    if not spec.config_only:
        _emit(engine, "destroy", spec)


async def prune(engine: Engine, filters: Mapping[str, Sequence[str]]) -> list[str]:
    """Remove every network that no container uses; returns their names.

    ``filters`` are dockerd's: until, label, label!.
    """
    for name in filters:
        if name not in _PRUNE_FILTERS:
            raise InvalidParameter(f"invalid filter '{name}'")
    until = parse_until(filters.get("until", ()))
    removed = []
    for spec in engine.networks.all():
        if spec.config_only or spec.predefined or engine.networks.endpoints_in(spec.id):
            continue
        if until is not None and spec.created > until:
            continue
        if not all(_has_label(spec, label) for label in filters.get("label", ())):
            continue
        if any(_has_label(spec, label) for label in filters.get("label!", ())):
            continue
        try:
            await remove(engine, spec.id)
        except SeacanError as error:
            log.warning("could not remove local network %s: %s", spec.name, error)
            continue
        removed.append(spec.name)
    engine.events.emit("network", "prune", "", {"reclaimed": "0"})
    return removed


def select(engine: Engine, filters: Mapping[str, Sequence[str]]) -> list[NetworkSpec]:
    """The networks that pass dockerd's filters.

    Raises:
        InvalidParameter: an unknown filter or value.
    """
    for name in filters:
        if name not in _FILTERS:
            raise InvalidParameter(f"invalid filter '{name}'")
    result = engine.networks.all()
    if filters.get("driver"):
        result = [spec for spec in result if spec.driver in filters["driver"]]
    if filters.get("scope"):
        result = [spec for spec in result if spec.scope in filters["scope"]]
    if filters.get("name"):
        result = [spec for spec in result if any(_matches(value, spec.name) for value in filters["name"])]
    if filters.get("id"):
        result = [spec for spec in result if any(_matches(value, spec.id) for value in filters["id"])]
    if filters.get("label"):
        result = [spec for spec in result if all(_has_label(spec, label) for label in filters["label"])]
    if filters.get("dangling"):
        result = _dangling(engine, result, filters["dangling"])
    if filters.get("type"):
        for value in filters["type"]:
            if value not in ("builtin", "custom"):
                raise InvalidParameter(f"invalid filter: 'type'='{value}'")
        kinds = set(filters["type"])
        result = [spec for spec in result if ("builtin" if spec.predefined else "custom") in kinds]
    return result


def _dangling(engine: Engine, specs: Sequence[NetworkSpec], values: Sequence[str]) -> list[NetworkSpec]:
    if len(values) > 1:
        raise InvalidParameter('got more than one value for filter key "dangling"')
    if values[0] not in ("0", "1", "true", "false"):
        raise InvalidParameter('invalid value for filter \'dangling\', must be "true" (or "1"), or "false" (or "0")')
    wanted = values[0] in ("1", "true")
    return [spec for spec in specs if (not spec.predefined and not engine.networks.endpoints_in(spec.id)) == wanted]


def _matches(pattern: str, value: str) -> bool:
    """dockerd's match: equal, a part, or a regular expression."""
    if pattern in value:
        return True
    try:
        return re.search(pattern, value) is not None
    except re.error:
        return False


def _has_label(spec: NetworkSpec, label: str) -> bool:
    key, equals, value = label.partition("=")
    return key in spec.labels and (not equals or spec.labels[key] == value)


def parse_until(values: Sequence[str]) -> int | None:
    """The ``until`` filter: a duration back from now ("24h"), seconds since 1970, or RFC 3339. In nanoseconds.

    Raises:
        InvalidParameter: it is none of these, or given twice.
    """
    if not values:
        return None
    if len(values) > 1:
        raise InvalidParameter("more than one until filter specified")
    text = values[0]
    parts = re.findall(r"(\d+(?:\.\d+)?)(h|ms|m|us|µs|ns|s)", text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        units = {"h": 3600e9, "m": 60e9, "s": 1e9, "ms": 1e6, "us": 1e3, "µs": 1e3, "ns": 1.0}
        return time.time_ns() - int(sum(float(number) * units[unit] for number, unit in parts))
    try:
        return int(float(text) * 1e9)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidParameter(f'failed to parse value as time or duration: "{text}"') from error
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1e9)


async def connect(engine: Engine, network: str, container: str, settings: EndpointSettings | None) -> None:
    """Connect a container to a network, at once if it runs, else from its next start on.

    Raises:
        SeacanError: in dockerd's words.
    """
    asked = settings or EndpointSettings()
    target = engine.containers.get(container)
    async with target.lock:
        if target.state.removing or target.state.dead:
            raise _being_removed(target)
        mode = target.host_config.network_mode
        if not target.state.running:
            _connect_later(engine, target, network, asked)
            return
        if mode.startswith("container:"):
            raise InvalidParameter(
                "container sharing network namespace with another container or host cannot be connected to any other "
                "network"
            )
        if target.task is None:
            raise Conflict(f"container {target.name} is not running")
        spec = engine.networks.get(network)
        async with target.task.sandbox() as sandbox:
            endpoint = await engine.networks.connect(engine.lifecycle.identity(target), spec.id, asked, sandbox)
        target.record.networks[spec.name] = asked
        engine.containers.save(target)
        _emit(engine, "connect", spec, endpoint.container)


def _connect_later(engine: Engine, target: Container, network: str, asked: EndpointSettings) -> None:
    """Note what a stopped container is to be connected to; a network that does not exist is found out at its start."""
    name = network
    try:
        spec = engine.networks.get(network)
    except NotFound:
        spec = None
    if spec is not None:
        name = spec.name
        engine.networks.check_settings(spec, asked)
        recorded = [engine.networks.find(other) for other in target.record.networks]
        others = [other for other in recorded if other is not None and other.id != spec.id]
        if spec.driver == "host":
            raise InvalidParameter(
                "cannot connect container to host network - container must be created in host network mode"
            )
        if spec.driver == "null" or any(other.driver == "null" for other in others):
            raise InvalidParameter(
                "container cannot be connected to multiple networks with one of the networks in private (none) mode"
            )
        if any(other.driver == "host" for other in others):
            raise InvalidParameter(
                "container sharing network namespace with another container or host cannot be connected to any other "
                "network"
            )
    target.record.networks[name] = asked
    engine.containers.save(target)


async def disconnect(engine: Engine, network: str, container: str, *, force: bool = False) -> None:
    """Disconnect a container from a network. ``force`` does so although the network is no longer there.

    Raises:
        SeacanError: in dockerd's words.
    """
    try:
        target = engine.containers.get(container)
    except NotFound as error:
        if force and engine.networks.get(network):
            raise NotFound(f"endpoint {container} not found") from error
        raise
    async with target.lock:
        if target.state.removing or target.state.dead:
            raise _being_removed(target)
        try:
            spec = engine.networks.get(network)
        except NotFound:
            if target.state.running and not force:
                raise
            spec = None
        name = spec.name if spec else network
        key = next((key for key in (name, spec.id if spec else name) if key in target.record.networks), None)
        if not target.state.running or spec is None:
            if key is None:
                raise System(f"container {target.id} is not connected to the network {name}")
            del target.record.networks[key]
            engine.containers.save(target)
            return
        if spec.driver == "host":
            raise InvalidParameter(
                "cannot disconnect container from host network - container was created in host network mode"
            )
        # The record first: after a crash in between, settle() ends what it does not have.
        asked = target.record.networks.pop(key) if key is not None else None
        engine.containers.save(target)
        try:
            await _leave(engine, target, spec.id)
        except SeacanError:
            if key is not None and asked is not None:
                target.record.networks[key] = asked
                engine.containers.save(target)
            raise
        _emit(engine, "disconnect", spec, target.id)


async def _leave(engine: Engine, target: Container, network: str) -> None:
    async with contextlib.AsyncExitStack() as opened:
        sandbox = None
        if target.task is not None:
            with contextlib.suppress(Conflict):  # it has just ended
                sandbox = await opened.enter_async_context(target.task.sandbox())
        await engine.networks.disconnect(target.id, network, sandbox)


async def settle(engine: Engine, target: Container) -> None:
    """After a crash: undo a connection of a running container that was half made, finish one half ended.

    What its record and its endpoints agree on stays; nobody has been told of the rest.
    """
    recorded = {spec.id: key for key in target.record.networks if (spec := engine.networks.find(key)) is not None}
    joined = {endpoint.network for endpoint in engine.networks.endpoints_of(target.id)}
    for network in joined - recorded.keys():
        log.info("container %s: ending its half-made connection to the network %s", target.id, network)
        await _leave(engine, target, network)
    if stale := recorded.keys() - joined:
        for network in stale:
            del target.record.networks[recorded[network]]
        engine.containers.save(target)


def _being_removed(target: Container) -> System:
    return System(f"Container {target.id} is marked for removal and cannot be connected or disconnected to the network")


async def add_ports(
    engine: Engine, container: str, bindings: Mapping[str, Sequence[PortBinding]]
) -> list[PublishedPort]:
    """Publish more ports of a running container (`seacan port add`); they last until it stops."""
    target = engine.containers.get(container)
    async with target.lock:
        if not target.state.running:
            raise Conflict(f"container {target.name} is not running")
        return await engine.networks.add_ports(target.id, bindings)


async def remove_ports(engine: Engine, container: str, port: str, host_ip: str = "", host_port: str = "") -> None:
    """Withdraw published ports of a running container (`seacan port rm`): those of ``port`` ("80/tcp"), or only the
    ones at ``host_ip`` and ``host_port``."""
    target = engine.containers.get(container)
    async with target.lock:
        if not target.state.running:
            raise Conflict(f"container {target.name} is not running")
        number, _, protocol = port.partition("/")
        chosen = [
            one
            for one in engine.networks.published(target.id)
            if (str(one.port), one.protocol) == (number, protocol or "tcp")
            and (not host_ip or one.host_ip == host_ip)
            and (not host_port or str(one.host_port) == host_port)
        ]
        if not chosen:
            raise NotFound(f"container {target.name} does not publish {port}")
        await engine.networks.remove_ports(target.id, chosen)


def _emit(engine: Engine, action: str, spec: NetworkSpec, container: str = "") -> None:
    attributes = {"name": spec.name, "type": spec.driver}
    if container:
        attributes["container"] = container
    engine.events.emit("network", action, spec.id, attributes)
