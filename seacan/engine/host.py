"""What this host can do with a container: facts, read once, for validation, warnings and ``docker info``.

dockerd calls this its "sysinfo"; the warnings are its words.
"""

from __future__ import annotations

import functools
import os
import platform
import re
from dataclasses import dataclass, field

from seacan import cgroups
from seacan.cgroups.hierarchies import Hierarchies
from seacan.engine.profiles import apparmor, selinux
from seacan.errors import InvalidParameter, Unsupported


@dataclass(frozen=True, kw_only=True)
class Host:
    """``cpus`` and ``mems`` are the kernel's lists ("0-3,7") of processors and memory nodes that can be given."""

    cgroup_version: int = 1
    cgroup_mode: str = "legacy"
    kernel: tuple[int, int] = (0, 0)
    processors: int = 1
    memory: int = 0
    """Bytes of RAM."""
    memory_limit: bool = False
    swap_limit: bool = False
    memory_reservation: bool = False
    memory_swappiness: bool = False
    oom_kill_disable: bool = False
    cpu_shares: bool = False
    cpu_cfs: bool = False
    cpu_realtime: bool = False
    blkio_weight: bool = False
    blkio_weight_device: bool = False
    blkio_read_bps: bool = False
    blkio_write_bps: bool = False
    blkio_read_iops: bool = False
    blkio_write_iops: bool = False
    cpuset: bool = False
    cpus: str = ""
    mems: str = ""
    pids_limit: bool = False
    devices: bool = False
    apparmor: bool = False
    selinux: bool = False
    seccomp: bool = False
    cgroup_namespaces: bool = False
    warnings: tuple[str, ...] = field(default=())
    """What is missing, in dockerd's words, for ``docker info``."""

    @property
    def ipv4_forwarding(self) -> bool:
        """Asked of the kernel anew each time, as it can change; an engine that manages networks turns it on."""
        return _read("/proc/sys/net/ipv4/ip_forward").strip() == "1"

    @property
    def recursive_read_only(self) -> bool:
        """Whether a whole tree of mounts can be made read-only (mount_setattr(2), Linux 5.12)."""
        return self.kernel >= (5, 12)


@functools.cache
def host() -> Host:
    """This machine. Costs some file reads the first time."""
    try:
        hierarchies = cgroups.discover()
    except Unsupported:
        hierarchies = Hierarchies()
    return examine(hierarchies)


def examine(hierarchies: Hierarchies) -> Host:
    """Collect the facts, given where the cgroup controllers are."""
    facts: dict[str, bool] = {}
    warnings: list[str] = []
    cpus = mems = ""

    def fact(name: str, present: bool, warning: str = "") -> None:
        facts[name] = present
        if not present and warning:
            warnings.append(warning)

    memory = hierarchies.directory("memory")
    on_v2 = hierarchies.version == 2
    if memory is not None:
        fact("memory_limit", True)
        fact("swap_limit", _has(memory, "memory.memsw.limit_in_bytes"), "WARNING: No swap limit support")
        fact("memory_reservation", _has(memory, "memory.soft_limit_in_bytes"))
        fact("oom_kill_disable", _has(memory, "memory.oom_control"), "WARNING: No oom kill disable support")
        fact("memory_swappiness", _has(memory, "memory.swappiness"))
    else:
        there = "memory" in hierarchies.controllers
        fact("memory_limit", there, "WARNING: No memory limit support")
        fact("swap_limit", there and _swap_accounting(hierarchies), "WARNING: No swap limit support")
        fact("memory_reservation", there)
    cpu = hierarchies.directory("cpu")
    v2_cpu = cpu is None and "cpu" in hierarchies.controllers
    quota = v2_cpu or _has(cpu, "cpu.cfs_quota_us")
    fact("cpu_cfs", quota)
    if not quota:
        warnings += ["WARNING: No cpu cfs quota support", "WARNING: No cpu cfs period support"]
    fact("cpu_shares", v2_cpu or _has(cpu, "cpu.shares"), "WARNING: No cpu shares support")
    fact("cpu_realtime", _has(cpu, "cpu.rt_period_us"))
    cpuset = hierarchies.directory("cpuset")
    if cpuset is not None:
        cpus, mems = _read(f"{cpuset}/cpuset.cpus").strip(), _read(f"{cpuset}/cpuset.mems").strip()
    elif "cpuset" in hierarchies.controllers:
        cpus = _read(f"{hierarchies.unified}/cpuset.cpus.effective").strip()
        mems = _read(f"{hierarchies.unified}/cpuset.mems.effective").strip()
    fact("cpuset", hierarchies.has("cpuset"), "WARNING: No cpuset support")
    blkio = hierarchies.directory("blkio")
    v2_io = blkio is None and "io" in hierarchies.controllers
    fact("blkio_weight", v2_io or _has(blkio, "blkio.weight"))
    fact("blkio_weight_device", v2_io or _has(blkio, "blkio.weight_device"))
    for name in ("read_bps", "write_bps", "read_iops", "write_iops"):
        words = f"WARNING: No {'io' if on_v2 else 'blkio'}"
        limit = f"{'r' if name.startswith('read') else 'w'}{name.partition('_')[2]}"
        fact(
            f"blkio_{name}",
            v2_io or _has(blkio, f"blkio.throttle.{name}_device"),
            f"{words}.max ({limit}) support" if on_v2 else f"{words}.throttle.{name}_device support",
        )
    fact("pids_limit", hierarchies.has("pids"), "WARNING: No pids limit support")
    fact("devices", hierarchies.has("devices") or on_v2, "WARNING: No cgroup devices support")
    return Host(
        cgroup_version=hierarchies.version,
        cgroup_mode=hierarchies.mode,
        kernel=_kernel(),
        processors=len(os.sched_getaffinity(0)),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        cpus=cpus,
        mems=mems,
        apparmor=apparmor.supported(),
        selinux=selinux.supported(),
        seccomp=os.path.exists("/proc/sys/kernel/seccomp/actions_avail"),
        cgroup_namespaces=os.path.exists("/proc/self/ns/cgroup"),
        warnings=tuple(warnings),
        **facts,
    )


def _swap_accounting(hierarchies: Hierarchies) -> bool:
    """memory.swap.max is in every cgroup but the top one, so look into whichever comes first."""
    try:
        entries = [entry.path for entry in os.scandir(hierarchies.unified) if entry.is_dir()]
    except OSError:
        return False
    return any(_has(entry, "memory.swap.max") for entry in entries) or not entries


def _kernel() -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", platform.release())
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _has(directory: str | None, name: str) -> bool:
    return directory is not None and os.path.exists(f"{directory}/{name}")


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def parse_list(text: str, maximum: int = 8192) -> set[int]:
    """Understand the kernel's list format ("0-2,7", cpuset(7)). Raises InvalidParameter as dockerd words it."""
    found: set[int] = set()
    if not text:
        return found
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise InvalidParameter(f"invalid format: {text}")
        low, high = int(first), int(last or first)
        if high < low:
            raise InvalidParameter(f"invalid format: {text}")
        if maximum and high > maximum:
            raise InvalidParameter(f"value of out range, maximum is {maximum}")
        found.update(range(low, high + 1))
    return found
