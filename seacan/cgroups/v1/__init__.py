"""cgroup v1: one controller a module, each with ``apply(directory, resources)`` and ``stats(directory, into)``.

``CONTROLLERS`` lists them by their kernel name, in the order in which limits are applied. Reference:
Documentation/admin-guide/cgroup-v1 of the kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from seacan.cgroups.statistics import Statistics
from seacan.cgroups.v1 import (
    blkio,
    cpu,
    cpuacct,
    cpuset,
    devices,
    hugetlb,
    memory,
    net_cls,
    net_prio,
    pids,
    rdma,
)

if TYPE_CHECKING:
    from seacan.runtime.spec import LinuxResources

APPLY: dict[str, Callable[[str, LinuxResources], None]] = {
    "devices": devices.apply,
    "cpuset": cpuset.apply,
    "cpu": cpu.apply,
    "memory": memory.apply,
    "pids": pids.apply,
    "blkio": blkio.apply,
    "hugetlb": hugetlb.apply,
    "net_cls": net_cls.apply,
    "net_prio": net_prio.apply,
    "rdma": rdma.apply,
}

STATS: dict[str, Callable[[str, Statistics], None]] = {
    "cpu": cpu.stats,
    "cpuacct": cpuacct.stats,
    "memory": memory.stats,
    "pids": pids.stats,
    "blkio": blkio.stats,
    "hugetlb": hugetlb.stats,
    "rdma": rdma.stats,
}
