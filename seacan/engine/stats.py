"""`docker stats`: what a container uses, in dockerd's JSON, from its cgroup and its network interfaces.

The figures of both cgroup versions come in one shape (:class:`seacan.cgroups.Statistics`); what dockerd shows differs
between them (the names in memory_stats, no per-processor times on v2), and so does this.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from seacan.cgroups.statistics import BlockEntry, Statistics
from seacan.engine.container import Container
from seacan.engine.host import host
from seacan.errors import InvalidParameter

if TYPE_CHECKING:
    from seacan.engine.engine import Engine

INTERVAL = 1.0
"""Seconds between two samples."""
NEVER = "0001-01-01T00:00:00Z"
_NANOSECONDS_A_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_NO_CPU = {
    "cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0},
    "throttling_data": {"periods": 0, "throttled_periods": 0, "throttled_time": 0},
}
_BLOCK_FIELDS = {
    "io_service_bytes_recursive": "service_bytes",
    "io_serviced_recursive": "serviced",
    "io_queue_recursive": "queued",
    "io_service_time_recursive": "service_time",
    "io_wait_time_recursive": "wait_time",
    "io_merged_recursive": "merged",
    "io_time_recursive": "time",
    "sectors_recursive": "sectors",
}
_V1_MEMORY = (
    *("cache", "rss", "rss_huge", "mapped_file", "dirty", "writeback", "pgpgin", "pgpgout", "pgfault", "pgmajfault"),
    *("inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable"),
)
_V2_MEMORY = (
    *("anon", "file", "kernel_stack", "slab", "sock", "shmem", "file_mapped", "file_dirty", "file_writeback"),
    *("anon_thp", "inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable", "slab_reclaimable"),
    *("slab_unreclaimable", "pgfault", "pgmajfault", "workingset_refault", "workingset_activate"),
    *("workingset_nodereclaim", "pgrefill", "pgscan", "pgsteal", "pgactivate", "pgdeactivate", "pglazyfree"),
    *("pglazyfreed", "thp_fault_alloc", "thp_collapse_alloc"),
)


async def stats(
    engine: Engine, reference: str, *, stream: bool = True, one_shot: bool = False
) -> AsyncGenerator[dict[str, Any], None]:
    """Samples of one container: one a second, or with ``stream`` off a single one, which compares with a second
    before unless ``one_shot``. A container that does not run gives zeros; the stream ends when it is removed.

    Raises NotFound, and InvalidParameter when both are asked for.
    """
    if stream and one_shot:
        raise InvalidParameter("cannot have stream=true and one-shot=true")
    container = engine.containers.get(reference)
    if not stream and (one_shot or not container.is_live):
        yield await sample(engine, container)
        return
    previous: dict[str, Any] | None = None
    if not stream:
        previous = await sample(engine, container)
        await asyncio.sleep(INTERVAL)
    while container.id in engine.containers:
        began = time.monotonic()
        now = await sample(engine, container)
        if previous is not None:
            now["preread"], now["precpu_stats"] = previous["read"], previous["cpu_stats"]
        yield now
        if not stream:
            return
        previous = now
        await asyncio.sleep(max(0.0, INTERVAL - (time.monotonic() - began)))


async def sample(engine: Engine, container: Container) -> dict[str, Any]:
    """One sample, without the figures of an earlier one."""
    if not container.is_live:
        return _empty(container)
    cgroup, pid = engine.cgroup(container), container.state.pid
    # Reading memory.stat makes the kernel add up what every processor holds: milliseconds on a large machine.
    figures = await asyncio.to_thread(cgroup.stats)
    answer = _empty(container)
    if container.state.pid != pid:  # it ended meanwhile
        return answer
    answer["read"] = _now()
    answer["pids_stats"] = _pids(figures)
    answer["blkio_stats"] = _block(figures)
    answer["cpu_stats"] = _cpu(figures)
    answer["memory_stats"] = _memory(figures)
    if container.host_config.network_mode != "host":
        networks = interfaces(pid)
        if networks:
            answer["networks"] = networks
    return answer


def _empty(container: Container) -> dict[str, Any]:
    return {
        "name": f"/{container.name}",
        "id": container.id,
        "read": NEVER,
        "preread": NEVER,
        "pids_stats": {},
        "blkio_stats": dict.fromkeys(_BLOCK_FIELDS),
        "num_procs": 0,
        "storage_stats": {},
        "cpu_stats": _NO_CPU,
        "precpu_stats": _NO_CPU,
        "memory_stats": {},
    }


def _now() -> str:
    now = time.time_ns()
    seconds = datetime.fromtimestamp(now // 1_000_000_000, tz=UTC)
    return f"{seconds:%Y-%m-%dT%H:%M:%S}.{now % 1_000_000_000:09d}".rstrip("0").rstrip(".") + "Z"


def _pids(figures: Statistics) -> dict[str, int]:
    found = {"current": figures.pids.current} if figures.pids.current else {}
    if figures.pids.limit is not None:
        found["limit"] = figures.pids.limit
    elif figures.version == 2:
        found["limit"] = (1 << 64) - 1
    return found


def _block(figures: Statistics) -> dict[str, Any]:
    if figures.version == 2:
        return {**dict.fromkeys(_BLOCK_FIELDS), "io_service_bytes_recursive": _entries(figures.block_io.service_bytes)}
    return {name: _entries(getattr(figures.block_io, field)) for name, field in _BLOCK_FIELDS.items()}


def _entries(entries: Sequence[BlockEntry]) -> list[dict[str, Any]]:
    return [{"major": entry.major, "minor": entry.minor, "op": entry.op, "value": entry.value} for entry in entries]


def _cpu(figures: Statistics) -> dict[str, Any]:
    cpu = figures.cpu
    usage: dict[str, Any] = {"total_usage": cpu.usage}
    if cpu.percpu:
        usage["percpu_usage"] = cpu.percpu
    usage["usage_in_kernelmode"] = cpu.system
    usage["usage_in_usermode"] = cpu.user
    used, count = system_cpu()
    return {
        "cpu_usage": usage,
        "system_cpu_usage": used,
        "online_cpus": count,
        "throttling_data": {
            "periods": cpu.throttling.periods,
            "throttled_periods": cpu.throttling.throttled_periods,
            "throttled_time": cpu.throttling.throttled_time,
        },
    }


def _memory(figures: Statistics) -> dict[str, Any]:
    memory = figures.memory
    found: dict[str, Any] = {}
    if memory.usage:
        found["usage"] = memory.usage
    if figures.version == 1:
        if memory.max_usage:
            found["max_usage"] = memory.max_usage
        names = [*_V1_MEMORY, *(f"total_{name}" for name in _V1_MEMORY)]
        names += ["hierarchical_memory_limit", "hierarchical_memsw_limit"]
    else:
        names = list(_V2_MEMORY)
    found["stats"] = {name: memory.stat.get(name, 0) for name in sorted(names)}
    if memory.failcnt:
        found["failcnt"] = memory.failcnt
    # Without a limit of its own the machine's memory is what a container can use.
    limit = min(memory.limit, host().memory)
    if limit:
        found["limit"] = limit
    return found


def system_cpu() -> tuple[int, int]:
    """Time all processors of the host have spent, in nanoseconds (user to softirq, idle too), and how many there
    are."""
    total = count = 0
    with open("/proc/stat") as file:
        for line in file:
            if not line.startswith("cpu"):
                break
            name, *values = line.split()
            if name == "cpu":
                total = sum(int(value) for value in values[:7])
            else:
                count += 1
    return total * _NANOSECONDS_A_TICK, count


def interfaces(pid: int) -> dict[str, dict[str, int]]:
    """Counters of the interfaces in a process's network namespace (but lo), by name; none once it has ended."""
    found: dict[str, dict[str, int]] = {}
    try:
        with open(f"/proc/{pid}/net/dev") as file:
            lines = file.read().splitlines()[2:]
    except (FileNotFoundError, ProcessLookupError, OSError):
        return found
    for line in lines:
        name, colon, rest = line.partition(":")
        values = [int(value) for value in rest.split()]
        if not colon or len(values) < 12 or name.strip() == "lo":
            continue
        found[name.strip()] = {
            "rx_bytes": values[0],
            "rx_packets": values[1],
            "rx_errors": values[2],
            "rx_dropped": values[3],
            "tx_bytes": values[8],
            "tx_packets": values[9],
            "tx_errors": values[10],
            "tx_dropped": values[11],
        }
    return found
