"""cgroup v2: one controller a module, each with ``apply(directory, resources)`` and ``stats(directory, into)``.

``APPLY`` and ``STATS`` list them by their kernel name, in the order in which limits are applied; "devices" is no
controller there but an eBPF program. Reference: Documentation/admin-guide/cgroup-v2.rst of the kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from seacan.cgroups.statistics import Statistics
from seacan.cgroups.v2 import cpu, cpuset, hugetlb, io, memory, pids, rdma

if TYPE_CHECKING:
    from seacan.runtime.spec import LinuxResources

APPLY: dict[str, Callable[[str, LinuxResources], None]] = {
    "cpuset": cpuset.apply,
    "cpu": cpu.apply,
    "memory": memory.apply,
    "pids": pids.apply,
    "io": io.apply,
    "hugetlb": hugetlb.apply,
    "rdma": rdma.apply,
}

STATS: dict[str, Callable[[str, Statistics], None]] = {
    "cpu": cpu.stats,
    "memory": memory.stats,
    "pids": pids.stats,
    "io": io.stats,
    "hugetlb": hugetlb.stats,
    "rdma": rdma.stats,
}
