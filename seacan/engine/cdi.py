"""CDI, the Container Device Interface: devices of vendors, described in files by what a container needs to use them.

A file says it in JSON or YAML (https://github.com/cncf-tags/container-device-interface, SPEC.md, versions 0.3 to 1.1):
for each device, and for all of the file's together, edits of the OCI configuration. :func:`scan` reads folders of them,
:func:`edit` applies what was found. Which requests of a client are for CDI is :mod:`seacan.engine.devices`.

Files belong to root, so they are trusted; a bad one is reported and spoils nothing but its own devices. Errors are in
the words of the CDI library that dockerd uses.
"""

from __future__ import annotations

import functools
import json
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

import msgspec

from seacan.errors import InvalidParameter, System
from seacan.runtime.spec import (
    Device,
    Hook,
    Hooks,
    Linux,
    LinuxDeviceCgroup,
    LinuxIntelRdt,
    LinuxNetDevice,
    LinuxResources,
    Mount,
    Process,
    Spec,
)

_Uint32 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]
_NAME: Final = re.compile(r"[A-Za-z](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?")
_DEVICE_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.:-]*[A-Za-z0-9])?")
_VERSIONS: Final = ("0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0")
_HOOKS: Final = {
    "prestart": "prestart",
    "createRuntime": "create_runtime",
    "createContainer": "create_container",
    "startContainer": "start_container",
    "poststart": "poststart",
    "poststop": "poststop",
}
"""The specification's name of a hook → the member of :class:`seacan.runtime.spec.Hooks`."""


# --- what a file holds ------------------------------------------------------------------------------------------------


class _Part(msgspec.Struct, rename=lambda name: name.replace("_", ""), forbid_unknown_fields=True):
    """Keys are compared without regard to case, as Go does: the specification itself writes one in two ways."""


class DeviceNode(_Part):
    path: str
    host_path: str = ""
    type: str = ""
    major: int = 0
    minor: int = 0
    file_mode: _Uint32 | None = None
    permissions: str = ""
    uid: _Uint32 | None = None
    gid: _Uint32 | None = None


class NetDevice(_Part):
    host_interface_name: str = ""
    name: str = ""


class HostMount(_Part):
    host_path: str = ""
    container_path: str = ""
    options: list[str] = []
    type: str = ""


class NamedHook(_Part):
    hook_name: str = ""
    path: str = ""
    args: list[str] = []
    env: list[str] = []
    timeout: int | None = None


class IntelRdt(_Part):
    clos_id: str = ""
    l3_cache_schema: str = ""
    mem_bw_schema: str = ""
    schemata: list[str] = []
    enable_cmt: bool = False
    enable_mbm: bool = False
    enable_monitoring: bool = False


class Edits(_Part):
    """``containerEdits``"""

    env: list[str] = []
    device_nodes: list[DeviceNode] = []
    net_devices: list[NetDevice] = []
    hooks: list[NamedHook] = []
    mounts: list[HostMount] = []
    intel_rdt: IntelRdt | None = None
    additional_gids: list[_Uint32] = []


class Entry(_Part):
    """One of ``devices``."""

    name: str = ""
    annotations: dict[str, str] = {}
    container_edits: Edits = msgspec.field(default_factory=Edits)


class File(_Part):
    cdi_version: str = ""
    kind: str = ""
    annotations: dict[str, str] = {}
    devices: list[Entry] = []
    container_edits: Edits = msgspec.field(default_factory=Edits)


def parse(data: bytes, *, yaml: bool) -> File:
    """A CDI file's contents, checked. Raises InvalidParameter."""
    try:
        document = _yaml(data) if yaml else json.loads(data, object_pairs_hook=_object)
        if document is None:
            raise InvalidParameter("no Spec data")
        file = msgspec.convert(_plain(document), File)
    except (ValueError, RecursionError) as error:  # the one of msgspec, too
        raise InvalidParameter(f"failed to unmarshal CDI Spec: {' '.join(str(error).split())}") from None
    try:
        _check(file)
    except InvalidParameter as error:
        raise InvalidParameter(f"invalid CDI Spec: {error.message}") from None
    return file


def _object(pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f'key "{next(name for name in names if names.count(name) > 1)}" already set in map')
    return found


def _yaml(data: bytes) -> Any:
    """One YAML document without keys given twice. Raises ValueError."""
    import yaml  # 25 ms that only those need who have such files

    class Loader(yaml.SafeLoader):
        """SafeLoader, but strict about keys."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            self.flatten_mapping(node)
            pairs = [(self.construct_object(k, deep=True), self.construct_object(v, deep=True)) for k, v in node.value]
            return _object(pairs)

    Loader.add_constructor("tag:yaml.org,2002:map", Loader.construct_mapping)
    try:
        return yaml.load(data, Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, TypeError) as error:
        raise ValueError(f"error converting YAML to JSON: {error}") from None


def _plain(value: Any, *, annotations: bool = False) -> Any:
    """What was parsed with keys in lower case, without nulls, and with names that look like numbers as text."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    if annotations:
        return {str(key): item for key, item in value.items()}
    found = {}
    for key, item in value.items():
        name = str(key).lower()
        if name in ("name", "cdiversion") and isinstance(item, int | float) and not isinstance(item, bool):
            item = str(item)
        if item is not None:
            found[name] = _plain(item, annotations=name == "annotations")
    return found


# --- what makes a file good -------------------------------------------------------------------------------------------


def qualified(name: str) -> bool:
    """Whether this is the full name of a CDI device, ``vendor.com/class=name``."""
    kind, _, device = name.partition("=")
    vendor, _, class_ = kind.partition("/")
    return bool(_NAME.fullmatch(vendor) and _NAME.fullmatch(class_) and _DEVICE_NAME.fullmatch(device))


def _check(file: File) -> None:
    version = file.cdi_version.removeprefix("v")
    if version not in _VERSIONS:
        raise InvalidParameter(f'invalid version "{file.cdi_version}"')
    needed = _needed(file)
    if _VERSIONS.index(version) < _VERSIONS.index(needed):
        raise InvalidParameter(f"the spec version must be at least v{needed}")
    vendor, slash, class_ = file.kind.partition("/")
    _check_name("vendor", vendor if slash and class_ else "")
    _check_name("class", class_)
    _check_edits(file.container_edits)
    seen = set()
    for device in file.devices:
        try:
            _check_device(device)
        except InvalidParameter as error:
            raise InvalidParameter(f'failed add device "{device.name}": {error.message}') from None
        if device.name in seen:
            raise InvalidParameter(f'invalid spec, multiple device "{device.name}"')
        seen.add(device.name)
    if not seen:
        raise InvalidParameter("invalid spec, no devices")


def _needed(file: File) -> str:
    """The oldest version of the specification that has all this file uses."""
    edits = [file.container_edits, *(device.container_edits for device in file.devices)]
    rdt = [one.intel_rdt for one in edits if one.intel_rdt]
    if any(one.net_devices for one in edits) or any(one.schemata or one.enable_monitoring for one in rdt):
        return "1.1.0"
    if rdt or any(one.additional_gids for one in edits):
        return "0.7.0"
    if file.annotations or any(one.annotations for one in file.devices) or "." in file.kind.partition("/")[2]:
        return "0.6.0"
    if any(node.host_path for one in edits for node in one.device_nodes):
        return "0.5.0"
    if any(device.name[:1].isdigit() for device in file.devices):
        return "0.5.0"
    if any(mount.type for one in edits for mount in one.mounts):
        return "0.4.0"
    return "0.3.0"


def _check_name(what: str, name: str) -> None:
    if _NAME.fullmatch(name):
        return
    bad = re.search(r"[^A-Za-z0-9_.-]", name[1:-1])
    if not name:
        reason = "empty name"
    elif not re.match(r"[A-Za-z]", name):
        reason = f'"{name}", should start with letter'
    elif bad:
        reason = f"invalid character '{bad[0]}' in name \"{name}\""
    else:
        reason = f'"{name}", should end with a letter or digit'
    raise InvalidParameter(f"invalid {what}. {reason}")


def _check_device(device: Entry) -> None:
    name = device.name
    if not _DEVICE_NAME.fullmatch(name):
        bad = re.search(r"[^A-Za-z0-9_.:-]", name[1:-1])
        if not name:
            raise InvalidParameter("invalid (empty) device name")
        if not re.match(r"[A-Za-z0-9]", name):
            raise InvalidParameter(f'invalid class "{name}", should start with a letter or digit')
        if bad:
            raise InvalidParameter(f"invalid character '{bad[0]}' in device name \"{name}\"")
        raise InvalidParameter(f'invalid name "{name}", should end with a letter or digit')
    if device.container_edits == Edits():
        raise InvalidParameter("invalid device, empty device edits")
    try:
        _check_edits(device.container_edits)
    except InvalidParameter as error:
        raise InvalidParameter(f'invalid device "{name}": {error.message}') from None


def _check_edits(edits: Edits) -> None:
    for variable in edits.env:
        _check_variable("container edits", variable)
    for node in edits.device_nodes:
        if not node.path:
            raise InvalidParameter("invalid (empty) device path")
        if node.type not in ("", "b", "c", "u", "p"):
            raise InvalidParameter(f'device "{node.path}": invalid type "{node.type}"')
        if set(node.permissions) - set("rwm"):
            raise InvalidParameter(f'device "{node.path}": invalid permissions "{node.permissions}"')
    for hook in edits.hooks:
        if hook.hook_name not in _HOOKS:
            raise InvalidParameter(f'invalid hook name "{hook.hook_name}"')
        if not hook.path:
            raise InvalidParameter(f'invalid hook "{hook.hook_name}" with empty path')
        for variable in hook.env:
            _check_variable(f'hook "{hook.hook_name}"', variable)
    for mount in edits.mounts:
        if not mount.host_path:
            raise InvalidParameter("invalid mount, empty host path")
        if not mount.container_path:
            raise InvalidParameter("invalid mount, empty container path")
    closed = edits.intel_rdt.clos_id if edits.intel_rdt else ""
    if closed != "/" and (len(closed) >= 4096 or closed in (".", "..") or set(closed) & set("/\n")):
        raise InvalidParameter("invalid ClosID")
    _check_interfaces(edits.net_devices)


def _check_variable(where: str, variable: str) -> None:
    if variable.find("=") <= 0:
        raise InvalidParameter(f'invalid {where}: invalid environment variable "{variable}"')


def _check_interfaces(devices: Sequence[NetDevice]) -> None:
    outside: dict[str, str] = {}
    inside: dict[str, str] = {}
    for device in devices:
        host, name = device.host_interface_name, device.name
        if not host or not name:
            raise InvalidParameter(f"invalid linux net device, empty {'Name' if host else 'HostInterfaceName'}")
        if host in outside:
            raise InvalidParameter(
                f'invalid linux net device, duplicate HostInterfaceName "{host}" with names "{name}" and '
                f'"{outside[host]}"'
            )
        if name in inside:
            raise InvalidParameter(
                f'invalid linux net device, duplicate Name "{name}" with HostInterfaceName "{host}" and '
                f'"{inside[name]}"'
            )
        outside[host], inside[name] = name, host


# --- folders of files -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """One device, and where it is described. ``priority`` is the place of its folder among the folders."""

    path: str
    priority: int
    file: File
    device: Entry


@dataclass(frozen=True)
class Registry:
    """What the files of some folders say: devices by full name, and by path what is wrong with files."""

    devices: Mapping[str, Found] = field(default_factory=dict)
    errors: Mapping[str, Sequence[str]] = field(default_factory=dict)


def scan(folders: Iterable[str]) -> Registry:
    """Read the CDI files of folders, of which later ones go before earlier ones.

    A device that two files of one folder describe is not there, and both files are reported.
    """
    devices: dict[str, Found] = {}
    errors: dict[str, list[str]] = {}
    conflicts = set()
    for priority, folder in enumerate(map(os.path.normpath, folders)):
        for path in _files(folder, errors):
            try:
                file = _read(path)
            except InvalidParameter as error:
                errors.setdefault(path, []).append(f"failed to load CDI Spec {error.message}")
                continue
            for device in file.devices:
                name = f"{file.kind}={device.name}"
                other = devices.get(name)
                if other is not None and other.priority == priority:
                    for where in (path, other.path):
                        errors.setdefault(where, []).append(
                            f'conflicting device "{name}" (specs "{path}", "{other.path}")'
                        )
                    conflicts.add(name)
                    continue
                devices[name] = Found(path, priority, file, device)
    return Registry({name: devices[name] for name in sorted(devices) if name not in conflicts}, errors)


def _files(folder: str, errors: dict[str, list[str]]) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            found = [entry.path for entry in entries if entry.name.endswith((".json", ".yaml")) and not entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        errors[folder] = [f"failed to read CDI Spec directory: {error.strerror}"]
        return []
    return sorted(found)


def _read(path: str) -> File:
    """A file's contents, remembered for as long as it does not change. Raises InvalidParameter."""
    try:
        now = os.stat(path)
        parsed = _parsed(path, (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns))
    except OSError as error:
        raise InvalidParameter(f'failed to read CDI Spec "{path}": {error.strerror}') from None
    if isinstance(parsed, str):
        raise InvalidParameter(parsed)
    return parsed


@functools.lru_cache(maxsize=256)
def _parsed(path: str, version: tuple[int, ...]) -> File | str:
    """What the file holds, or why it holds nothing. ``version`` is only there to tell it from what it held before."""
    with open(path, "rb") as file:
        data = file.read()
    try:
        return parse(data, yaml=path.endswith(".yaml"))
    except InvalidParameter as error:
        if error.message.startswith("invalid CDI Spec"):
            return error.message
        return f'failed to parse CDI Spec "{path}": {error.message}'


# --- edits ------------------------------------------------------------------------------------------------------------


def inject(spec: Spec, registry: Registry, names: Sequence[str]) -> None:
    """Give a container the devices of these names: first what their files say for all, then each one's own.

    Mounts are added in the order of depth, so that none hides another. Raises InvalidParameter for names that are
    not known, System for a device that the host does not have.
    """
    unknown = [name for name in names if name not in registry.devices]
    if unknown:
        raise InvalidParameter(f"unresolvable CDI devices {', '.join(unknown)}")
    edits: list[Edits] = []
    files = set()
    for found in (registry.devices[name] for name in names):
        if found.path not in files:
            files.add(found.path)
            edits.append(found.file.container_edits)
        edits.append(found.device.container_edits)
    try:
        for one in edits:
            _apply(spec, one)
    except System as error:
        raise System(f"failed to inject devices: {error.message}") from None


def _apply(spec: Spec, edits: Edits) -> None:
    process = spec.process = spec.process or Process()
    linux = spec.linux = spec.linux or Linux()
    _set_variables(process, edits.env)
    for node in edits.device_nodes:
        _add_device(linux, process, node)
    for device in edits.net_devices:
        linux.net_devices[device.host_interface_name] = LinuxNetDevice(name=device.name)
    if edits.mounts:
        inside = {mount.container_path for mount in edits.mounts}
        spec.mounts = [mount for mount in spec.mounts if mount.destination not in inside]
        spec.mounts += [
            Mount(mount.container_path, mount.type, mount.host_path, list(mount.options)) for mount in edits.mounts
        ]
        spec.mounts.sort(key=lambda mount: os.path.normpath(mount.destination).count("/"))
    for hook in edits.hooks:
        spec.hooks = spec.hooks or Hooks()
        getattr(spec.hooks, _HOOKS[hook.hook_name]).append(
            Hook(path=hook.path, args=list(hook.args), env=list(hook.env), timeout=hook.timeout)
        )
    if edits.intel_rdt is not None:
        linux.intel_rdt = LinuxIntelRdt(**msgspec.structs.asdict(edits.intel_rdt))
    user = process.user
    user.additional_gids += [gid for gid in edits.additional_gids if gid and gid not in user.additional_gids]


def _set_variables(process: Process, variables: Iterable[str]) -> None:
    """Set environment variables, in the place of those that have the name already."""
    places = {variable.partition("=")[0]: place for place, variable in enumerate(process.env)}
    for variable in variables:
        name = variable.partition("=")[0]
        if name in places:
            process.env[places[name]] = variable
        else:
            places[name] = len(process.env)
            process.env.append(variable)


def _add_device(linux: Linux, process: Process, node: DeviceNode) -> None:
    """A device node belongs to the container's user where the file does not say whose it is."""
    kind, major, minor = _identify(node)
    device = Device(
        path=node.path,
        type=kind,
        major=major,
        minor=minor,
        file_mode=node.file_mode,
        uid=process.user.uid or None if node.uid is None else node.uid,
        gid=process.user.gid or None if node.gid is None else node.gid,
    )
    linux.devices = [*(other for other in linux.devices if other.path != node.path), device]
    if kind in ("b", "c"):
        limits = linux.resources = linux.resources or LinuxResources()
        access = node.permissions or "rwm"
        limits.devices.append(LinuxDeviceCgroup(allow=True, type=kind, major=major, minor=minor, access=access))


def _identify(node: DeviceNode) -> tuple[str, int, int]:
    """Type and numbers of a device, asked of the host where the file does not give them. Raises System."""
    if node.type and (node.major or node.type == "p"):
        return node.type, node.major, node.minor
    path = node.host_path or node.path
    try:
        information = os.lstat(path)
    except OSError as error:
        raise System(f'failed to stat CDI host device "{path}": {(error.strerror or "").lower()}') from error
    kinds = {stat.S_IFBLK: "b", stat.S_IFCHR: "c", stat.S_IFIFO: "p"}
    kind = kinds.get(stat.S_IFMT(information.st_mode))
    if kind is None:
        raise System(f'failed to stat CDI host device "{path}": not a device node')
    if node.type and node.type != kind:
        raise System(f'CDI device ("{node.path}", "{path}"), host type mismatch ({node.type}, {kind})')
    if node.major or kind == "p":
        return kind, node.major, node.minor
    return kind, os.major(information.st_rdev), os.minor(information.st_rdev)
