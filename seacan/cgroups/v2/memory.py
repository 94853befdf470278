"""The v2 memory controller. The OCI swap limit is memory plus swap; memory.swap.max is swap alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from seacan.cgroups import files
from seacan.cgroups.statistics import Statistics
from seacan.errors import System

if TYPE_CHECKING:
    from seacan.runtime.spec import LinuxResources

UNLIMITED = (1 << 64) - 1


def apply(directory: str, resources: LinuxResources) -> None:
    memory = resources.memory
    if memory is None:
        return
    limit, swap = memory.limit or 0, memory.swap or 0
    if limit == -1 and not swap:
        swap = -1
    if memory.check_before_update and limit > 0:
        usage = files.number(directory, "memory.current")
        if usage > limit:
            raise System(
                f"unable to set memory limit to {limit} (current usage: {usage}): container would be OOM killed"
            )
    if swap:
        value = swap_maximum(swap, limit)
        # A kernel without swap accounting has no such file: no swap is what it does anyway.
        if value not in ("max", "0") or files.read_if_present(directory, "memory.swap.max") is not None:
            files.write(directory, "memory.swap.max", value)
    if limit:
        files.write(directory, "memory.max", _value(limit))
    if memory.reservation:
        files.write(directory, "memory.low", _value(memory.reservation))


def _value(number: int) -> str:
    return "max" if number == -1 else str(number)


def swap_maximum(swap: int, limit: int) -> str:
    """memory.swap.max for a v1-style limit of memory plus swap."""
    if swap == -1:
        return "max"
    if limit == 0 or limit == -1:
        raise System("unable to set swap limit without memory limit")
    if swap < limit:
        raise System("memory+swap limit should be >= memory limit")
    return str(swap - limit)


def stats(directory: str, into: Statistics) -> None:
    into.version = 2
    memory = into.memory
    memory.stat = files.pairs(directory, "memory.stat")
    memory.usage = files.number(directory, "memory.current")
    memory.max_usage = files.number(directory, "memory.peak")
    memory.limit = files.number(directory, "memory.max", UNLIMITED)
    memory.failcnt = files.pairs(directory, "memory.events").get("oom", 0)
    swap_limit = files.number(directory, "memory.swap.max", UNLIMITED)
    memory.swap_usage = memory.usage + files.number(directory, "memory.swap.current")
    memory.swap_limit = UNLIMITED if UNLIMITED in (swap_limit, memory.limit) else memory.limit + swap_limit
    memory.kernel_usage = memory.stat.get("kernel", 0)
    memory.oom_kills = oom_kills(directory)


def oom_kills(directory: str) -> int:
    """Processes the kernel killed here, or in a cgroup below, for want of memory."""
    return files.pairs(directory, "memory.events").get("oom_kill", 0)
