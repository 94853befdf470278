"""What every container gets and is denied by default: Docker's isolation, as data.

Capabilities, masked and read-only paths, devices, mounts and namespaces are here; the seccomp profile, AppArmor and
SELinux have modules of their own.
"""

from __future__ import annotations

import functools
import os

from seacan.runtime.spec import LinuxDeviceCgroup, Mount

CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)

READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

_MASKED_PATHS = (
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)


@functools.cache
def masked_paths() -> tuple[str, ...]:
    """Paths hidden from containers: what tells of the host's hardware, keys or power draw (a side channel)."""
    try:
        cpus = sorted(entry for entry in os.listdir("/sys/devices/system/cpu") if entry[3:].isdigit())
    except OSError:
        cpus = []
    throttles = (f"/sys/devices/system/cpu/{cpu}/thermal_throttle" for cpu in cpus)
    return _MASKED_PATHS + tuple(path for path in throttles if os.path.isdir(path))


def _character(minor: int, major: int, *, allow: bool = True) -> LinuxDeviceCgroup:
    return LinuxDeviceCgroup(allow=allow, type="c", major=major, minor=minor, access="rwm")


DEVICE_RULES = (
    LinuxDeviceCgroup(allow=False, access="rwm"),
    *(_character(minor, 1) for minor in (5, 3, 9, 8)),  # zero, null, urandom, random
    *(_character(minor, 5) for minor in (0, 1)),  # tty, console
    _character(229, 10, allow=False),  # fuse
)
"""The devices a container may use; what the runtime itself provides (ptmx, pts, full) it adds."""

MOUNTS = (
    Mount("/proc", "proc", "proc", ["nosuid", "noexec", "nodev"]),
    Mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
    Mount("/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
    Mount("/sys", "sysfs", "sysfs", ["nosuid", "noexec", "nodev", "ro"]),
    Mount("/sys/fs/cgroup", "cgroup", "cgroup", ["ro", "nosuid", "noexec", "nodev"]),
    Mount("/dev/mqueue", "mqueue", "mqueue", ["nosuid", "noexec", "nodev"]),
    Mount("/dev/shm", "tmpfs", "shm", ["nosuid", "noexec", "nodev", "mode=1777"]),
)
"""The mounts every container starts from, in order."""

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""The PATH of a container whose image sets none."""
