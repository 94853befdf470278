"""The v2 cpu controller. Shares become a weight; real-time bandwidth does not exist there."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from seacan.cgroups import files
from seacan.cgroups.statistics import Statistics, Throttling
from seacan.errors import System

if TYPE_CHECKING:
    from seacan.runtime.spec import LinuxResources


def weight(shares: int) -> int:
    """v1's shares [2, 262144] on v2's scale [1, 10000], linearly, as the OCI specification's runtimes do."""
    return 1 + ((min(max(shares, 2), 262144) - 2) * 9999) // 262142


def apply(directory: str, resources: LinuxResources) -> None:
    cpu = resources.cpu
    if cpu is None:
        return
    if cpu.realtime_runtime or cpu.realtime_period:
        raise System("cannot set real-time CPU bandwidth: cgroup v2 has no real-time controller")
    if cpu.idle is not None:
        files.write(directory, "cpu.idle", str(cpu.idle))
    if cpu.shares and not cpu.idle:  # an idle cgroup takes no weight (EINVAL)
        files.write(directory, "cpu.weight", str(weight(cpu.shares)))
    # A burst above the quota is refused: whichever order the kernel allows.
    burst_last = cpu.burst is not None
    if cpu.burst is not None:
        try:
            files.write(directory, "cpu.max.burst", str(cpu.burst))
            burst_last = False
        except files.Refused as refused:
            if refused.errno != errno.EINVAL or not cpu.quota:
                raise
    if cpu.quota or cpu.period:
        quota = str(cpu.quota) if cpu.quota and cpu.quota > 0 else "max"
        if not cpu.quota:  # only the period changes
            quota = (files.read_if_present(directory, "cpu.max") or "max").split()[0]
        period = cpu.period or (100000 if cpu.quota and cpu.quota > 0 else 0)
        files.write(directory, "cpu.max", f"{quota} {period}" if period else quota)
    if burst_last:
        files.write(directory, "cpu.max.burst", str(cpu.burst))


def stats(directory: str, into: Statistics) -> None:
    values = files.pairs(directory, "cpu.stat")
    into.cpu.usage = values.get("usage_usec", 0) * 1000
    into.cpu.user = values.get("user_usec", 0) * 1000
    into.cpu.system = values.get("system_usec", 0) * 1000
    into.cpu.throttling = Throttling(
        periods=values.get("nr_periods", 0),
        throttled_periods=values.get("nr_throttled", 0),
        throttled_time=values.get("throttled_usec", 0) * 1000,
    )
