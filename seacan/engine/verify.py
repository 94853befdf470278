"""Whether a container can be had on this host: limits and options checked as dockerd checks them, in its words.

:func:`verify` is called when a container is created, :func:`merge_update` for ``docker update``. What this host
cannot do becomes a warning, and the option is dropped from the HostConfig (as dockerd does), or an error; never a
silent no-op. What concerns the client's JSON alone is :mod:`seacan.engine.creation`.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass

import msgspec

from seacan.engine import remap
from seacan.engine.config import ContainerConfig, HostConfig, Resources, UpdateConfig
from seacan.engine.host import Host, host, parse_list
from seacan.engine.mounts import check_mounts
from seacan.engine.options import EngineOptions
from seacan.engine.profiles import capabilities, selinux
from seacan.errors import Conflict, InvalidParameter, Unsupported
from seacan.truth import truth

MINIMUM_MEMORY = 6 << 20
BUILTIN_RUNTIMES = ("seacan", "runc", "io.containerd.runc.v2")
"""Names of our own runtime; two are those that clients of dockerd ask for."""
MAXIMUM_HOSTNAME = 64


def verify(
    config: ContainerConfig | None, host_config: HostConfig, options: EngineOptions, facts: Host | None = None
) -> list[str]:
    """Check what is asked for against this host. Returns dockerd's warnings; options it discards are cleared.

    Raises InvalidParameter; Unsupported for what no version of this engine does on this host.
    """
    facts = facts or host()
    if config is not None:
        verify_modes(config, host_config)
        if len(config.hostname) > MAXIMUM_HOSTNAME:
            raise InvalidParameter(f'hostname "{config.hostname}" is too long (maximum {MAXIMUM_HOSTNAME} bytes)')
    _verify_realtime(host_config, facts)
    check_mounts(host_config)
    for destination in host_config.tmpfs or {}:
        _verify_destination(destination)
    for field, names in (("CapAdd", host_config.cap_add), ("CapDrop", host_config.cap_drop)):
        try:
            capabilities.normalise(names or ())
        except InvalidParameter as error:
            raise InvalidParameter(f"invalid {field}: {error}") from error
    warnings = verify_resources(host_config, facts)
    for what, mode, valid in (
        ("IPC", host_config.ipc_mode, _valid_ipc(host_config.ipc_mode)),
        ("PID", host_config.pid_mode, _valid_pid(host_config.pid_mode)),
    ):
        if not valid:
            raise InvalidParameter(f"invalid {what} mode: {mode}")
    if host_config.shm_size < 0:
        raise InvalidParameter("SHM size can not be less than 0")
    if host_config.uts_mode not in ("", "host"):
        raise InvalidParameter(f"invalid UTS mode: {host_config.uts_mode}")
    if not -1000 <= host_config.oom_score_adj <= 1000:
        raise InvalidParameter(f"Invalid value {host_config.oom_score_adj}, range for oom score adj is [-1000, 1000]")
    if host_config.network_mode == "host" and host_config.port_bindings:
        warnings.append("Published ports are discarded when using host network mode")
    if host_config.userns_mode not in ("", "host"):
        raise InvalidParameter(f"invalid user namespace mode: {host_config.userns_mode}")
    remap.verify(host_config, options)
    _verify_runtime(host_config.runtime, options)
    if host_config.cgroupns_mode not in ("", "private", "host"):
        raise InvalidParameter(f"invalid cgroup namespace mode: {host_config.cgroupns_mode}")
    if host_config.cgroupns_mode == "private" and not facts.cgroup_namespaces:
        warnings.append("Your kernel does not support cgroup namespaces.  Cgroup namespace setting discarded.")
        host_config.cgroupns_mode = "host"
    if host_config.cgroup and not host_config.cgroup.startswith("container:"):
        raise InvalidParameter(f"invalid cgroup: {host_config.cgroup}")
    security_options(host_config, options)
    if any(mount.type == "image" for mount in host_config.mounts or []):
        warnings.append("Image mount is an experimental feature")
    if host_config.storage_opt:
        for name in host_config.storage_opt:
            if name != "size":
                raise InvalidParameter(f"Unknown option {name}")
        raise Unsupported("--storage-opt is supported only for overlay over xfs with 'pquota' mount option")
    return warnings


def _verify_destination(path: str) -> None:
    clean = path.replace("\\", "/")
    if posixpath.normpath(clean) in ("/", "//"):
        raise InvalidParameter("invalid specification: destination can't be '/'")
    if not clean.startswith("/"):
        raise InvalidParameter(f"invalid mount path: '{path}' mount path must be absolute")


def is_builtin_runtime(name: str, options: EngineOptions) -> bool:
    """Whether our own runtime answers to ``name`` (empty: the default one), rather than one of the configuration's."""
    name = name or options.default_runtime
    return name not in options.runtimes and (not name or name in BUILTIN_RUNTIMES)


def _verify_runtime(runtime: str, options: EngineOptions) -> None:
    if runtime in ("", options.default_runtime, *BUILTIN_RUNTIMES) or runtime in options.runtimes:
        return
    raise InvalidParameter(f"unknown or invalid runtime name: {runtime}")


def _named(mode: str) -> str | None:
    """The container of a ``container:<name>`` mode, or None for another mode."""
    return mode[len("container:") :] if mode.startswith("container:") else None


def _valid_ipc(mode: str) -> bool:
    return mode in ("", "none", "private", "host", "shareable") or _named(mode) is not None


def _valid_pid(mode: str) -> bool:
    return mode in ("", "host") or bool(_named(mode))


def verify_modes(config: ContainerConfig, host_config: HostConfig) -> None:
    """Refuse options that the network or UTS mode makes meaningless. Before defaults are filled in: names matter."""
    mode = host_config.network_mode
    conflict = "conflicting options: "
    if host_config.uts_mode == "host" and config.hostname:
        raise InvalidParameter(f"{conflict}hostname and the UTS mode")
    if mode == "host" and host_config.links:
        raise InvalidParameter(
            f"{conflict}host type networking can't be used with links. This would result in undefined behavior"
        )
    if mode != "container" and _named(mode) is None:
        return
    if not _named(mode):
        raise InvalidParameter("invalid network mode: invalid container format container:<name|id>")
    for asked, words in (
        (config.hostname, "hostname and the network mode"),
        (
            host_config.links,
            "container type network can't be used with links. This would result in undefined behavior",
        ),
        (host_config.dns, "dns and the network mode"),
        (host_config.extra_hosts, "custom host-to-IP mapping and the network mode"),
        (
            host_config.port_bindings or host_config.publish_all_ports,
            "port publishing and the container type network mode",
        ),
        (config.exposed_ports, "port exposing and the container type network mode"),
    ):
        if asked:
            raise InvalidParameter(conflict + words)


def _verify_realtime(resources: Resources, facts: Host) -> None:
    period, runtime = resources.cpu_realtime_period, resources.cpu_realtime_runtime
    if (period or runtime) and not facts.cpu_realtime:
        raise InvalidParameter("kernel does not support CPU real-time scheduler")
    if period and runtime and runtime > period:
        raise InvalidParameter("cpu real-time runtime cannot be higher than cpu real-time period")


def verify_resources(resources: Resources, facts: Host, *, update: bool = False) -> list[str]:
    """Limits against their ranges and against what the host has; warnings in dockerd's words. Raises
    InvalidParameter."""
    warnings: list[str] = []
    _verify_memory(resources, facts, warnings, update)
    _verify_cpu(resources, facts, warnings)
    _verify_cpuset(resources, facts, warnings)
    _verify_block(resources, facts, warnings)
    return warnings


def _verify_memory(resources: Resources, facts: Host, warnings: list[str], update: bool) -> None:
    if resources.memory_swappiness == -1:
        resources.memory_swappiness = None
    if resources.memory != 0 and resources.memory < MINIMUM_MEMORY:
        raise InvalidParameter("Minimum memory limit allowed is 6MB")
    if resources.memory > 0 and not facts.memory_limit:
        warnings.append(
            "Your kernel does not support memory limit capabilities or the cgroup is not mounted. Limitation discarded."
        )
        resources.memory, resources.memory_swap = 0, -1
    if resources.memory > 0 and resources.memory_swap != -1 and not facts.swap_limit:
        warnings.append(
            "Your kernel does not support swap limit capabilities or the cgroup is not mounted. "
            "Memory limited without swap."
        )
        resources.memory_swap = -1
    if resources.memory > 0 and 0 < resources.memory_swap < resources.memory:
        raise InvalidParameter("Minimum memoryswap limit should be larger than memory limit, see usage")
    if resources.memory == 0 and resources.memory_swap > 0 and not update:
        raise InvalidParameter("You should always set the Memory limit when using Memoryswap limit, see usage")
    if resources.memory_swappiness is not None and not facts.memory_swappiness:
        warnings.append(
            "Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. "
            "Memory swappiness discarded."
        )
        resources.memory_swappiness = None
    if resources.memory_swappiness is not None and not 0 <= resources.memory_swappiness <= 100:
        raise InvalidParameter(f"Invalid value: {resources.memory_swappiness}, valid memory swappiness range is 0-100")
    if resources.memory_reservation > 0 and not facts.memory_reservation:
        warnings.append(
            "Your kernel does not support memory soft limit capabilities or the cgroup is not mounted. "
            "Limitation discarded."
        )
        resources.memory_reservation = 0
    if 0 < resources.memory_reservation < MINIMUM_MEMORY:
        raise InvalidParameter("Minimum memory reservation allowed is 6MB")
    if resources.memory > 0 and resources.memory < resources.memory_reservation:
        raise InvalidParameter("Minimum memory limit can not be less than memory reservation limit, see usage")
    if resources.kernel_memory > 0:
        warnings.append(
            "Kernel memory limit is ignored: it has been removed from the kernel and from the runtime specification."
        )
    if resources.oom_kill_disable is not None and not facts.oom_kill_disable:
        if resources.oom_kill_disable:
            warnings.append("Your kernel does not support OomKillDisable. OomKillDisable discarded.")
        resources.oom_kill_disable = None
    if resources.oom_kill_disable and resources.memory == 0:
        warnings.append(
            "OOM killer is disabled for the container, but no memory limit is set, this can result in the system "
            "running out of resources."
        )
    if resources.pids_limit is not None and not facts.pids_limit:
        if resources.pids_limit > 0:
            warnings.append(
                "Your kernel does not support PIDs limit capabilities or the cgroup is not mounted. "
                "PIDs limit discarded."
            )
        resources.pids_limit = None


def _verify_cpu(resources: Resources, facts: Host, warnings: list[str]) -> None:
    if resources.nano_cpus > 0 and resources.cpu_period > 0:
        raise InvalidParameter("Conflicting options: Nano CPUs and CPU Period cannot both be set")
    if resources.nano_cpus > 0 and resources.cpu_quota > 0:
        raise InvalidParameter("Conflicting options: Nano CPUs and CPU Quota cannot both be set")
    if resources.nano_cpus > 0 and not facts.cpu_cfs:
        raise InvalidParameter(
            "NanoCPUs can not be set, as your kernel does not support CPU CFS scheduler or the cgroup is not mounted"
        )
    count = facts.processors
    if not 0 <= resources.nano_cpus <= count * 1_000_000_000:
        raise InvalidParameter(f"range of CPUs is from 0.01 to {count}.00, as there are only {count} CPUs available")
    if resources.cpu_shares < 0:
        raise InvalidParameter(f"invalid CPU shares ({resources.cpu_shares}): value must be a positive integer")
    if resources.cpu_shares > 0 and not facts.cpu_shares:
        warnings.append("Your kernel does not support CPU shares or the cgroup is not mounted. Shares discarded.")
        resources.cpu_shares = 0
    if (resources.cpu_period or resources.cpu_quota) and not facts.cpu_cfs:
        warnings.append("Your kernel does not support CPU CFS scheduler. CPU period/quota discarded.")
        resources.cpu_period = resources.cpu_quota = 0
    if resources.cpu_period and not 1000 <= resources.cpu_period <= 1_000_000:
        raise InvalidParameter("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
    if 0 < resources.cpu_quota < 1000:
        raise InvalidParameter("CPU cfs quota can not be less than 1ms (i.e. 1000)")
    if resources.cpu_percent > 0:
        warnings.append("linux does not support CPU percent. Percent discarded.")
        resources.cpu_percent = 0


def _verify_cpuset(resources: Resources, facts: Host, warnings: list[str]) -> None:
    if (resources.cpuset_cpus or resources.cpuset_mems) and not facts.cpuset:
        warnings.append("Your kernel does not support cpuset or the cgroup is not mounted. Cpuset discarded.")
        resources.cpuset_cpus = resources.cpuset_mems = ""
    for asked, there, short, long in (
        (resources.cpuset_cpus, facts.cpus, "cpus", "CPUs"),
        (resources.cpuset_mems, facts.mems, "mems", "memory nodes"),
    ):
        try:
            wanted = parse_list(asked)
        except InvalidParameter as error:
            raise InvalidParameter(f"Invalid value {asked} for cpuset {short}: {error}") from error
        if wanted - parse_list(there, 0):
            raise InvalidParameter(f"Requested {long} are not available - requested {asked}, available: {there}")


def _verify_block(resources: Resources, facts: Host, warnings: list[str]) -> None:
    if resources.blkio_weight > 0 and not facts.blkio_weight:
        warnings.append("Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded.")
        resources.blkio_weight = 0
    if resources.blkio_weight > 0 and not 10 <= resources.blkio_weight <= 1000:
        raise InvalidParameter("Range of blkio weight is from 10 to 1000")
    if resources.io_maximum_bandwidth or resources.io_maximum_iops:
        raise InvalidParameter("Invalid QoS settings: linux does not support Maximum IO Bandwidth or Maximum IO IOps")
    if resources.blkio_weight_device and not facts.blkio_weight_device:
        warnings.append(
            "Your kernel does not support Block I/O weight_device or the cgroup is not mounted. "
            "Weight-device discarded."
        )
        resources.blkio_weight_device = []
    suffix = "or the cgroup is not mounted. Block I/O"
    if resources.blkio_device_read_bps and not facts.blkio_read_bps:
        warnings.append(f"Your kernel does not support BPS Block I/O read limit {suffix} BPS read limit discarded.")
        resources.blkio_device_read_bps = []
    if resources.blkio_device_write_bps and not facts.blkio_write_bps:
        warnings.append(f"Your kernel does not support BPS Block I/O write limit {suffix} BPS write limit discarded.")
        resources.blkio_device_write_bps = []
    if resources.blkio_device_read_iops and not facts.blkio_read_iops:
        warnings.append(f"Your kernel does not support IOPS Block read limit {suffix} IOPS read limit discarded.")
        resources.blkio_device_read_iops = []
    if resources.blkio_device_write_iops and not facts.blkio_write_iops:
        warnings.append(f"Your kernel does not support IOPS Block write limit {suffix} IOPS write limit discarded.")
        resources.blkio_device_write_iops = []


# --- docker update -------------------------------------------------------------------------------------------------

_UPDATED = (
    "blkio_weight",
    "blkio_weight_device",
    "blkio_device_read_bps",
    "blkio_device_write_bps",
    "blkio_device_read_iops",
    "blkio_device_write_iops",
    "cpu_shares",
    "nano_cpus",
    "cpu_period",
    "cpu_quota",
    "cpuset_cpus",
    "cpuset_mems",
    "memory",
    "memory_swap",
    "memory_reservation",
    "cpu_realtime_period",
    "cpu_realtime_runtime",
)


def merge_update(current: HostConfig, wanted: UpdateConfig, facts: Host | None = None) -> list[str]:
    """Take the limits of a ``docker update`` over into a container's HostConfig; what is zero stays as it was.

    Returns warnings. Raises InvalidParameter, or Conflict when they contradict what is set already.
    """
    facts = facts or host()
    warnings = verify_resources(wanted, facts, update=True)
    for new, newer, old, older in (
        (wanted.nano_cpus, "Nano CPUs", current.cpu_period, "CPU Period"),
        (wanted.nano_cpus, "Nano CPUs", current.cpu_quota, "CPU Quota"),
        (wanted.cpu_period, "CPU Period", current.nano_cpus, "NanoCPUs"),
        (wanted.cpu_quota, "CPU Quota", current.nano_cpus, "NanoCPUs"),
    ):
        if new > 0 and old > 0:
            raise Conflict(f"Conflicting options: {newer} cannot be updated as {older} has already been set")
    if wanted.memory and wanted.memory > current.memory_swap and wanted.memory_swap == 0:
        raise Conflict(
            "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time"
        )
    for name in _UPDATED:
        value = getattr(wanted, name)
        if value if not isinstance(value, list) else value is not None:
            setattr(current, name, value)
    if wanted.pids_limit is not None:
        current.pids_limit = max(0, wanted.pids_limit)
    return warnings


# --- security options ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SecurityOptions:
    """What ``--security-opt`` says. ``seccomp`` is a profile's JSON, "unconfined", "builtin" or empty for the
    default."""

    no_new_privileges: bool = False
    writable_cgroups: bool | None = None
    apparmor: str = ""
    seccomp: str = ""
    process_label: str = ""
    mount_label: str = ""


def security_options(host_config: HostConfig, options: EngineOptions, categories: str = "c0,c1") -> SecurityOptions:
    """Understand ``HostConfig.SecurityOpt``; ``categories`` are the container's own for SELinux.

    Raises InvalidParameter in dockerd's words.
    """
    no_new_privileges = options.no_new_privileges
    writable_cgroups: bool | None = None
    profile = filter_ = ""
    labels: list[str] = []
    for option in host_config.security_opt or []:
        if option == "no-new-privileges":
            no_new_privileges = True
            continue
        if option == "writable-cgroups":
            writable_cgroups = True
            continue
        if option == "disable":
            labels.append("disable")
            continue
        match = re.match(r"([^=]*)=(.*)", option, re.DOTALL) or re.match(r"([^:]*):(.*)", option, re.DOTALL)
        if match is None:
            raise InvalidParameter(f"invalid --security-opt 1: {_quoted(option)}")
        key, value = match.groups()
        if key == "label":
            labels.append(value)
        elif key == "apparmor":
            profile = value
        elif key == "seccomp":
            filter_ = value
        elif key in ("no-new-privileges", "writable-cgroups") and (wanted := truth(value)) is not None:
            if key == "no-new-privileges":
                no_new_privileges = wanted
            else:
                writable_cgroups = wanted
        else:
            raise InvalidParameter(f"invalid --security-opt 2: {_quoted(option)}")
    if not labels and unlabelled(host_config):
        labels.append("disable")
    process_label, mount_label = selinux.labels(labels, categories, enabled=options.selinux_enabled)
    return SecurityOptions(
        no_new_privileges=no_new_privileges,
        writable_cgroups=writable_cgroups,
        apparmor=profile,
        seccomp=filter_,
        process_label=process_label,
        mount_label=mount_label,
    )


def unlabelled(host_config: HostConfig) -> bool:
    """Whether a container's processes get no SELinux label unless one is asked for: it shares the host's already."""
    return host_config.privileged or host_config.ipc_mode == "host" or host_config.pid_mode == "host"


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()
