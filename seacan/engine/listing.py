"""`docker ps`: which containers are shown, in which order, and what is said of each."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from seacan.engine import config as docker
from seacan.engine.container import Container, now
from seacan.engine.times import human_duration
from seacan.errors import InvalidParameter, NotFound, SeacanError

if TYPE_CHECKING:
    from seacan.engine.engine import Engine
    from seacan.network.model import NetworkSettings

_FILTERS = frozenset(
    {
        "ancestor", "before", "exited", "id", "isolation", "label", "name", "status", "health", "since", "volume",
        "network", "is-task", "publish", "expose",
    }
)  # fmt: skip
_STATUSES = ("created", "running", "paused", "restarting", "removing", "exited", "dead")
_HEALTHS = ("none", "starting", "healthy", "unhealthy")
_PORTS = re.compile(r"(\d+)(?:-(\d+))?(?:/(tcp|udp|sctp))?", re.IGNORECASE)

Test = Callable[[Container], bool]


async def listing(
    engine: Engine,
    *,
    all: bool = False,
    limit: int = 0,
    size: bool = False,
    filters: Mapping[str, Sequence[str]] | None = None,
) -> list[dict[str, Any]]:
    """Docker's ContainerSummary of each container that passes, newest first.

    Raises:
        InvalidParameter: an unknown filter, or a value it cannot have.
    """
    filters = filters or {}
    for name in filters:
        if name not in _FILTERS:
            raise InvalidParameter(f"invalid filter '{name}'")
    tests = _tests(engine, filters)
    all = all or limit > 0 or bool(filters.get("status"))
    before = _reference(engine, filters.get("before", ()))
    since = _reference(engine, filters.get("since", ()))
    chosen: list[Container] = []
    for container in sorted(_candidates(engine, filters), key=lambda c: (c.record.created, c.id), reverse=True):
        if before is not None and container.record.created >= before.record.created:
            continue
        if since is not None and container.record.created <= since.record.created:
            break
        if not container.state.running and not all:
            continue
        if limit > 0 and len(chosen) == limit:
            break
        if not any(not test(container) for test in tests):
            chosen.append(container)
    summaries = [summary(engine, container) for container in chosen]
    if size:
        for container, entry in zip(chosen, summaries, strict=True):
            entry |= await sizes(engine, container)
    return summaries


def _candidates(engine: Engine, filters: Mapping[str, Sequence[str]]) -> list[Container]:
    ids = filters.get("id")
    if ids:
        found = (engine.containers.find(id) for id in ids)
        return list({c.id: c for c in found if c is not None}.values())
    return list(engine.containers)


def summary(engine: Engine, container: Container) -> dict[str, Any]:
    """Docker's ContainerSummary."""
    record, state = container.record, container.state
    image = record.config.image
    try:
        if image != record.image and engine.images.get(image).id != record.image:
            image = record.image
    except SeacanError:
        image = record.image
    settings = network_settings_of(engine, container)
    host: dict[str, Any] = {"NetworkMode": container.host_config.network_mode}
    if container.host_config.annotations:
        host["Annotations"] = container.host_config.annotations
    return {
        "Id": container.id,
        "Names": [f"/{container.name}", *_link_names(engine, container)],
        "Image": image,
        "ImageID": record.image,
        "Command": command_line(record.path, record.args),
        "Created": record.created // 1_000_000_000,
        "Ports": ports(container, settings.ports if state.running else {}),
        "Labels": record.config.labels or {},
        "State": state.status,
        "Status": status(container),
        "HostConfig": host,
        "NetworkSettings": {"Networks": {name: docker.encode(s) for name, s in settings.networks.items()}},
        "Mounts": [mount(point) for point in record.mounts],
    }


def network_settings_of(engine: Engine, container: Container) -> NetworkSettings:
    """A container's networks as they are now."""
    state = container.state
    return engine.networks.settings(
        container.id, container.record.networks, pid=state.pid, started=state.started_at != 0
    )


def _link_names(engine: Engine, container: Container) -> list[str]:
    return [
        f"/{parent.name}/{alias}"
        for parent in engine.containers
        if parent.record.links
        for alias, id in parent.record.links.items()
        if id == container.id
    ]


async def sizes(engine: Engine, container: Container) -> dict[str, int]:
    """``SizeRw`` (what the container wrote) and ``SizeRootFs`` (with its image), in bytes."""
    usage = await asyncio.to_thread(engine.snapshots.usage, container.id)
    image = 0
    if container.record.image:
        try:
            image = engine.images.get(container.record.image).size
        except NotFound:
            image = 0
    return {"SizeRw": usage.size, "SizeRootFs": usage.size + image}


def mount(point: Any) -> dict[str, Any]:
    """Docker's MountPoint."""
    result: dict[str, Any] = {"Type": point.type}
    if point.name:
        result["Name"] = point.name
    result |= {"Source": point.source, "Destination": point.destination}
    if point.driver:
        result["Driver"] = point.driver
    return {**result, "Mode": point.mode, "RW": point.rw, "Propagation": point.propagation}


def command_line(path: str, args: Sequence[str]) -> str:
    """The command as `docker ps` shows it: arguments with spaces are quoted."""
    quoted = [f"'{arg}'" if " " in arg else arg for arg in args]
    return " ".join([path, *quoted])


def ports(container: Container, published: Mapping[str, Sequence[docker.PortBinding] | None]) -> list[dict[str, Any]]:
    """Docker's Port list of a summary: published ports, then those only exposed."""
    result: list[dict[str, Any]] = []
    for port in sorted(published, key=_port_key):
        number, protocol = _port_key(port)
        bindings = published[port]
        if not bindings:
            result.append({"PrivatePort": number, "Type": protocol})
        result += [
            {"IP": binding.host_ip, "PrivatePort": number, "PublicPort": int(binding.host_port), "Type": protocol}
            for binding in bindings or ()
        ]
    return result


def _port_key(port: str) -> tuple[int, str]:
    number, _, protocol = port.partition("/")
    return int(number), protocol or "tcp"


def status(container: Container) -> str:
    """The sentence of the STATUS column: "Up 2 minutes (healthy)", "Exited (0) 3 days ago"."""
    state = container.state
    if state.running:
        if state.restarting:
            return f"Restarting ({state.exit_code}) {since(state.finished_at)} ago"
        up = f"Up {since(state.started_at)}"
        if state.paused:
            return f"{up} (Paused)"
        if state.health is not None and state.health.status != "none":
            word = "health: starting" if state.health.status == "starting" else state.health.status
            return f"{up} ({word})"
        return up
    if state.removing:
        return "Removal In Progress"
    if state.dead:
        return "Dead"
    if state.started_at == 0:
        return "Created"
    if state.finished_at == 0:
        return ""
    return f"Exited ({state.exit_code}) {since(state.finished_at)} ago"


def since(moment: int) -> str:
    """How long ago ``moment`` (ns) was, in go-units' words."""
    return human_duration((now() - moment) / 1e9)


# --- filters -------------------------------------------------------------------------------------------------------


def _reference(engine: Engine, values: Sequence[str]) -> Container | None:
    return engine.containers.get(values[-1]) if values else None


def _tests(engine: Engine, filters: Mapping[str, Sequence[str]]) -> list[Test]:
    tests: list[Test] = []
    for name, make in (
        ("name", _named),
        ("label", _labelled),
        ("exited", _exited),
        ("status", _status),
        ("health", _health),
        ("volume", _volume),
        ("is-task", _is_task),
    ):
        if filters.get(name):
            tests.append(make(filters[name]))
    if "ancestor" in filters:
        images = _images(engine, filters["ancestor"])
        tests.append(lambda c: c.record.image in images)
    if filters.get("network"):
        tests.append(_on_network(engine, filters["network"]))
    if filters.get("publish") or filters.get("expose"):
        tests.append(_with_ports(engine, filters.get("publish", ()), filters.get("expose", ())))
    return tests


def _named(patterns: Sequence[str]) -> Test:
    compiled = []
    for pattern in patterns:
        try:
            compiled.append(re.compile(pattern))
        except re.error:
            compiled.append(re.compile(re.escape(pattern)))
    return lambda c: any(p.search(c.name) or p.search(f"/{c.name}") for p in compiled)


def _labelled(wanted: Sequence[str]) -> Test:
    return lambda c: all(has_label(c.config.labels or {}, label) for label in wanted)


def has_label(labels: Mapping[str, str], wanted: str) -> bool:
    name, equals, value = wanted.partition("=")
    return name in labels and (not equals or labels[name] == value)


def _exited(values: Sequence[str]) -> Test:
    codes = set()
    for value in values:
        try:
            codes.add(int(value))
        except ValueError as error:
            raise InvalidParameter(
                f"invalid filter 'exited={value}': strconv.Atoi: parsing \"{value}\": invalid syntax"
            ) from error
    return lambda c: not c.state.running and c.state.started_at != 0 and c.state.exit_code in codes


def _status(values: Sequence[str]) -> Test:
    for value in values:
        if value not in _STATUSES:
            raise InvalidParameter(
                f"invalid filter 'status={value}': invalid value for state ({value}): must be one of "
                + ", ".join(_STATUSES)
            )
    return lambda c: c.state.status in values


def _health(values: Sequence[str]) -> Test:
    for value in values:
        if value not in _HEALTHS:
            raise InvalidParameter(
                f"invalid filter 'health={value}': invalid value for health ({value}): must be one of "
                + ", ".join(_HEALTHS)
            )
    return lambda c: (c.state.health.status if c.state.health else "none") in values


def _volume(values: Sequence[str]) -> Test:
    return lambda c: any(v in (p.name or p.source, p.destination) for v in values for p in c.record.mounts)


def _is_task(values: Sequence[str]) -> Test:
    wanted = truth("is-task", values)
    return lambda c: not wanted


def truth(name: str, values: Sequence[str]) -> bool:
    """A filter's boolean.

    Raises:
        InvalidParameter: neither true nor false.
    """
    if len(values) == 1 and values[0].lower() in ("1", "true"):
        return True
    if len(values) == 1 and values[0].lower() in ("0", "false"):
        return False
    raise InvalidParameter(f"invalid filter '{name}=[{' '.join(values)}]'")


def _images(engine: Engine, values: Sequence[str]) -> set[str]:
    """The images named, and those built on them."""
    found: set[str] = set()
    for value in values:
        try:
            image = engine.images.get(value).id
        except SeacanError:
            continue
        found |= {image, *engine.images.descendants(image)}
    return found


def _on_network(engine: Engine, values: Sequence[str]) -> Test:
    def test(container: Container) -> bool:
        networks = network_settings_of(engine, container).networks
        return any(
            value in networks or any(s.network_id and s.network_id.startswith(value) for s in networks.values())
            for value in values
        )

    return test


def _port_set(name: str, values: Sequence[str]) -> set[tuple[int, str]]:
    result = set()
    for value in values:
        if ":" in value:
            raise InvalidParameter(f"filter for '{name}' should not contain ':': {value}")
        match = _PORTS.fullmatch(value)
        if not match:
            raise InvalidParameter(
                f'error while looking up for {name} {value}: strconv.ParseUint: parsing "{value}": invalid syntax'
            )
        first, last = int(match[1]), int(match[2] or match[1])
        result |= {(port, (match[3] or "tcp").lower()) for port in range(first, min(last, 65535) + 1)}
    return result


def _with_ports(engine: Engine, publish: Sequence[str], expose: Sequence[str]) -> Test:
    published, exposed = _port_set("publish", publish), _port_set("expose", expose)

    def test(container: Container) -> bool:
        settings = network_settings_of(engine, container)
        return any(
            (entry.get("PublicPort", 0), entry["Type"]) in published or (entry["PrivatePort"], entry["Type"]) in exposed
            for entry in ports(container, settings.ports)
        )

    return test


def prune_filter(filters: Mapping[str, Sequence[str]]) -> Test:
    """What `docker container prune --filter` lets through.

    Raises:
        InvalidParameter: an unknown filter or a bad time.
    """
    for name in filters:
        if name not in ("label", "label!", "until"):
            raise InvalidParameter(f"invalid filter '{name}'")
    until = parse_until(filters.get("until", ()))
    wanted, unwanted = filters.get("label", ()), filters.get("label!", ())

    def test(container: Container) -> bool:
        labels = container.config.labels or {}
        return (
            (until is None or container.record.created < until)
            and all(has_label(labels, label) for label in wanted)
            and not any(has_label(labels, label) for label in unwanted)
        )

    return test


def parse_until(values: Sequence[str]) -> int | None:
    """The ``until`` filter in nanoseconds since 1970: a time, or a duration before now ("10m", "1h30m").

    Raises:
        InvalidParameter: more than one, or unreadable.
    """
    if not values:
        return None
    if len(values) > 1:
        raise InvalidParameter("more than one until filter specified")
    return parse_time(values[0])


_DURATION = re.compile(r"([0-9.]+)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_time(text: str) -> int:
    """A moment in nanoseconds since 1970: seconds with fraction, RFC 3339, a date, or a duration before now.

    Raises:
        InvalidParameter: none of these.
    """
    if re.fullmatch(r"\d+(\.\d*)?", text):
        seconds, _, fraction = text.partition(".")
        return int(seconds) * 1_000_000_000 + int((fraction + "000000000")[:9])
    parts = _DURATION.findall(text)
    if parts and "".join(n + u for n, u in parts) == text.removeprefix("-"):
        return time.time_ns() - int(sum(float(n) * _UNITS[u] for n, u in parts) * 1e9)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidParameter(f'failed to parse value as time or duration: "{text}"') from error
    if moment.tzinfo is None:
        moment = moment.astimezone()
    return int(moment.astimezone(UTC).timestamp() * 1e9)
