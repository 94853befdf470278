"""From what Docker was asked for to what a runtime is told: the OCI configuration of a container, as dockerd writes it.

Pure functions of Docker's types and of facts about the host; what changes from start to start (addresses of files,
pids of containers whose namespaces are joined) comes in :class:`Sources`. Nothing is created or mounted here.
Validation of what a client sends is :mod:`seacan.engine.verify`.
"""

from __future__ import annotations

import functools
import os
import posixpath
import re
import shutil
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from seacan.engine import devices as device_requests
from seacan.engine import remap, users
from seacan.engine.config import ContainerConfig, DeviceMapping, ExecConfig, HostConfig, Resources, ThrottleDevice
from seacan.engine.host import Host, host
from seacan.engine.mounts import MountPoint, tmpfs_data
from seacan.engine.options import EngineOptions
from seacan.engine.profiles import DEVICE_RULES, MOUNTS, PATH, READONLY_PATHS, apparmor, masked_paths, selinux
from seacan.engine.profiles import capabilities as caps
from seacan.engine.profiles import seccomp as seccomp_profiles
from seacan.engine.verify import (
    SecurityOptions,
    is_builtin_runtime,
    merge_update,
    security_options,
    unlabelled,
    verify,
)
from seacan.errors import InvalidParameter, System
from seacan.linux import seccomp
from seacan.runtime.bundle import DirectoryRoot, OverlayRoot, Rootfs
from seacan.runtime.bundle import Mapping as IDMappings
from seacan.runtime.spec import (
    Box,
    Capabilities,
    Device,
    Linux,
    LinuxBlockIO,
    LinuxCPU,
    LinuxDeviceCgroup,
    LinuxMemory,
    LinuxNamespace,
    LinuxPids,
    LinuxResources,
    LinuxSeccomp,
    LinuxThrottleDevice,
    LinuxWeightDevice,
    Mount,
    Process,
    Rlimit,
    Root,
    Spec,
)
from seacan.volumes import local

if TYPE_CHECKING:
    from seacan.engine.container import Container, Record
    from seacan.engine.engine import Engine

__all__ = [
    "MASKED_PATHS",
    "READONLY_PATHS",
    "Built",
    "Sources",
    "build",
    "exec_process",
    "merge_update",
    "resources",
    "security_of",
    "unlabelled",
    "verify",
]

MASKED_PATHS = masked_paths()
OCI_VERSION = "1.2.1"
DEFAULT_PROPAGATION = "rprivate"
INIT_PATH = "/sbin/docker-init"
"""Where ``--init`` puts the init inside the container."""
_UNLIMITED = (1 << 64) - 1
NETWORK_FILES = ("/etc/resolv.conf", "/etc/hostname", "/etc/hosts")
_PING = "net.ipv4.ping_group_range"
_DEVICE_RULE = re.compile(r"([acb]) ([0-9]+|\*):([0-9]+|\*) ([rwm]{1,3})")


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What a start knows and a container's record does not.

    ``rootfs`` has the mappings of the container's user namespace, if it gets one. ``joined`` names the init of the
    container whose "network", "ipc" or "pid" namespace is joined. ``images`` has the root filesystem of each image that
    is mounted, by destination.
    """

    rootfs: Rootfs
    resolv_conf: str | None = None
    hostname: str | None = None
    hosts: str | None = None
    joined: Mapping[str, int] = field(default_factory=dict)
    images: Mapping[str, Rootfs] = field(default_factory=dict)
    foreign: Collection[str] = ()
    """Destinations of mounts whose owners are not mapped: volumes with options are somebody else's, and the files of a
    build's step lie in memory, where mounts can be mapped since Linux 6.3 only."""


@dataclass(frozen=True)
class Built:
    """``seccomp`` is the path of the compiled filter (then the configuration has none), or None."""

    spec: Spec
    seccomp: str | None
    security: SecurityOptions


def build(record: Record, options: EngineOptions, sources: Sources, facts: Host | None = None) -> Built:
    """The OCI configuration of a container, complete.

    Raises System (dockerd: any failure here is the server's) in dockerd's words, Unsupported for what this engine
    cannot do.
    """
    facts = facts or host()
    config, host_config = record.config, record.host_config
    security = security_of(record, options)
    process = _process(record, options, security, sources.rootfs)
    linux = _linux(record, options, facts, sources.rootfs.mapping)
    points = _mount_points(record)
    _namespaces(linux, host_config, sources)
    spec = Spec(
        oci_version=OCI_VERSION,
        process=process,
        root=Root(path="rootfs", readonly=host_config.readonly_rootfs),
        hostname="" if host_config.uts_mode == "host" else config.hostname,
        domainname="" if host_config.uts_mode == "host" else config.domainname,
        linux=linux,
        annotations=dict(host_config.annotations or {}),
    )
    spec.mounts = list(MOUNTS)
    device_requests.inject(spec, host_config.device_requests or (), options)
    spec.mounts = _mounts(spec, record, options, sources, points, security, facts)
    linux.mount_label = security.mount_label
    profile = _seccomp(host_config, options, security, process, facts)
    compiled = None
    if profile is not None:
        if profile.flags or any(rule.action == "SCMP_ACT_NOTIFY" for rule in profile.syscalls):
            linux.seccomp = profile  # needs more than a program: the runtime's own business
        elif options.exec_root and is_builtin_runtime(host_config.runtime, options):
            compiled = _compiled(profile, f"{options.exec_root}/seccomp")
        else:
            linux.seccomp = profile
    return Built(spec, compiled, security)


def spawns(built: Built) -> bool:
    """Whether the container's execs can be spawned: see :class:`seacan.runtime.bundle.ShimConfig`."""
    process = built.spec.process
    limits = process.capabilities if process is not None else None
    traces = limits is None or "CAP_SYS_PTRACE" in limits.bounding
    return not traces and (built.seccomp is None or built.seccomp.endswith(seccomp.SPAWN))


def shares_keyring(built: Built) -> bool:
    """Whether the container's processes can inherit their keyring: see :class:`seacan.runtime.bundle.ShimConfig`."""
    return not built.security.process_label


def security_of(record: Record, options: EngineOptions) -> SecurityOptions:
    """A container's security options. Raises InvalidParameter in dockerd's words."""
    return security_options(record.host_config, options, record.categories or selinux.categories(record.id))


def seen(rootfs: Rootfs, record: Record, options: EngineOptions, mapping: IDMappings | None) -> Rootfs:
    """A root file system as a container is to see it: its owners, and its files' SELinux label."""
    rootfs = msgspec.structs.replace(rootfs, mapping=remap.of(mapping, record.host_config))
    label = security_of(record, options).mount_label
    if label and isinstance(rootfs, OverlayRoot):
        return msgspec.structs.replace(rootfs, options=(*rootfs.options, f"context={label}"))
    return rootfs


def apparmor_profile(record: Record, options: EngineOptions) -> str:
    """The AppArmor profile that a container is confined by; empty where the host has no AppArmor, or nothing to load
    the default one with."""
    if not apparmor.supported():
        return ""
    chosen = security_of(record, options).apparmor
    if chosen or record.host_config.privileged:
        return chosen or apparmor.UNCONFINED
    return apparmor.DEFAULT if apparmor.obtainable() else ""


# --- the process ---------------------------------------------------------------------------------------------------


def _process(record: Record, options: EngineOptions, security: SecurityOptions, rootfs: Rootfs) -> Process:
    config, host_config = record.config, record.host_config
    args = [record.path, *record.args]
    if _wants_init(host_config, options):
        args = [INIT_PATH, "--", *args]
    try:
        account = users.resolve(config.user, rootfs, host_config.group_add or ())
    except InvalidParameter as error:
        raise System(error.message) from error
    process = Process(
        cwd=config.working_dir or "/",
        args=args,
        env=environment(config, tty=config.tty),
        user=account.user(),
        terminal=config.tty,
        capabilities=_capabilities(host_config),
        rlimits=rlimits(host_config, options),
        no_new_privileges=security.no_new_privileges,
        apparmor_profile=_apparmor(record, options),
        selinux_label=security.process_label,
        oom_score_adj=host_config.oom_score_adj,
    )
    if config.tty and any(host_config.console_size):
        process.console_size = Box(height=host_config.console_size[0], width=host_config.console_size[1])
    return process


def _wants_init(host_config: HostConfig, options: EngineOptions) -> bool:
    if host_config.pid_mode == "host" or host_config.pid_mode.startswith("container:"):
        return False
    return options.init if host_config.init is None else host_config.init


def environment(config: ContainerConfig, *, tty: bool, more: Sequence[str] = ()) -> list[str]:
    """Docker's own variables, overridden by the container's, overridden by ``more``.

    A variable without "=" removes the one of that name.
    """
    variables = {"PATH": f"PATH={PATH}", "HOSTNAME": f"HOSTNAME={config.hostname}"}
    if tty:
        variables["TERM"] = "TERM=xterm"
    for variable in (*(config.env or ()), *more):
        name, equals, _ = variable.partition("=")
        if equals:
            variables[name] = variable
        else:
            variables.pop(name, None)
    return list(variables.values())


def _capabilities(host_config: HostConfig) -> Capabilities:
    names = caps.resolve(host_config.cap_add or (), host_config.cap_drop or (), privileged=host_config.privileged)
    return Capabilities(bounding=names, effective=names, permitted=names)


def rlimits(host_config: HostConfig, options: EngineOptions) -> list[Rlimit]:
    """``--ulimit``, and the engine's defaults for what it does not name."""
    wanted = {limit.name: limit for limit in host_config.ulimits or []}
    return [
        Rlimit(type=f"RLIMIT_{name.upper()}", hard=limit.hard & _UNLIMITED, soft=limit.soft & _UNLIMITED)
        for name, limit in {**wanted, **{n: u for n, u in options.default_ulimits.items() if n not in wanted}}.items()
    ]


def _apparmor(record: Record, options: EngineOptions) -> str:
    profile = apparmor_profile(record, options)
    if profile == apparmor.DEFAULT:
        apparmor.ensure_default()
    return profile


async def exec_process(
    engine: Engine, container: Container, config: ExecConfig, console_size: tuple[int, int] | None = None
) -> Process:
    """The OCI process of a ``docker exec``; ``console_size`` is height and width.

    Raises InvalidParameter when the user is not in the container.
    """
    record, options = container.record, engine.options
    host_config = record.host_config
    security = security_of(record, options)
    rootfs = engine.snapshots.rootfs(container.id)
    account = users.resolve(config.user or record.config.user, rootfs, host_config.group_add or ())
    process = Process(
        cwd=config.working_dir or record.config.working_dir or "/",
        args=list(config.cmd or ()),
        env=environment(record.config, tty=config.tty, more=config.env or ()),
        user=account.user(),
        terminal=config.tty,
        capabilities=_capabilities(host_config),
        rlimits=rlimits(host_config, options),
        no_new_privileges=security.no_new_privileges,
        apparmor_profile=_apparmor(record, options),
        selinux_label=security.process_label,
        oom_score_adj=host_config.oom_score_adj,
    )
    if config.privileged:
        everything = list(caps.available())
        process.capabilities = Capabilities(bounding=everything, effective=everything, permitted=everything)
    size = console_size or (tuple(config.console_size[:2]) if config.console_size else None)
    if config.tty and size is not None and any(size):
        process.console_size = Box(height=size[0], width=size[1])
    return process


# --- namespaces, devices, limits --------------------------------------------------------------------------------------


def _linux(record: Record, options: EngineOptions, facts: Host, mapping: IDMappings | None) -> Linux:
    host_config = record.host_config
    limits = resources_of(host_config)
    devices, rules = _devices(host_config)
    limits.devices = rules
    linux = Linux(
        resources=limits,
        devices=devices,
        cgroups_path=cgroups_path(record, options),
        sysctl=_sysctls(record, mapping),
    )
    if not host_config.privileged:
        linux.masked_paths = list(MASKED_PATHS)
        linux.readonly_paths = list(READONLY_PATHS)
    if host_config.masked_paths is not None:
        linux.masked_paths = list(host_config.masked_paths)
    if host_config.readonly_paths is not None:
        linux.readonly_paths = list(host_config.readonly_paths)
    return linux


def cgroups_path(record: Record, options: EngineOptions) -> str:
    """Absolute, below the parent asked for; a parent cannot climb out of the hierarchy."""
    parent = record.host_config.cgroup_parent or options.cgroup_parent
    return posixpath.join(posixpath.normpath("/" + parent.lstrip("/")), record.id)


def _namespaces(linux: Linux, host_config: HostConfig, sources: Sources) -> None:
    joined = sources.joined

    def add(kind: str, word: str, mode: str) -> None:
        if mode == "host":
            return
        path = ""
        if mode.startswith("container:"):
            pid = joined.get(kind)
            if pid is None:
                raise System(f"failed to join {word} namespace: no process of container {mode[10:]} is known")
            path = f"/proc/{pid}/ns/{'net' if kind == 'network' else kind}"
        linux.namespaces.append(LinuxNamespace(type=kind, path=path))

    linux.namespaces = [LinuxNamespace(type="mount")]
    add("network", "network", host_config.network_mode)
    add("uts", "UTS", host_config.uts_mode)
    add("pid", "PID", host_config.pid_mode)
    add("ipc", "IPC", host_config.ipc_mode)
    if host_config.cgroupns_mode == "private":
        linux.namespaces.append(LinuxNamespace(type="cgroup"))
    if sources.rootfs.mapping is not None:
        # Namespaces belong to user namespaces: who joins another container's joins its users, too.
        linux.namespaces.append(LinuxNamespace(type="user", path=_joined_users(joined)))
        linux.uid_mappings = remap.id_mappings(sources.rootfs.mapping.uids)
        linux.gid_mappings = remap.id_mappings(sources.rootfs.mapping.gids)


def _joined_users(joined: Mapping[str, int]) -> str:
    """The user namespace that those of ``joined`` belong to, empty if none is joined. Raises System."""
    found: dict[int, str] = {}
    for kind, pid in joined.items():
        path = f"/proc/{pid}/ns/user"
        try:
            inode = os.stat(path).st_ino
        except OSError as error:
            raise System(f"failed to join {kind} namespace: {path}: {error.strerror}") from error
        if inode == os.stat("/proc/self/ns/user").st_ino:
            raise System(
                f"cannot join the {kind} namespace of a container in the host's user namespace "
                "when user namespaces are enabled: use --userns=host"
            )
        found[inode] = path
    if len(found) > 1:
        raise System("cannot join namespaces of containers with different user namespaces")
    return next(iter(found.values()), "")


def _sysctls(record: Record, mapping: IDMappings | None) -> dict[str, str]:
    mode = record.host_config.network_mode
    found: dict[str, str] = {}
    if mode != "host" and not mode.startswith("container:"):
        found.update(_network_sysctls())
        if mapping is not None and _PING in found:
            # Both ends must be groups of the user namespace; a range is one of the host's, so it ends with the first.
            found[_PING] = f"0 {mapping.gids[0].size - 1}"
    found.update(record.host_config.sysctls or {})
    return found


@functools.cache
def _network_sysctls() -> dict[str, str]:
    """So that nobody needs a capability for ping or for a port below 1024."""
    wanted = {_PING: "0 2147483647", "net.ipv4.ip_unprivileged_port_start": "0"}
    return {name: value for name, value in wanted.items() if os.path.exists("/proc/sys/" + name.replace(".", "/"))}


def _devices(host_config: HostConfig) -> tuple[list[Device], list[LinuxDeviceCgroup]]:
    devices: list[Device] = []
    if host_config.privileged:
        devices.extend(_host_devices())
        for mapping in host_config.devices or []:
            if mapping.path_on_host != mapping.path_in_container:
                devices.extend(device for device, _ in _mapped(mapping))
        return devices, [*DEVICE_RULES, LinuxDeviceCgroup(allow=True, access="rwm")]
    rules = list(DEVICE_RULES)
    for mapping in host_config.devices or []:
        for device, rule in _mapped(mapping):
            devices.append(device)
            rules.append(rule)
    rules.extend(device_rule(text) for text in host_config.device_cgroup_rules or [])
    return devices, rules


def device_rule(text: str) -> LinuxDeviceCgroup:
    """One ``--device-cgroup-rule``. Raises System in dockerd's words."""
    match = _DEVICE_RULE.fullmatch(text)
    if match is None:
        raise System(f"invalid device cgroup rule format: '{text}'")
    major, minor = (-1 if number == "*" else int(number) for number in match.group(2, 3))
    return LinuxDeviceCgroup(allow=True, type=match[1], major=major, minor=minor, access=match[4])


def _mapped(mapping: DeviceMapping) -> Iterable[tuple[Device, LinuxDeviceCgroup]]:
    """The device a ``--device`` names, or all those of a folder. Raises System in dockerd's words."""
    source = os.path.realpath(mapping.path_on_host)
    inside = mapping.path_in_container or mapping.path_on_host
    found: list[Device] = []
    failure = "not a device node"
    try:
        information = os.stat(source, follow_symlinks=False)
        if stat.S_ISDIR(information.st_mode):
            for folder, _, names in os.walk(source):
                for name in sorted(names):
                    path = f"{folder}/{name}"
                    device = _device(path, inside + path[len(source) :])
                    if device is not None:
                        found.append(device)
        else:
            device = _device(source, inside)
            if device is not None:
                found.append(device)
    except OSError as error:
        failure = (error.strerror or "").lower()
    if not found:
        raise System(
            f'error gathering device information while adding custom device "{mapping.path_on_host}": {failure}'
        )
    access = mapping.cgroup_permissions
    return [
        (
            device,
            LinuxDeviceCgroup(allow=True, type=device.type, major=device.major, minor=device.minor, access=access),
        )
        for device in found
    ]


def _device(path: str, inside: str) -> Device | None:
    try:
        information = os.lstat(path)
    except FileNotFoundError:
        return None
    kind = stat.S_IFMT(information.st_mode)
    letter = {stat.S_IFCHR: "c", stat.S_IFBLK: "b"}.get(kind)
    if letter is None:
        return None
    return Device(
        path=inside,
        type=letter,
        major=os.major(information.st_rdev),
        minor=os.minor(information.st_rdev),
        file_mode=stat.S_IMODE(information.st_mode),
        uid=information.st_uid,
        gid=information.st_gid,
    )


def _host_devices() -> list[Device]:
    """All of /dev but what a container has of its own."""
    found = []
    for folder, folders, names in os.walk("/dev"):
        folders[:] = sorted(set(folders) - {"pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"})
        for name in sorted(names):
            path = f"{folder}/{name}"
            if name == "console":
                continue
            device = _device(path, path)
            if device is not None:
                found.append(device)
    return found


def resources_of(asked: Resources) -> LinuxResources:
    """The limits of a container that is being made."""
    memory = LinuxMemory(
        limit=asked.memory if asked.memory > 0 else None,
        reservation=asked.memory_reservation if asked.memory_reservation > 0 else None,
        swap=asked.memory_swap if asked.memory_swap > 0 else None,
        swappiness=None if asked.memory_swappiness in (None, -1) else asked.memory_swappiness,
        disable_oom_killer=asked.oom_kill_disable,
    )
    return LinuxResources(
        memory=None if memory == LinuxMemory() else memory,
        cpu=_cpu(asked, period=asked.cpu_period, quota=asked.cpu_quota),
        pids=_pids(asked),
        block_io=_block_io(asked) or LinuxBlockIO(),
    )


def resources(asked: Resources, options: EngineOptions | None = None) -> LinuxResources:
    """The limits of a container that is running, for ``docker update``: what is zero is left as it is."""
    memory = LinuxMemory(
        limit=asked.memory or None,
        reservation=asked.memory_reservation or None,
        swap=asked.memory_swap if asked.memory_swap > 0 else None,
    )
    return LinuxResources(
        memory=None if memory == LinuxMemory() else memory,
        cpu=_cpu(asked, period=asked.cpu_period, quota=asked.cpu_quota),
        pids=_pids(asked),
        block_io=_block_io(asked),
    )


def _cpu(asked: Resources, *, period: int, quota: int) -> LinuxCPU | None:
    if asked.cpu_shares < 0:
        raise System(f"invalid CPU shares ({asked.cpu_shares}): value must be a positive integer")
    cpu = LinuxCPU(
        shares=asked.cpu_shares or None,
        cpus=asked.cpuset_cpus,
        mems=asked.cpuset_mems,
        realtime_period=asked.cpu_realtime_period or None,
        realtime_runtime=asked.cpu_realtime_runtime or None,
    )
    if asked.nano_cpus > 0:
        cpu.period = 100_000
        cpu.quota = asked.nano_cpus * 100_000 // 1_000_000_000
    if period:
        cpu.period = period
    if quota:
        cpu.quota = quota
    return None if cpu == LinuxCPU() else cpu


def _pids(asked: Resources) -> LinuxPids | None:
    if asked.pids_limit is None:
        return None
    return LinuxPids(limit=asked.pids_limit if asked.pids_limit > 0 else -1)


def _block_io(asked: Resources) -> LinuxBlockIO | None:
    block = LinuxBlockIO(
        weight=asked.blkio_weight or None,
        weight_device=[
            LinuxWeightDevice(*_numbers(device.path), weight=device.weight)
            for device in asked.blkio_weight_device or []
        ],
        throttle_read_bps_device=_throttles(asked.blkio_device_read_bps),
        throttle_write_bps_device=_throttles(asked.blkio_device_write_bps),
        throttle_read_iops_device=_throttles(asked.blkio_device_read_iops),
        throttle_write_iops_device=_throttles(asked.blkio_device_write_iops),
    )
    return None if block == LinuxBlockIO() else block


def _throttles(devices: Sequence[ThrottleDevice] | None) -> list[LinuxThrottleDevice]:
    return [LinuxThrottleDevice(*_numbers(device.path), rate=device.rate) for device in devices or []]


def _numbers(path: str) -> tuple[int, int]:
    try:
        number = os.stat(path).st_rdev
    except OSError as error:
        raise System(f"stat {path}: {(error.strerror or '').lower()}") from error
    return os.major(number), os.minor(number)


# --- mounts --------------------------------------------------------------------------------------------------------


def _mount_points(record: Record) -> list[MountPoint]:
    """What is mounted for the user, tmpfs first, then in the order of depth so that nothing hides what lies below
    it."""
    host_config = record.host_config
    points = [
        MountPoint(type="tmpfs", destination=destination, mode=data)
        for destination, data in (host_config.tmpfs or {}).items()
    ]
    taken = {posixpath.normpath(point.destination) for point in points}
    for point in record.mounts:
        if point.destination in taken:
            continue
        if point.type == "tmpfs":
            words = (["ro"] if not point.rw else []) + tmpfs_data(point.spec.tmpfs_options)
            points.append(MountPoint(type="tmpfs", destination=point.destination, mode=",".join(words)))
        else:
            points.append(point)
    return sorted(points, key=lambda point: posixpath.normpath(point.destination).count("/"))


def _mounts(
    spec: Spec,
    record: Record,
    options: EngineOptions,
    sources: Sources,
    points: Sequence[MountPoint],
    security: SecurityOptions,
    facts: Host,
) -> list[Mount]:
    host_config = record.host_config
    taken = {posixpath.normpath(point.destination) for point in points}
    shared_memory = _shared_memory(host_config, sources, taken)
    if shared_memory is not None:
        taken.add("/dev/shm")
    writable_cgroups = host_config.privileged if security.writable_cgroups is None else security.writable_cgroups
    mapped = sources.rootfs.mapping is not None
    mounts: list[Mount] = []
    for default in spec.mounts:
        where = default.destination
        if where in taken or ("/dev" in taken and where.startswith("/dev/")):
            continue
        extra: list[str] = []
        if where == "/dev/shm":
            if host_config.ipc_mode == "none":
                continue
            extra = [f"size={host_config.shm_size}"]
        writable = (where == "/sys" and host_config.privileged) or (where == "/sys/fs/cgroup" and writable_cgroups)
        if not extra and not writable:
            mounts.append(default)
            continue
        kept = [option for option in default.options if not (writable and option == "ro")]
        mounts.append(Mount(where, default.type, default.source, kept + extra))
    if _wants_init(host_config, options):
        mounts.append(Mount(INIT_PATH, "bind", _init_binary(options), ["bind", "ro"]))
    if shared_memory is not None:
        mounts.append(shared_memory)
    for point in points:
        if point.type == "tmpfs":
            mounts.append(_tmpfs(point))
        elif point.type == "image":
            image = _image(point, sources.images.get(point.destination))
            if mapped:
                image.options.append("idmap")
            mounts.append(image)
        else:
            bind = _bind(spec, point, options, facts)
            if mapped and point.type == "volume" and point.destination not in sources.foreign:
                bind.options.append("idmap")
            mounts.append(bind)
    mode = ["rbind", *_read_only(facts, options, host_config, not host_config.readonly_rootfs), DEFAULT_PROPAGATION]
    for destination, source in zip(NETWORK_FILES, (sources.resolv_conf, sources.hostname, sources.hosts), strict=True):
        if source is not None and destination not in taken:
            idmap = ["idmap"] if mapped and destination not in sources.foreign else []
            mounts.append(Mount(destination, "bind", source, [*mode, *idmap]))
    return mounts


def _shared_memory(host_config: HostConfig, sources: Sources, taken: Collection[str]) -> Mount | None:
    """/dev/shm of the host, or of the container whose IPC namespace is joined."""
    if "/dev/shm" in taken:
        return None
    if host_config.ipc_mode == "host":
        if not os.path.isdir("/dev/shm"):
            raise System("/dev/shm is not mounted, but must be for --ipc=host")
        return Mount("/dev/shm", "bind", "/dev/shm", ["rbind", DEFAULT_PROPAGATION])
    if host_config.ipc_mode.startswith("container:") and "ipc" in sources.joined:
        source = f"/proc/{sources.joined['ipc']}/root/dev/shm"
        return Mount("/dev/shm", "bind", source, ["rbind", DEFAULT_PROPAGATION])
    return None


@functools.cache
def _init_binary_in_path() -> str | None:
    for name in ("docker-init", "tini-static"):
        found = shutil.which(name)
        if found:
            return found
    return None


def _init_binary(options: EngineOptions) -> str:
    found = options.init_path or _init_binary_in_path()
    if not found:
        raise System('exec: "docker-init": executable file not found in $PATH')
    return found


_TMPFS_FLAGS = {
    **dict.fromkeys(("ro", "rw"), "ro"),
    **dict.fromkeys(("suid", "nosuid"), "suid"),
    **dict.fromkeys(("dev", "nodev"), "dev"),
    **dict.fromkeys(("exec", "noexec"), "exec"),
    **dict.fromkeys(("sync", "async"), "sync"),
    **dict.fromkeys(("mand", "nomand"), "mand"),
    **dict.fromkeys(("atime", "noatime"), "atime"),
    **dict.fromkeys(("diratime", "nodiratime"), "diratime"),
    **dict.fromkeys(("relatime", "norelatime"), "relatime"),
    **dict.fromkeys(("strictatime", "nostrictatime"), "strictatime"),
    **{word: word for word in ("dirsync", "remount", "bind", "rbind")},
    **{word: "propagation" for kind in ("unbindable", "private", "shared", "slave") for word in (kind, f"r{kind}")},
}
_TMPFS_DATA = frozenset({"", "size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol"})


def _tmpfs(point: MountPoint) -> Mount:
    given = point.mode.split(",") if point.mode else []
    options = merge_tmpfs_options(["noexec", "nosuid", "nodev", DEFAULT_PROPAGATION, *given])
    return Mount(point.destination, "tmpfs", "tmpfs", options)


def merge_tmpfs_options(options: Sequence[str]) -> list[str]:
    """Of options that contradict each other the last one stays. Raises System for what no tmpfs knows."""
    merged: list[str] = []
    seen: set[str] = set()
    for option in reversed(options):
        if option == "defaults":
            continue
        key = _TMPFS_FLAGS.get(option)
        if key is None:
            name, equals, _ = option.partition("=")
            if not equals or name not in _TMPFS_DATA:
                raise System(f'invalid tmpfs option "{option}"')
            key = f"={name}"
        if key not in seen:
            seen.add(key)
            merged.append(option)
    merged.reverse()
    return merged


def _image(point: MountPoint, rootfs: Rootfs | None) -> Mount:
    if rootfs is None:
        raise System(f"image {point.source} to be mounted at {point.destination} is not available")
    subpath = point.spec.image_options.subpath if point.spec.image_options else ""
    if isinstance(rootfs, OverlayRoot) and len(rootfs.lower) > 1:
        # One option a layer: a single one holds 255 bytes.
        lower = [f"lowerdir+={layer}" for layer in rootfs.lower]
        part = [f"subpath={subpath}"] if subpath else []
        return Mount(point.destination, "overlay", "overlay", ["ro", *lower, *rootfs.options, *part])
    source = rootfs.path if isinstance(rootfs, DirectoryRoot) else rootfs.lower[0]
    options = ["rbind", "rro" if host().recursive_read_only else "ro", DEFAULT_PROPAGATION]
    if subpath:
        options.append(f"subpath={subpath}")
    return Mount(point.destination, "bind", source, options)


def _read_only(facts: Host, options: EngineOptions, host_config: HostConfig, writable: bool) -> list[str]:
    if writable:
        return []
    return ["rro" if _recursive_read_only(facts, options, host_config) else "ro"]


def _recursive_read_only(facts: Host, options: EngineOptions, host_config: HostConfig) -> bool:
    """An external runtime may not know "rro"."""
    return facts.recursive_read_only and is_builtin_runtime(host_config.runtime, options)


def _bind(spec: Spec, point: MountPoint, options: EngineOptions, facts: Host) -> Mount:
    """A bind mount or a volume. Raises System for what contradicts itself or the host."""
    bind = point.spec.bind_options if point.type == "bind" else None
    assert spec.linux is not None
    non_recursive = bind is not None and bind.non_recursive
    words = ["bind" if non_recursive else "rbind"]
    plain = bind is not None and bind.read_only_non_recursive
    force = bind is not None and bind.read_only_force_recursive
    if point.spec.read_only is False and plain:
        raise System("mount options conflict: !ReadOnly && BindOptions.ReadOnlyNonRecursive")
    if point.spec.read_only is False and force:
        raise System("mount options conflict: !ReadOnly && BindOptions.ReadOnlyForceRecursive")
    if plain and force:
        raise System("mount options conflict: ReadOnlyNonRecursive && BindOptions.ReadOnlyForceRecursive")
    if not point.rw:
        recursive = not plain and facts.recursive_read_only
        if force and not recursive:
            raise System("rro is not supported: it needs Linux 5.12 or newer")
        words.append("rro" if recursive else "ro")
    if point.propagation:
        words.append(_propagation(spec, point))
    subpath = point.spec.volume_options.subpath if point.type == "volume" and point.spec.volume_options else ""
    if subpath:
        os.close(local.open_subpath(point.source, subpath, os.O_PATH))
        words.append(f"subpath={subpath}")  # the runtime resolves it again: what is hostile may have changed
    return Mount(point.destination, "bind", point.source, words)


def _propagation(spec: Spec, point: MountPoint) -> str:
    """Shared and slave mounts need such a mount on the host, and a root filesystem that lets them through.

    Raises System, unless nobody asked for the propagation (:func:`seacan.engine.mounts.follow_root`)."""
    assert spec.linux is not None
    kind = point.propagation.removeprefix("r")
    if kind not in ("shared", "slave"):
        return point.propagation
    top, fields = _source_mount(point.source)
    shared = any(word.startswith("shared:") for word in fields)
    if kind == "shared":
        if not shared:
            raise System(f"path {point.source} is mounted on {top} but it is not a shared mount")
        spec.linux.rootfs_propagation = "shared"
        return point.propagation
    if not shared and not any(word.startswith("master:") for word in fields):
        if point.spec.bind_options is None or not point.spec.bind_options.propagation:
            return DEFAULT_PROPAGATION
        raise System(f"path {point.source} is mounted on {top} but it is not a shared or slave mount")
    if spec.linux.rootfs_propagation not in ("shared", "rshared", "slave", "rslave"):
        spec.linux.rootfs_propagation = "rslave"
    return point.propagation


def _source_mount(source: str) -> tuple[str, list[str]]:
    """The mount that a host path lies on, and the optional fields of its line in mountinfo."""
    path = os.path.realpath(source)
    best: tuple[str, list[str]] = ("/", [])
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mountinfo:
        for line in mountinfo:
            words = line.split(" ")
            top = words[4].replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
            if (path == top or path.startswith(top.rstrip("/") + "/")) and len(top) >= len(best[0]):
                best = (top, words[6 : words.index("-")])
    return best


# --- system calls ---------------------------------------------------------------------------------------------------


def _seccomp(
    host_config: HostConfig, options: EngineOptions, security: SecurityOptions, process: Process, facts: Host
) -> LinuxSeccomp | None:
    chosen = security.seccomp
    if chosen == "unconfined":
        return None
    assert process.capabilities is not None
    bounding = process.capabilities.bounding
    try:
        if host_config.privileged:
            return seccomp_profiles.parse(chosen, bounding) if chosen else None
        if not facts.seccomp:
            if chosen not in ("", "builtin"):
                raise System("seccomp is not enabled in your kernel, cannot run a custom seccomp profile")
            return None
        if chosen not in ("", "builtin"):
            return seccomp_profiles.parse(chosen, bounding)
        if not chosen and options.seccomp_profile == "unconfined":
            return None
        if not chosen and options.seccomp_profile not in ("", "builtin", "default"):
            return seccomp_profiles.parse(_profile_file(options.seccomp_profile), bounding)
    except InvalidParameter as error:
        raise System(error.message) from error
    return seccomp_profiles.default(bounding)


def _profile_file(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise System(f"opening seccomp profile ({path}) failed: {error.strerror}") from error


_known: dict[tuple[int, str], tuple[LinuxSeccomp, str]] = {}


def _compiled(profile: LinuxSeccomp, directory: str) -> str:
    """The compiled filter's path; known by identity for the built-in profiles, whose objects live on."""
    key = (id(profile), directory)
    known = _known.get(key)
    if known is not None and known[0] is profile and os.path.exists(known[1]):
        return known[1]
    path = seccomp.compiled(profile, directory)
    if len(_known) > 256:
        _known.clear()
    _known[key] = (profile, path)
    return path
