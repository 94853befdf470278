"""The v1 cpuacct controller: processor time used. It sets nothing."""

from __future__ import annotations

import os

from seacan.cgroups import files
from seacan.cgroups.statistics import Statistics

_TICK = 10**9 // os.sysconf("SC_CLK_TCK")


def stats(directory: str, into: Statistics) -> None:
    cpu = into.cpu
    cpu.usage = files.number(directory, "cpuacct.usage")
    # Exact where the kernel has cpuacct.usage_user (4.10); cpuacct.stat counts ticks.
    user = files.read_if_present(directory, "cpuacct.usage_user")
    if user is not None:
        cpu.user, cpu.system = int(user), files.number(directory, "cpuacct.usage_sys")
    else:
        ticks = files.pairs(directory, "cpuacct.stat")
        cpu.user, cpu.system = ticks.get("user", 0) * _TICK, ticks.get("system", 0) * _TICK
    cpu.percpu = [int(value) for value in (files.read_if_present(directory, "cpuacct.usage_percpu") or "").split()]
