"""What ``seacan-runtime spec`` writes and ``features`` says."""

from __future__ import annotations

import os
from typing import Any

from seacan.linux import capabilities, syscalls
from seacan.runtime import mounts, spec
from seacan.runtime.container import NAMESPACES

_CAPABILITIES = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
_ACTIONS = [
    "SCMP_ACT_" + name
    for name in ("ALLOW", "ERRNO", "KILL", "KILL_PROCESS", "KILL_THREAD", "LOG", "NOTIFY", "TRACE", "TRAP")
]
_OPERATORS = ["SCMP_CMP_" + name for name in ("EQ", "GE", "GT", "LE", "LT", "MASKED_EQ", "NE")]
_SECCOMP_FLAGS = ["SECCOMP_FILTER_FLAG_" + name for name in ("LOG", "SPEC_ALLOW", "TSYNC", "WAIT_KILLABLE_RECV")]
_NO = ["nosuid", "noexec", "nodev"]


def example(*, rootless: bool = False) -> spec.Spec:
    """A configuration that runs a shell in ``rootfs``."""
    mount = spec.Mount
    found = [
        mount("/proc", "proc", "proc"),
        mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts", "devpts", "devpts",
            ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", *([] if rootless else ["gid=5"])],
        ),
        mount("/dev/shm", "tmpfs", "shm", [*_NO, "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", "mqueue", _NO),
        mount("/sys", "none", "/sys", ["rbind", *_NO, "ro"]) if rootless
        else mount("/sys", "sysfs", "sysfs", [*_NO, "ro"]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", [*_NO, "relatime", "ro"]),
    ]  # fmt: skip
    kinds = ["pid", "network", "ipc", "uts", "mount"]
    linux = spec.Linux(
        resources=spec.LinuxResources(devices=[spec.LinuxDeviceCgroup(allow=False, access="rwm")]),
        masked_paths=[
            "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
            "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
        ],
        readonly_paths=["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
    )  # fmt: skip
    if os.path.exists("/proc/self/ns/cgroup"):
        kinds.append("cgroup")
    if rootless:
        kinds = [kind for kind in kinds if kind != "network"] + ["user"]
        linux.uid_mappings = [spec.IDMapping(0, os.geteuid(), 1)]
        linux.gid_mappings = [spec.IDMapping(0, os.getegid(), 1)]
        linux.resources = None
    linux.namespaces = [spec.LinuxNamespace(kind) for kind in kinds]
    return spec.Spec(
        spec.VERSION,
        process=spec.Process(
            terminal=True,
            args=["sh"],
            env=["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            capabilities=spec.Capabilities(bounding=_CAPABILITIES, effective=_CAPABILITIES, permitted=_CAPABILITIES),
            rlimits=[spec.Rlimit("RLIMIT_NOFILE", 1024, 1024)],
            no_new_privileges=True,
        ),
        root=spec.Root("rootfs", readonly=True),
        hostname="seacan",
        mounts=found,
        linux=linux,
    )


def features() -> dict[str, Any]:
    """The features structure of the runtime specification."""
    from seacan.linux import seccomp

    available = seccomp.available()
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": spec.VERSION,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": mounts.KNOWN_OPTIONS,
        "linux": {
            "namespaces": sorted(NAMESPACES),
            "capabilities": list(capabilities.NAMES[: capabilities.last() + 1]),
            "cgroup": {"v1": True, "v2": True, "systemd": False, "systemdUser": False, "rdma": True},
            "seccomp": {
                "enabled": available,
                "actions": _ACTIONS if available else [],
                "operators": _OPERATORS if available else [],
                "archs": sorted(seccomp.ARCHITECTURES) if available else [],
                "knownFlags": _SECCOMP_FLAGS if available else [],
                "supportedFlags": _SECCOMP_FLAGS if available else [],
            },
            "apparmor": {"enabled": True},
            "selinux": {"enabled": True},
            "intelRdt": {"enabled": False},
            "netDevices": {"enabled": True},
            "mountExtensions": {"idmap": {"enabled": _has_idmap()}},
        },
        "annotations": {"org.opencontainers.runc.checkpoint.enabled": "false"},
    }


def _has_idmap() -> bool:
    try:
        syscalls.mount_setattr(-1)
    except OSError as error:
        return error.errno != 38
    return True
