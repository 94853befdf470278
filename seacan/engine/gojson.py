"""What Go's encoding/json says of a value of the wrong type: clients and their tests look for its very words.

In ``cannot unmarshal number into Go struct field IPAMConfig.CreateOptions.IPAM.Config.Subnet of type string`` come the
innermost struct, the fields that lead there with embedded structs, and the field's type (``UnmarshalTypeError``).
These are the words of Go 1.24, with which Docker builds its releases; every release of Go has its own.
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any, Final

import msgspec

INT64: Final = range(-(1 << 63), 1 << 63)
_EMPTY: Final = dict[str, Any]
"""Go's ``struct{}``, :data:`seacan.engine.config.Empty`."""

_STRUCTS: Final[Mapping[str, str]] = {
    "BindOptions": "mount.BindOptions",
    "ConfigReference": "network.ConfigReference",
    "ConnectRequest": "network.ConnectOptions",
    "ContainerConfig": "container.Config",
    "ContainerCreateRequest": "container.CreateRequest",
    "DisconnectRequest": "network.DisconnectOptions",
    "EndpointIPAMConfig": "network.EndpointIPAMConfig",
    "EndpointSettings": "network.EndpointSettings",
    "ExecConfig": "container.ExecOptions",
    "ExecStartConfig": "container.ExecStartOptions",
    "HealthConfig": "v1.HealthcheckConfig",
    "IPAM": "network.IPAM",
    "IPAMConfig": "network.IPAMConfig",
    "ImageOptions": "mount.ImageOptions",
    "Mount": "mount.Mount",
    "NetworkCreateRequest": "network.CreateRequest",
    "NetworkingConfig": "network.NetworkingConfig",
    "PortBinding": "nat.PortBinding",
    "ThrottleDevice": "blkiodev.ThrottleDevice",
    "TmpfsOptions": "mount.TmpfsOptions",
    "Ulimit": "units.Ulimit",
    "VolumeDriverConfig": "mount.Driver",
    "VolumeOptions": "mount.VolumeOptions",
    "WeightDevice": "blkiodev.WeightDevice",
}
"""Our structs by what they are in Go, where that is not the same name in the package container."""

_EMBEDDED: Final[Mapping[str, str]] = {
    **dict.fromkeys(("HostConfig", "UpdateConfig"), "Resources"),
    "ContainerCreateRequest": "Config",
    "NetworkCreateRequest": "CreateOptions",
}
"""Our structs, and what is embedded in them in Go."""
_OWN: Final = frozenset({"Name", "CheckDuplicate"})
"""Fields of NetworkCreateRequest that are not of the embedded struct."""

_FIELDS: Final[Mapping[str, str]] = {
    "BindOptions.Propagation": "mount.Propagation",
    "Config.ExposedPorts": "nat.PortSet",
    "CreateRequest.ExposedPorts": "nat.PortSet",
    "DeviceRequest.Count": "int",
    "EndpointSettings.GlobalIPv6PrefixLen": "int",
    "EndpointSettings.GwPriority": "int",
    "EndpointSettings.IPPrefixLen": "int",
    "HealthcheckConfig.Interval": "time.Duration",
    "HealthcheckConfig.Retries": "int",
    "HealthcheckConfig.StartInterval": "time.Duration",
    "HealthcheckConfig.StartPeriod": "time.Duration",
    "HealthcheckConfig.Timeout": "time.Duration",
    "HostConfig.BlkioWeight": "uint16",
    "HostConfig.Cgroup": "container.CgroupSpec",
    "HostConfig.CgroupnsMode": "container.CgroupnsMode",
    "HostConfig.ConsoleSize": "uint",
    "HostConfig.IOMaximumBandwidth": "uint64",
    "HostConfig.IOMaximumIOps": "uint64",
    "HostConfig.IpcMode": "container.IpcMode",
    "HostConfig.Isolation": "container.Isolation",
    "HostConfig.NetworkMode": "container.NetworkMode",
    "HostConfig.OomScoreAdj": "int",
    "HostConfig.PidMode": "container.PidMode",
    "HostConfig.PortBindings": "nat.PortMap",
    "HostConfig.UTSMode": "container.UTSMode",
    "HostConfig.UsernsMode": "container.UsernsMode",
    "CreateRequest.StopTimeout": "int",
    "Mount.Consistency": "mount.Consistency",
    "Mount.Type": "mount.Type",
    "RestartPolicy.MaximumRetryCount": "int",
    "RestartPolicy.Name": "container.RestartPolicyMode",
    "ThrottleDevice.Rate": "uint64",
    "TmpfsOptions.Mode": "fs.FileMode",
    "UpdateConfig.BlkioWeight": "uint16",
    "WeightDevice.Weight": "uint16",
}
"""The types of fields that are not what their Python type would be in Go."""


def complaint(value: Any, hint: Any) -> str | None:
    """Go's complaint about the first value that is not of the type that ``hint`` asks for; None if there is none.

    ``value`` is decoded JSON, ``hint`` one of :mod:`seacan.engine.config`'s models.
    """
    return next(_complaints(value, hint, "", ()), None)


def _complaints(value: Any, hint: Any, struct: str, path: tuple[str, ...]) -> Iterator[str]:
    hint, strslice = _bare(hint)
    if value is None or hint is Any:
        return
    origin = typing.get_origin(hint) or hint
    if strslice:  # it is tried as a list, and then as a string
        if not isinstance(value, str) and not (isinstance(value, list) and all(isinstance(i, str) for i in value)):
            yield f"json: cannot unmarshal {_kind(value)} into Go value of type string"
    elif origin is list and isinstance(value, list):
        for item in value:
            yield from _complaints(item, typing.get_args(hint)[0], struct, path)
    elif origin is dict and isinstance(value, dict):
        for item in value.values():
            yield from _complaints(item, typing.get_args(hint)[1], struct, path)
    elif issubclass(origin, msgspec.Struct) and isinstance(value, dict):
        members = _members(origin)
        for key, item in value.items():
            if (member := members.get(key.lower())) is not None:
                inner = (*path, *_embedding(origin, member[0]), member[0])
                yield from _complaints(item, member[1], _go_type(origin).rpartition(".")[2], inner)
    elif not _fits(value, origin):
        kind = _kind(value)
        if origin is int and isinstance(value, int | float) and not isinstance(value, bool):
            kind = f"number {value}"
        where = f"Go struct field {struct}.{'.'.join(path)}" if path else "Go value"
        named = _FIELDS.get(f"{struct}.{path[-1]}") if path and origin is not list and hint != _EMPTY else None
        yield f"json: cannot unmarshal {kind} into {where} of type {named or _go_type(hint)}"


def _bare(hint: Any) -> tuple[Any, bool]:
    """``hint`` without None, and whether it is Docker's strslice."""
    strslice = False
    if typing.get_origin(hint) is Annotated:
        strslice = any((getattr(meta, "extra", None) or {}).get("strslice") for meta in hint.__metadata__)
        hint = hint.__origin__
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(argument for argument in typing.get_args(hint) if argument is not type(None))
    return hint, strslice


@functools.cache
def _members(model: type[msgspec.Struct]) -> dict[str, tuple[str, Any]]:
    """Small letters → a field's name in JSON, and its type."""
    hints = typing.get_type_hints(model, include_extras=True)
    return {
        encoded.lower(): (encoded, hints[name])
        for name, encoded in zip(model.__struct_fields__, model.__struct_encode_fields__, strict=True)
    }


def _embedding(model: type[msgspec.Struct], field: str) -> tuple[str, ...]:
    """The struct embedded in ``model`` that ``field`` is of in Go, if it is."""
    name = _EMBEDDED.get(model.__name__)
    if name is None:
        return ()
    base = model.__base__
    inherited: Collection[str] = getattr(base, "__struct_encode_fields__", ())
    return (name,) if (field in inherited if inherited else field not in _OWN) else ()


def _fits(value: Any, kind: type) -> bool:
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and value in INT64
    return isinstance(value, kind)


def _kind(value: Any) -> str:
    for kind, word in ((str, "string"), (bool, "bool"), (dict, "object"), (list, "array")):
        if isinstance(value, kind):
            return word
    return "number"


def _go_type(hint: Any) -> str:
    hint, _ = _bare(hint)
    origin = typing.get_origin(hint) or hint
    if origin is list:
        return f"[]{_go_type(typing.get_args(hint)[0])}"
    if origin is dict:
        if hint == _EMPTY:
            return "struct {}"
        element = typing.get_args(hint)[1]
        pointer = "*" if type(None) in typing.get_args(element) and typing.get_origin(_bare(element)[0]) is None else ""
        return f"map[string]{pointer}{_go_type(element)}"
    if issubclass(origin, msgspec.Struct):
        return _STRUCTS.get(origin.__name__, f"container.{origin.__name__}")
    return {str: "string", bool: "bool", int: "int64"}[origin]
