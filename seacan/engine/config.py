"""Docker's own words for what a container is to be: the request and inspect types of the Engine API 1.51.

Attributes are Python names, JSON names are Docker's. ``None`` stands for Go's nil, which dockerd prints as ``null``:
code that reads a list or a map writes ``config.env or []``. What a field means is said in the API reference
(https://docs.docker.com/reference/api/engine/version/v1.51/); only what is not obvious from there is said here.

:func:`decode` reads a request body the way Go's decoder does: null leaves the zero value, and names match whatever
their case. :func:`encode` gives the plain JSON value dockerd prints (its ``omitempty`` fields left out).
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, TypeVar

import msgspec
from msgspec import field

from seacan.engine.gojson import INT64, complaint
from seacan.errors import InvalidParameter

StrSlice = Annotated[list[str] | None, msgspec.Meta(extra={"strslice": True})]
"""A list of strings that a client may also give as one string (Docker's ``strslice``)."""

Empty = dict[str, Any]
"""Go's ``struct{}`` as the value of a set."""


class Model(msgspec.Struct, kw_only=True, rename="pascal"):
    """Base of the types that dockerd prints in full."""

    omitempty: ClassVar[frozenset[str]] = frozenset()
    """JSON names of the fields that dockerd leaves out when they are zero."""


class Optionals(msgspec.Struct, kw_only=True, rename="pascal", omit_defaults=True):
    """Base of the types in which dockerd leaves out every zero field."""


# --- parts ---------------------------------------------------------------------------------------------------------


class HealthConfig(Optionals):
    """Times are nanoseconds; 0 means inherit or default. ``test`` is [] (inherit), ["NONE"], ["CMD", …] or
    ["CMD-SHELL", command]."""

    test: list[str] | None = None
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


class RestartPolicy(Model):
    name: str = ""
    maximum_retry_count: int = 0


class LogConfig(Model):
    type: str = ""
    config: dict[str, str] | None = None


class PortBinding(Model):
    host_ip: str = field(default="", name="HostIp")
    host_port: str = ""


PortMap = dict[str, list[PortBinding] | None]


class DeviceMapping(Model):
    path_on_host: str = ""
    path_in_container: str = ""
    cgroup_permissions: str = ""


class DeviceRequest(Model):
    driver: str = ""
    count: int = 0
    device_ids: list[str] | None = field(default=None, name="DeviceIDs")
    capabilities: list[list[str]] | None = None
    options: dict[str, str] | None = None


class Ulimit(Model):
    """``hard`` and ``soft`` are -1 for unlimited."""

    name: str = ""
    hard: int = 0
    soft: int = 0


class WeightDevice(Model):
    path: str = ""
    weight: int = 0


class ThrottleDevice(Model):
    path: str = ""
    rate: int = 0


class BindOptions(Optionals):
    propagation: str = ""
    non_recursive: bool = False
    create_mountpoint: bool = False
    read_only_non_recursive: bool = False
    read_only_force_recursive: bool = False


class VolumeDriverConfig(Optionals):
    name: str = ""
    options: dict[str, str] | None = None


class VolumeOptions(Optionals):
    no_copy: bool = False
    labels: dict[str, str] | None = None
    subpath: str = ""
    driver_config: VolumeDriverConfig | None = None


class ImageOptions(Optionals):
    subpath: str = ""


class TmpfsOptions(Optionals):
    """``mode`` is the permission bits as a number; each of ``options`` is [flag] or [key, value]."""

    size_bytes: int = 0
    mode: int = 0
    options: list[list[str]] | None = None


class Mount(Optionals):
    type: str = ""
    source: str = ""
    target: str = ""
    read_only: bool = False
    consistency: str = ""
    bind_options: BindOptions | None = None
    volume_options: VolumeOptions | None = None
    image_options: ImageOptions | None = None
    tmpfs_options: TmpfsOptions | None = None
    cluster_options: dict[str, Any] | None = None


# --- the container -------------------------------------------------------------------------------------------------


class ContainerConfig(Model):
    """What is portable between hosts."""

    omitempty: ClassVar[frozenset[str]] = frozenset(
        {
            "ExposedPorts",
            "Healthcheck",
            "ArgsEscaped",
            "NetworkDisabled",
            "MacAddress",
            "StopSignal",
            "StopTimeout",
            "Shell",
        }
    )

    hostname: str = ""
    domainname: str = ""
    user: str = ""
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    exposed_ports: dict[str, Empty] | None = None
    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False
    env: list[str] | None = None
    cmd: StrSlice = None
    healthcheck: HealthConfig | None = None
    args_escaped: bool = False
    image: str = ""
    volumes: dict[str, Empty] | None = None
    working_dir: str = ""
    entrypoint: StrSlice = None
    network_disabled: bool = False
    mac_address: str = ""
    on_build: list[str] | None = None
    labels: dict[str, str] | None = None
    stop_signal: str = ""
    stop_timeout: int | None = None
    shell: StrSlice = None


class Resources(Model):
    """The limits that `docker update` can change, and those that it cannot. Sizes are bytes; CPU times microseconds."""

    cpu_shares: int = 0
    memory: int = 0
    nano_cpus: int = 0
    """CPUs times 10⁹."""
    cgroup_parent: str = ""
    blkio_weight: int = 0
    blkio_weight_device: list[WeightDevice] | None = None
    blkio_device_read_bps: list[ThrottleDevice] | None = None
    blkio_device_write_bps: list[ThrottleDevice] | None = None
    blkio_device_read_iops: list[ThrottleDevice] | None = field(default=None, name="BlkioDeviceReadIOps")
    blkio_device_write_iops: list[ThrottleDevice] | None = field(default=None, name="BlkioDeviceWriteIOps")
    cpu_period: int = 0
    cpu_quota: int = 0
    cpu_realtime_period: int = 0
    cpu_realtime_runtime: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    devices: list[DeviceMapping] | None = None
    device_cgroup_rules: list[str] | None = None
    device_requests: list[DeviceRequest] | None = None
    kernel_memory: int = 0
    kernel_memory_tcp: int = field(default=0, name="KernelMemoryTCP")
    memory_reservation: int = 0
    memory_swap: int = 0
    """Memory and swap together; -1 is unlimited swap, 0 twice ``memory``."""
    memory_swappiness: int | None = None
    oom_kill_disable: bool | None = None
    pids_limit: int | None = None
    ulimits: list[Ulimit] | None = None
    cpu_count: int = 0
    cpu_percent: int = 0
    io_maximum_iops: int = field(default=0, name="IOMaximumIOps")
    io_maximum_bandwidth: int = field(default=0, name="IOMaximumBandwidth")


class HostConfig(Resources):
    """What binds a container to this host."""

    omitempty: ClassVar[frozenset[str]] = frozenset(
        {
            "Annotations",
            "StorageOpt",
            "Tmpfs",
            "Sysctls",
            "Runtime",
            "Mounts",
            "Init",
            "KernelMemory",
            "KernelMemoryTCP",
        }
    )

    binds: list[str] | None = None
    container_id_file: str = field(default="", name="ContainerIDFile")
    log_config: LogConfig = field(default_factory=LogConfig)
    network_mode: str = ""
    port_bindings: PortMap | None = None
    restart_policy: RestartPolicy = field(default_factory=RestartPolicy)
    auto_remove: bool = False
    volume_driver: str = ""
    volumes_from: list[str] | None = None
    console_size: list[int] = field(default_factory=lambda: [0, 0])
    """Height, width."""
    annotations: dict[str, str] | None = None
    cap_add: StrSlice = None
    cap_drop: StrSlice = None
    cgroupns_mode: str = ""
    dns: list[str] | None = None
    dns_options: list[str] | None = None
    dns_search: list[str] | None = None
    extra_hosts: list[str] | None = None
    group_add: list[str] | None = None
    ipc_mode: str = ""
    cgroup: str = ""
    links: list[str] | None = None
    oom_score_adj: int = 0
    pid_mode: str = ""
    privileged: bool = False
    publish_all_ports: bool = False
    readonly_rootfs: bool = False
    security_opt: list[str] | None = None
    storage_opt: dict[str, str] | None = None
    tmpfs: dict[str, str] | None = None
    uts_mode: str = field(default="", name="UTSMode")
    userns_mode: str = ""
    shm_size: int = 0
    sysctls: dict[str, str] | None = None
    runtime: str = ""
    isolation: str = ""
    mounts: list[Mount] | None = None
    masked_paths: list[str] | None = None
    """None: the default set (or none at all when privileged); a list, even an empty one, replaces it."""
    readonly_paths: list[str] | None = None
    init: bool | None = None


class UpdateConfig(Resources):
    """Body of POST /containers/{id}/update."""

    restart_policy: RestartPolicy = field(default_factory=RestartPolicy)


# --- networks ------------------------------------------------------------------------------------------------------


class EndpointIPAMConfig(Optionals):
    ipv4_address: str = field(default="", name="IPv4Address")
    ipv6_address: str = field(default="", name="IPv6Address")
    link_local_ips: list[str] | None = field(default=None, name="LinkLocalIPs")


class EndpointSettings(Model):
    """The first half is asked for, the second (from ``network_id`` on) is what the container got."""

    ipam_config: EndpointIPAMConfig | None = field(default=None, name="IPAMConfig")
    links: list[str] | None = None
    aliases: list[str] | None = None
    mac_address: str = ""
    driver_opts: dict[str, str] | None = None
    gw_priority: int = 0
    network_id: str = field(default="", name="NetworkID")
    endpoint_id: str = field(default="", name="EndpointID")
    gateway: str = ""
    ip_address: str = field(default="", name="IPAddress")
    ip_prefix_len: int = field(default=0, name="IPPrefixLen")
    ipv6_gateway: str = field(default="", name="IPv6Gateway")
    global_ipv6_address: str = field(default="", name="GlobalIPv6Address")
    global_ipv6_prefix_len: int = field(default=0, name="GlobalIPv6PrefixLen")
    dns_names: list[str] | None = field(default=None, name="DNSNames")


class NetworkingConfig(Model):
    endpoints_config: dict[str, EndpointSettings | None] | None = None


class ContainerCreateRequest(ContainerConfig):
    """Body of POST /containers/create: a :class:`ContainerConfig` with two more fields."""

    host_config: HostConfig | None = None
    networking_config: NetworkingConfig | None = None

    def config(self) -> ContainerConfig:
        """The container's own part."""
        return ContainerConfig(**{name: getattr(self, name) for name in ContainerConfig.__struct_fields__})


# --- execs ---------------------------------------------------------------------------------------------------------


class ExecConfig(Model):
    """Body of POST /containers/{id}/exec."""

    user: str = ""
    privileged: bool = False
    tty: bool = False
    console_size: list[int] | None = None
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    detach: bool = False
    detach_keys: str = ""
    env: list[str] | None = None
    working_dir: str = ""
    cmd: StrSlice = None


class ExecStartConfig(Model):
    """Body of POST /exec/{id}/start."""

    detach: bool = False
    tty: bool = False
    console_size: list[int] | None = None


# --- reading and writing -------------------------------------------------------------------------------------------

T = TypeVar("T")
_POINTERS = frozenset({"Init", "StopTimeout"})
"""Fields that are pointers in Go: omitted when nil, printed when zero."""
_Normalise = Callable[[Any], Any]


def decode(body: bytes, model: type[T]) -> T:
    """Read a JSON request body as ``model``, as leniently as Go's decoder does.

    Raises:
        InvalidParameter: not JSON, or a value of the wrong type.
    """
    if not body:
        raise InvalidParameter("invalid JSON: got EOF while reading request body")
    try:
        return convert(msgspec.json.decode(body), model)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidParameter(_in_words_of_go(str(error), body)) from error


_SYNTAX = {
    "object keys must be strings": "looking for beginning of object key string",
    "trailing comma in object": "looking for beginning of object key string",
    "trailing comma in array": "looking for beginning of value",
    "invalid character": "looking for beginning of value",
    "expected ',' or '}'": "after object key:value pair",
    "expected ',' or ']'": "after array element",
    "expected ':'": "after object key",
}
"""What msgspec says of a byte, and Go's encoding/json."""


def _in_words_of_go(problem: str, body: bytes) -> str:
    found = re.fullmatch(r"JSON is malformed: (.+) \(byte (\d+)\)", problem)
    if found is None:
        return "invalid JSON: unexpected EOF" if "truncated" in problem else f"invalid JSON: {problem}"
    what, at = found[1], int(found[2])
    if what == "trailing characters":
        return "unexpected content after JSON"
    if what in _SYNTAX and at < len(body):
        return f"invalid JSON: invalid character {chr(body[at])!r} {_SYNTAX[what]}"
    return f"invalid JSON: {problem}"


def convert(value: Any, model: type[T]) -> T:
    """Read an already decoded JSON value as ``model``; see :func:`decode`."""
    try:
        return msgspec.convert(_normaliser(typing.cast(Any, model))(value), model)
    except (msgspec.ValidationError, OverflowError) as error:
        raise InvalidParameter(f"invalid JSON: {complaint(value, model) or error}") from error


def encode(value: msgspec.Struct) -> dict[str, Any]:
    """The JSON value that dockerd prints for ``value``."""
    plain: dict[str, Any] = msgspec.to_builtins(value)
    for name in getattr(value, "omitempty", ()):
        if plain[name] is None or (not plain[name] and name not in _POINTERS):
            del plain[name]
    return plain


def copy(value: T) -> T:
    """A deep copy of a Struct made of plain data."""
    return msgspec.convert(msgspec.to_builtins(value), type(value))


def _same(value: Any) -> Any:
    return value


def _int64(value: Any) -> Any:
    if isinstance(value, int) and value not in INT64:
        raise OverflowError("a number is larger than 64 bits")
    return value


@cache
def _normaliser(hint: Any) -> _Normalise:
    """A function that drops nulls, mends the case of names and spreads strslices in a value meant to be a ``hint``."""
    strslice = False
    if typing.get_origin(hint) is Annotated:
        strslice = any((getattr(meta, "extra", None) or {}).get("strslice") for meta in hint.__metadata__)
        hint = hint.__origin__
    if strslice:
        return lambda value: [value] if isinstance(value, str) else value
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        inner = [argument for argument in typing.get_args(hint) if argument is not type(None)]
        return _normaliser(inner[0]) if len(inner) == 1 else _same
    if origin is list:
        (element,) = typing.get_args(hint)
        one = _normaliser(element)
        nullable = type(None) in typing.get_args(element)
        if one is _same:
            return lambda value: (
                [_zero(element) if i is None else i for i in value] if isinstance(value, list) else value
            )
        return lambda value: [one(i) for i in value if i is not None or nullable] if isinstance(value, list) else value
    if origin is dict:
        _, element = typing.get_args(hint)
        one = _normaliser(element)
        if type(None) in typing.get_args(element):
            return lambda value: (
                {k: None if v is None else one(v) for k, v in value.items()} if isinstance(value, dict) else value
            )
        return lambda value: (
            {k: _zero(element) if v is None else one(v) for k, v in value.items()}
            if isinstance(value, Mapping)
            else value
        )
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return _struct_normaliser(hint)
    return _int64 if hint is int else _same


def _struct_normaliser(model: type[msgspec.Struct]) -> _Normalise:
    hints = typing.get_type_hints(model, include_extras=True)
    members = {
        encoded.lower(): (encoded, _normaliser(hints[name]))
        for name, encoded in zip(model.__struct_fields__, model.__struct_encode_fields__, strict=True)
    }

    def normalise(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        result = {}
        for key, item in value.items():
            if item is None:
                continue
            member = members.get(key.lower())
            if member is not None:
                result[member[0]] = member[1](item)
        return result

    return normalise


def _zero(hint: Any) -> Any:
    origin = typing.get_origin(hint) or hint
    if isinstance(origin, type) and issubclass(origin, msgspec.Struct):
        return {}
    return origin() if callable(origin) and origin is not Any else None
