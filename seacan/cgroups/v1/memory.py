"""The v1 memory controller."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from seacan.cgroups import files
from seacan.cgroups.statistics import Statistics
from seacan.errors import System

if TYPE_CHECKING:
    from seacan.runtime.spec import LinuxResources

LIMIT = "memory.limit_in_bytes"
SWAP_LIMIT = "memory.memsw.limit_in_bytes"


def apply(directory: str, resources: LinuxResources) -> None:
    memory = resources.memory
    if memory is None:
        return
    limit, swap = memory.limit or 0, memory.swap or 0
    if limit == -1 and not swap and files.read_if_present(directory, SWAP_LIMIT) is not None:
        swap = -1
    if memory.check_before_update and limit > 0:
        usage = files.number(directory, "memory.usage_in_bytes")
        if usage > limit:
            raise System(f"rejecting memory limit {limit} below the current usage {usage}")
    # memsw must never be below memory, so the order follows the direction of the change.
    swap_first = limit and swap and (swap == -1 or files.number(directory, LIMIT) < swap)
    if swap_first:
        files.write(directory, SWAP_LIMIT, str(swap))
    if limit:
        _set_limit(directory, limit)
    if swap and not swap_first:
        files.write(directory, SWAP_LIMIT, str(swap))
    if memory.reservation:
        files.write(directory, "memory.soft_limit_in_bytes", str(memory.reservation))
    if memory.disable_oom_killer:
        files.write(directory, "memory.oom_control", "1")
    swappiness = memory.swappiness
    if swappiness is not None and swappiness not in (-1, (1 << 64) - 1):
        if not 0 <= swappiness <= 100:
            raise System(f"invalid memory swappiness value: {swappiness} (valid range is 0-100)")
        files.write(directory, "memory.swappiness", str(swappiness))


def _set_limit(directory: str, limit: int) -> None:
    try:
        files.write(directory, LIMIT, str(limit))
    except files.Refused as refused:
        if refused.errno != errno.EBUSY:
            raise
        usage = files.number(directory, "memory.usage_in_bytes")
        peak = files.number(directory, "memory.max_usage_in_bytes")
        raise System(f"unable to set memory limit to {limit} (current usage: {usage}, peak usage: {peak})") from refused


def stats(directory: str, into: Statistics) -> None:
    memory = into.memory
    memory.usage = files.number(directory, "memory.usage_in_bytes")
    memory.max_usage = files.number(directory, "memory.max_usage_in_bytes")
    memory.limit = files.number(directory, LIMIT)
    memory.failcnt = files.number(directory, "memory.failcnt")
    memory.swap_usage = files.number(directory, "memory.memsw.usage_in_bytes")
    memory.swap_max_usage = files.number(directory, "memory.memsw.max_usage_in_bytes")
    memory.swap_limit = files.number(directory, SWAP_LIMIT)
    memory.swap_failcnt = files.number(directory, "memory.memsw.failcnt")
    memory.kernel_usage = files.number(directory, "memory.kmem.usage_in_bytes")
    memory.kernel_tcp_usage = files.number(directory, "memory.kmem.tcp.usage_in_bytes")
    memory.stat = files.pairs(directory, "memory.stat")
    memory.oom_kills = oom_kills(directory)


def oom_kills(directory: str) -> int:
    """Processes the kernel killed here for want of memory (kept since Linux 4.13)."""
    return files.pairs(directory, "memory.oom_control").get("oom_kill", 0)
