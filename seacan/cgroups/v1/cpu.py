"""The v1 cpu controller: shares, CFS bandwidth, real-time bandwidth."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from seacan.cgroups import files
from seacan.cgroups.statistics import Statistics, Throttling
from seacan.errors import System

if TYPE_CHECKING:
    from seacan.runtime.spec import LinuxResources


def apply(directory: str, resources: LinuxResources) -> None:
    cpu = resources.cpu
    if cpu is None:
        return
    if cpu.shares:
        files.write(directory, "cpu.shares", str(cpu.shares))
        # The kernel clamps silently; say so as runc does.
        kept = files.number(directory, "cpu.shares", cpu.shares)
        if cpu.shares > kept:
            raise System(f"the maximum allowed cpu-shares is {kept}")
        if cpu.shares < kept:
            raise System(f"the minimum allowed cpu-shares is {kept}")
    _apply_bandwidth(directory, "cfs_quota_us", cpu.quota, "cfs_period_us", cpu.period)
    if cpu.burst is not None and files.read_if_present(directory, "cpu.cfs_burst_us") is not None:
        files.write(directory, "cpu.cfs_burst_us", str(cpu.burst))
    if cpu.idle is not None:
        files.write(directory, "cpu.idle", str(cpu.idle))
    _apply_bandwidth(directory, "rt_runtime_us", cpu.realtime_runtime, "rt_period_us", cpu.realtime_period)


def _apply_bandwidth(directory: str, quota_file: str, quota: int | None, period_file: str, period: int | None) -> None:
    """Quota and period bound each other (and the parent's), so whichever the kernel refuses first is tried again
    last."""
    again = False
    if period:
        try:
            files.write(directory, f"cpu.{period_file}", str(period))
        except files.Refused as refused:
            if refused.errno != errno.EINVAL or not quota:
                raise
            again = True
    if quota:
        files.write(directory, f"cpu.{quota_file}", str(quota))
        if again:
            files.write(directory, f"cpu.{period_file}", str(period))


def stats(directory: str, into: Statistics) -> None:
    values = files.pairs(directory, "cpu.stat")
    into.cpu.throttling = Throttling(
        periods=values.get("nr_periods", 0),
        throttled_periods=values.get("nr_throttled", 0),
        throttled_time=values.get("throttled_time", 0),
    )
