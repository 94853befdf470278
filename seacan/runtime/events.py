"""``seacan-runtime events``: a cgroup's figures and OOM kills as runc's JSON lines."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

import msgspec

from seacan.errors import InvalidParameter

if TYPE_CHECKING:
    from seacan.cgroups import Statistics
    from seacan.cgroups.statistics import BlockEntry
    from seacan.runtime.container import Container

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


def duration(text: str) -> float:
    """Go's notation (``1m30s``) in seconds. Raises InvalidParameter unless it is positive."""
    parts = re.findall(r"(\d+(?:\.\d*)?)(h|ms|us|µs|ns|m|s)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise InvalidParameter(f'invalid value "{text}" for flag -interval: parse error')
    total = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if total <= 0:
        raise InvalidParameter("duration interval must be greater than 0")
    return total


def write_stats(container: Container) -> None:
    if container.cgroup is not None:
        _write("stats", container, described(container.cgroup.stats()))


def write_oom(container: Container) -> None:
    _write("oom", container, None)


def _write(kind: str, container: Container, data: Any) -> None:
    line: dict[str, Any] = {"type": kind, "id": container.id}
    if data is not None:
        line["data"] = data
    sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
    sys.stdout.flush()


def described(stats: Statistics) -> dict[str, Any]:
    """The figures under runc's names."""
    cpu, memory = stats.cpu, stats.memory
    return {
        "cpu": {
            "usage": {"total": cpu.usage, "percpu": cpu.percpu, "kernel": cpu.system, "user": cpu.user},
            "throttling": {
                "periods": cpu.throttling.periods,
                "throttledPeriods": cpu.throttling.throttled_periods,
                "throttledTime": cpu.throttling.throttled_time,
            },
        },
        "memory": {
            "cache": memory.stat.get("cache", memory.stat.get("file", 0)),
            "usage": _memory(memory.usage, memory.max_usage, memory.limit, memory.failcnt),
            "swap": _memory(memory.swap_usage, memory.swap_max_usage, memory.swap_limit, memory.swap_failcnt),
            "kernel": _memory(memory.kernel_usage, 0, 0, 0),
            "kernelTCP": _memory(memory.kernel_tcp_usage, 0, 0, 0),
            "raw": memory.stat,
        },
        "pids": {"current": stats.pids.current, "limit": stats.pids.limit or 0},
        "blkio": {
            "ioServiceBytesRecursive": _entries(stats.block_io.service_bytes),
            "ioServicedRecursive": _entries(stats.block_io.serviced),
            "ioQueueRecursive": _entries(stats.block_io.queued),
            "ioServiceTimeRecursive": _entries(stats.block_io.service_time),
            "ioWaitTimeRecursive": _entries(stats.block_io.wait_time),
            "ioMergedRecursive": _entries(stats.block_io.merged),
            "ioTimeRecursive": _entries(stats.block_io.time),
            "sectorsRecursive": _entries(stats.block_io.sectors),
        },
        "hugetlb": {
            size: {"usage": page.usage, "max": page.max_usage, "failcnt": page.failcnt}
            for size, page in stats.hugetlb.items()
        },
        "intel_rdt": {},
        "network_interfaces": None,
    }


def _memory(usage: int, maximum: int, limit: int, failures: int) -> dict[str, int]:
    return {"limit": limit, "usage": usage, "max": maximum, "failcnt": failures}


def _entries(entries: list[BlockEntry]) -> list[dict[str, Any]]:
    return [{"major": e.major, "minor": e.minor, "op": e.op, "value": e.value} for e in entries]
