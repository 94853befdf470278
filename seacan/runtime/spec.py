"""The OCI runtime specification, version 1.2, as typed plain data.

Names and meaning are those of the specification (https://github.com/opencontainers/runtime-spec); attributes are its
JSON names in snake case. Only the parts that concern Linux are here. Nothing in this module acts on anything.

``None`` means "not given" wherever zero or an empty value would mean something else.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from seacan.errors import InvalidParameter

VERSION: Final = "1.2.1"
"""The version of the specification that this runtime implements (``ociVersion``)."""


def _kept(value: Any) -> Any:
    """A default that is written all the same, because the specification wants the member to be there."""
    return msgspec.field(default_factory=lambda: value)


class _Base(msgspec.Struct, rename="camel", omit_defaults=True, gc=False):
    """Base of every object of the specification. Untracked by the garbage collector: these are trees."""


# --- process ----------------------------------------------------------------------------------------------------


class Box(_Base):
    """A terminal's size, in characters."""

    height: int = 0
    width: int = 0


class User(_Base):
    """Who the process runs as, by the numbers of the container's user namespace."""

    uid: int = _kept(0)
    gid: int = _kept(0)
    umask: int | None = None
    additional_gids: list[int] = []
    username: str = ""


class Capabilities(_Base):
    """The five capability sets, by name (``CAP_CHOWN``)."""

    bounding: list[str] = []
    effective: list[str] = []
    inheritable: list[str] = []
    permitted: list[str] = []
    ambient: list[str] = []


class Rlimit(_Base):
    """``type`` is ``RLIMIT_NOFILE`` and so on; 2⁶⁴-1 is RLIM_INFINITY."""

    type: str
    hard: int
    soft: int


class Scheduler(_Base):
    """sched_setattr(2). ``policy`` is ``SCHED_OTHER``, …; times are nanoseconds."""

    policy: str
    nice: int = 0
    priority: int = 0
    flags: list[str] = []
    runtime: int = 0
    deadline: int = 0
    period: int = 0


class IOPriority(_Base):
    """ioprio_set(2). ``class_`` is ``IOPRIO_CLASS_RT``, ``…_BE`` or ``…_IDLE``."""

    class_: str = msgspec.field(name="class")
    priority: int = 0


class CPUAffinity(_Base):
    """CPU lists (``0-3,7``) of an exec'd process: before and after it is moved into the container's cgroup."""

    initial: str = ""
    final: str = ""


class Process(_Base):
    cwd: str = _kept("/")
    args: list[str] = []
    env: list[str] = []
    user: User = msgspec.field(default_factory=User)
    terminal: bool = False
    console_size: Box | None = None
    command_line: str = ""
    capabilities: Capabilities | None = None
    rlimits: list[Rlimit] = []
    no_new_privileges: bool = False
    apparmor_profile: str = ""
    oom_score_adj: int | None = None
    selinux_label: str = ""
    scheduler: Scheduler | None = None
    io_priority: IOPriority | None = None
    exec_cpu_affinity: CPUAffinity | None = msgspec.field(default=None, name="execCPUAffinity")


# --- file system ------------------------------------------------------------------------------------------------


class Root(_Base):
    """``path`` is relative to the bundle unless absolute."""

    path: str
    readonly: bool = False


class IDMapping(_Base):
    """One line of uid_map or gid_map (user_namespaces(7))."""

    container_id: int = msgspec.field(name="containerID")
    host_id: int = msgspec.field(name="hostID")
    size: int


class Mount(_Base):
    """``uid_mappings`` and ``gid_mappings`` make it an ID-mapped mount."""

    destination: str
    type: str = ""
    source: str = ""
    options: list[str] = []
    uid_mappings: list[IDMapping] = []
    gid_mappings: list[IDMapping] = []


class Device(_Base):
    """A node to make. ``type`` is c, b, u or p; ``file_mode`` holds permission bits."""

    path: str
    type: str
    major: int = 0
    minor: int = 0
    file_mode: int | None = None
    uid: int | None = None
    gid: int | None = None


# --- hooks ------------------------------------------------------------------------------------------------------


class Hook(_Base):
    """A program run at a point of the life cycle, with the container's state on stdin. ``timeout`` in seconds."""

    path: str
    args: list[str] = []
    env: list[str] = []
    timeout: int | None = None


class Hooks(_Base):
    prestart: list[Hook] = []
    create_runtime: list[Hook] = []
    create_container: list[Hook] = []
    start_container: list[Hook] = []
    poststart: list[Hook] = []
    poststop: list[Hook] = []


# --- resources --------------------------------------------------------------------------------------------------


class LinuxDeviceCgroup(_Base):
    """A rule of the device controller. ``None`` for a number means every number; ``type`` a, c or b; "" means a."""

    allow: bool = _kept(False)
    type: str = ""
    major: int | None = None
    minor: int | None = None
    access: str = ""


class LinuxMemory(_Base):
    """Bytes; -1 is unlimited. ``swap`` is memory plus swap."""

    limit: int | None = None
    reservation: int | None = None
    swap: int | None = None
    kernel: int | None = None
    kernel_tcp: int | None = msgspec.field(default=None, name="kernelTCP")
    swappiness: int | None = None
    disable_oom_killer: bool | None = msgspec.field(default=None, name="disableOOMKiller")
    use_hierarchy: bool | None = None
    check_before_update: bool | None = None


class LinuxCPU(_Base):
    """Times are microseconds; ``cpus`` and ``mems`` lists like ``0-3,7``."""

    shares: int | None = None
    quota: int | None = None
    burst: int | None = None
    period: int | None = None
    realtime_runtime: int | None = None
    realtime_period: int | None = None
    cpus: str = ""
    mems: str = ""
    idle: int | None = None


class LinuxPids(_Base):
    """-1 (or 0) is unlimited."""

    limit: int = _kept(0)


class LinuxWeightDevice(_Base):
    major: int
    minor: int
    weight: int | None = None
    leaf_weight: int | None = None


class LinuxThrottleDevice(_Base):
    """``rate`` in bytes or operations a second."""

    major: int
    minor: int
    rate: int


class LinuxBlockIO(_Base):
    weight: int | None = None
    leaf_weight: int | None = None
    weight_device: list[LinuxWeightDevice] = []
    throttle_read_bps_device: list[LinuxThrottleDevice] = []
    throttle_write_bps_device: list[LinuxThrottleDevice] = []
    throttle_read_iops_device: list[LinuxThrottleDevice] = msgspec.field(
        default_factory=list, name="throttleReadIOPSDevice"
    )
    throttle_write_iops_device: list[LinuxThrottleDevice] = msgspec.field(
        default_factory=list, name="throttleWriteIOPSDevice"
    )


class LinuxHugepageLimit(_Base):
    """``page_size`` like ``2MB``; ``limit`` in bytes."""

    page_size: str
    limit: int


class LinuxInterfacePriority(_Base):
    name: str
    priority: int


class LinuxNetwork(_Base):
    """net_cls and net_prio of cgroup v1."""

    class_id: int | None = msgspec.field(default=None, name="classID")
    priorities: list[LinuxInterfacePriority] = []


class LinuxRdma(_Base):
    hca_handles: int | None = None
    hca_objects: int | None = None


class LinuxResources(_Base):
    """What a container may use; carried out by :mod:`seacan.cgroups`. ``unified``: files of cgroup v2 by name."""

    devices: list[LinuxDeviceCgroup] = []
    memory: LinuxMemory | None = None
    cpu: LinuxCPU | None = None
    pids: LinuxPids | None = None
    block_io: LinuxBlockIO | None = msgspec.field(default=None, name="blockIO")
    hugepage_limits: list[LinuxHugepageLimit] = []
    network: LinuxNetwork | None = None
    rdma: dict[str, LinuxRdma] = {}
    unified: dict[str, str] = {}


# --- seccomp ----------------------------------------------------------------------------------------------------


class LinuxSeccompArg(_Base):
    """``op`` is ``SCMP_CMP_EQ`` and so on; ``value_two`` is the datum of ``SCMP_CMP_MASKED_EQ``."""

    index: int
    value: int
    op: str
    value_two: int = 0


class LinuxSyscall(_Base):
    names: list[str]
    action: str
    errno_ret: int | None = None
    args: list[LinuxSeccompArg] = []


class LinuxSeccomp(_Base):
    """A system call filter, as libseccomp's names (``SCMP_ACT_ERRNO``, ``SCMP_ARCH_X86_64``)."""

    default_action: str
    default_errno_ret: int | None = None
    architectures: list[str] = []
    flags: list[str] = []
    listener_path: str = ""
    listener_metadata: str = ""
    syscalls: list[LinuxSyscall] = []


# --- the rest of Linux ------------------------------------------------------------------------------------------


class LinuxNamespace(_Base):
    """``type`` is pid, network, mount, ipc, uts, user, cgroup or time; with a ``path`` it is joined."""

    type: str
    path: str = ""


class LinuxTimeOffset(_Base):
    secs: int = 0
    nanosecs: int = 0


class LinuxPersonality(_Base):
    """``domain`` is ``LINUX`` or ``LINUX32``."""

    domain: str
    flags: list[str] = []


class LinuxIntelRdt(_Base):
    clos_id: str = msgspec.field(default="", name="closID")
    l3_cache_schema: str = ""
    mem_bw_schema: str = ""
    schemata: list[str] = []
    enable_cmt: bool = msgspec.field(default=False, name="enableCMT")
    enable_mbm: bool = msgspec.field(default=False, name="enableMBM")
    enable_monitoring: bool = False


class LinuxNetDevice(_Base):
    """An interface of the host that the container gets; ``name`` is what it is called there (empty: the same)."""

    name: str = ""


class Linux(_Base):
    namespaces: list[LinuxNamespace] = []
    uid_mappings: list[IDMapping] = []
    gid_mappings: list[IDMapping] = []
    time_offsets: dict[str, LinuxTimeOffset] = {}
    devices: list[Device] = []
    net_devices: dict[str, LinuxNetDevice] = {}
    cgroups_path: str = ""
    resources: LinuxResources | None = None
    intel_rdt: LinuxIntelRdt | None = None
    sysctl: dict[str, str] = {}
    seccomp: LinuxSeccomp | None = None
    rootfs_propagation: str = ""
    masked_paths: list[str] = []
    readonly_paths: list[str] = []
    mount_label: str = ""
    personality: LinuxPersonality | None = None


class Spec(_Base, omit_defaults=True):
    """``config.json``."""

    oci_version: str
    process: Process | None = None
    root: Root | None = None
    hostname: str = ""
    domainname: str = ""
    mounts: list[Mount] = []
    hooks: Hooks | None = None
    annotations: dict[str, str] = {}
    linux: Linux | None = None


def direct(configuration: Spec) -> bool:
    """Whether a process can become this container's init by itself, once it is born in a PID namespace of its own.

    Otherwise somebody has to stay outside: to write the mappings of a user namespace, run hooks, take a seccomp
    listener, move network interfaces, or map mounts.
    """
    linux = configuration.linux
    if linux is None or not linux.cgroups_path.startswith("/"):
        return False
    created = {namespace.type for namespace in linux.namespaces if not namespace.path}
    return (
        {"pid", "mount"} <= created
        and not any(namespace.type == "user" for namespace in linux.namespaces)
        and not linux.time_offsets
        and not linux.net_devices
        and linux.seccomp is None
        and (configuration.hooks is None or configuration.hooks == Hooks())
        and not any(
            mount.uid_mappings or mount.gid_mappings or {"idmap", "ridmap"} & set(mount.options)
            for mount in configuration.mounts
        )
    )


# --- what the runtime says --------------------------------------------------------------------------------------


class State(msgspec.Struct, rename="camel", gc=False):
    """The state of a container, as hooks get it on stdin; ``status`` is creating, created, running or stopped."""

    oci_version: str
    id: str
    status: str
    pid: int
    bundle: str
    annotations: dict[str, str] = {}


class ContainerProcessState(_Base, omit_defaults=False):
    """What a seccomp listener is told, with the descriptors of ``fds`` riding along (in that order)."""

    oci_version: str
    fds: list[str]
    pid: int
    state: State
    metadata: str = ""


# --- reading and writing ----------------------------------------------------------------------------------------


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _decode(data: bytes, kind: Any, what: str) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError:
        pass  # encoding/json of Go takes null for "not given", and some writers of these files rely on it
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidParameter(f"{what} is not valid JSON: {error}") from error
    try:
        return msgspec.convert(_without_nulls(msgspec.json.decode(data)), type=kind)
    except msgspec.ValidationError as error:
        raise InvalidParameter(f"{what} does not follow the OCI runtime specification: {error}") from error


def decode_spec(data: bytes) -> Spec:
    """Read ``config.json``. Raises InvalidParameter."""
    spec: Spec = _decode(data, Spec, "config.json")
    return spec


def decode_process(data: bytes) -> Process:
    """Read a process object (``exec --process``). Raises InvalidParameter."""
    process: Process = _decode(data, Process, "the process")
    return process


def decode_resources(data: bytes) -> LinuxResources:
    """Read a resources object (``update --resources``). Raises InvalidParameter."""
    resources: LinuxResources = _decode(data, LinuxResources, "the resources")
    return resources


def encode(value: msgspec.Struct) -> bytes:
    """Write any object of this module as JSON."""
    return msgspec.json.encode(value)
